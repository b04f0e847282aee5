"""Fetching the photos, with a gdown that the test makes: the real one needs the network."""

import io
import sys
import types
import zipfile

import pytest

from config import UserError
from data.download import fetch_photos


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("dataset/rain/1.jpg", "rain")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(), None),
        (b"<!doctype html> quota exceeded", "gave a page instead of the archive"),
        (OSError("too many accesses"), "did not give the archive \\(too many accesses\\)"),
    ],
)
def test_an_archive_appears_whole_or_not_at_all(content, message, tmp_path, monkeypatch):
    def download(url=None, output=None, **_):
        if isinstance(content, Exception):
            raise content
        with open(output, "wb") as file:
            file.write(content)
        return output

    gdown = types.ModuleType("gdown")
    gdown.download = download  # type: ignore[attr-defined]
    gdown.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    target = tmp_path / "weather.zip"
    if message is None:
        fetch_photos(target)
        assert target.read_bytes() == content
        with pytest.raises(UserError, match="exists already"):
            fetch_photos(target)
    else:
        with pytest.raises(UserError, match=message) as problem:
            fetch_photos(target)
        assert "in a browser" in str(problem.value)
    assert len(list(tmp_path.iterdir())) == (message is None)


def test_without_gdown_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="pip install gdown"):
        fetch_photos(tmp_path / "weather.zip")
