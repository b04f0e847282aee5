"""Fetching the photos, with a gdown that the test makes: the real one needs the network."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import UserError
from data.download import fetch_photos

ARCHIVE = b"PK\5\6" + bytes(18)  # a zip without files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARCHIVE, "exists already"),
        (b"<!doctype html> quota exceeded", r"gave a page instead of the archive\n.* in a browser"),
        (OSError("too many"), r"did not give the archive \(too many\)\n.* in a browser"),
        (None, r"pip install gdown.*\n.* in a browser"),
    ],
)
def test_an_archive_appears_whole_or_not_at_all(content, message, tmp_path, monkeypatch):
    def download(url=None, output=None, **_):
        if isinstance(content, Exception):
            raise content
        Path(output).write_bytes(content)
        return output

    gdown = SimpleNamespace(download=download, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gdown", gdown if content else None)
    if content == ARCHIVE:
        fetch_photos(tmp_path / "weather.zip")
    with pytest.raises(UserError, match=message):
        fetch_photos(tmp_path / "weather.zip")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [ARCHIVE] * (content == ARCHIVE)
