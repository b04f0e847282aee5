import io
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest

from data.download import main
from data.sample import CLASSES

REPO = Path(__file__).parents[1]


def archive_of(classes):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in classes:
            packed.writestr(f"dataset/{name}/1.jpg", name)
    return file.getvalue()


GOOD = archive_of(CLASSES)


@pytest.fixture
def into(tmp_path):
    return tmp_path / "data" / "weather"


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "weather.bin").write_bytes(GOOD)
    return tmp_path / "weather.bin"


@pytest.fixture
def url(archive):
    """Of the archive, on a web server on loopback."""
    handler = partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/weather.bin"
        server.shutdown()


def fetch(into, archive, *flags):
    return main(["--into", str(into), "--archive", str(archive), *flags])


def assert_complete(into):
    assert {path.parent.name for path in into.glob("*/1.jpg")} == set(CLASSES)
    assert os.listdir(into.parent) == ["weather"]


def error_of(capsys, status):
    said = capsys.readouterr().err
    assert status == 2
    assert said.count("error: ") == 1
    return said


def test_from_a_file_as_a_user_runs_it(archive, into):
    run = [sys.executable, "-m", "data.download", "--archive", archive, "--into", into]
    done = subprocess.run(run, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "11 photos of 11 classes" in done.stdout
    assert_complete(into)


def test_from_a_server_once(archive, into, url, capsys):
    assert fetch(into, url) == 0
    assert_complete(into)
    archive.unlink()
    assert fetch(into, url) == 0
    assert "already there" in capsys.readouterr().out
    assert "404" in error_of(capsys, fetch(into, url, "--overwrite"))
    (into / "rain" / "1.jpg").rename(into / "rain" / "mine.jpg")
    assert len(os.listdir(into)) == 11
    archive.write_bytes(GOOD)
    assert fetch(into, archive, "--overwrite") == 0
    assert_complete(into)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html>Quota exceeded", "no zip or tar"),
        (GOOD[:-30], "cannot be unpacked"),
        (archive_of([*CLASSES[1:], "sunny"]), "'dew'.*'sunny'|'sunny'.*'dew'"),
        (archive_of(["rain"]), "only one class"),
    ],
)
def test_other_archives_change_nothing(archive, into, url, capsys, data, said):
    archive.write_bytes(data)
    for source in (archive, url):
        assert re.search(said, error_of(capsys, fetch(into, source)))
    assert os.listdir(into.parent) == []


def test_what_is_not_of_these_photos_is_never_replaced(archive, into, capsys, monkeypatch):
    (into / "rain").mkdir(parents=True)
    (into / "mine.txt").touch()
    monkeypatch.chdir(into)
    for flags in ([], ["--overwrite"]):
        for folder in (into, ".", "..", into / "mine.txt"):
            error_of(capsys, fetch(folder, archive, *flags))
    (into / "mine.txt").unlink()
    assert "with --overwrite" in error_of(capsys, fetch(into, archive))
    assert os.listdir(into) == ["rain"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch.hub
@pytest.mark.parametrize(
    "source",
    ["gone.zip", ".", "ftp://host/x", "http://127.0.0.1:1/x", "http://[/x", "http://é\udcff/"],
)
def test_what_cannot_be_got_says_how_to_do_it_by_hand(into, capsys, source):
    assert "in a browser, then: python -m data.download --archive" in error_of(
        capsys, fetch(into, source)
    )


@pytest.mark.parametrize("data", [GOOD, b""])
def test_google_drive_through_torchvision(tmp_path, into, capsys, monkeypatch, data):
    """With another package in the place of gdown, or none."""
    code = f"def download(output, **_): open(output, 'wb').write({data})"
    (tmp_path / "gdown.py").write_text(code if data else "raise ModuleNotFoundError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    status = main(["--into", str(into)])
    if data:
        assert_complete(into)
    else:
        assert "pip install gdown" in error_of(capsys, status)
