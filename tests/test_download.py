import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from config import UserError
from data import download
from data.download import WEATHER_CLASSES, main

REPO = Path(__file__).parents[1]
COUNTS = {name: 1 + n % 3 for n, name in enumerate(WEATHER_CLASSES)}


def photo(name):
    file = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(file, "JPEG", comment=name)
    return file.getvalue()


def archive_of(counts, prefix="dataset/"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, count in counts.items():
            for n in range(count):
                packed.writestr(f"{prefix}{name}/{n}.jpg", photo(name))
    return file.getvalue()


ARCHIVE = archive_of(COUNTS)


class Server:
    """A web server on loopback with one file."""

    def __init__(self, data):
        self.data, self.asked = data, 0
        self.http = HTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.http.server_port}/weather.zip"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server, *args):
        self.site = server
        super().__init__(*args)

    def do_GET(self):
        self.site.asked += 1
        if self.site.data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.site.data)))
        self.end_headers()
        self.wfile.write(self.site.data)

    def log_message(self, *_):
        pass


@pytest.fixture
def into(tmp_path):
    return tmp_path / "data" / "weather"


def fetch(into, archive, *flags):
    return main(["--into", str(into), "--archive", str(archive), *flags])


def assert_complete(into, printed=None):
    found = {folder.name: len(list(folder.iterdir())) for folder in into.iterdir()}
    assert found == COUNTS
    assert os.listdir(into.parent) == ["weather"]
    if printed is not None:
        for name, count in COUNTS.items():
            assert re.search(rf"^ +{name} +{count}$", printed, re.MULTILINE)
        assert f"{sum(COUNTS.values())} photos of 11 classes" in printed


def test_from_a_file_as_a_user_runs_it(tmp_path, into):
    (tmp_path / "weather.bin").write_bytes(ARCHIVE)
    run = [sys.executable, "-m", "data.download", "--archive", tmp_path / "weather.bin"]
    done = subprocess.run([*run, "--into", into], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert_complete(into, done.stdout)
    assert (tmp_path / "weather.bin").read_bytes() == ARCHIVE


def test_from_a_server(into, capsys):
    with Server(ARCHIVE) as site:
        assert fetch(into, site.url) == 0
        assert_complete(into, capsys.readouterr().out)
        assert fetch(into, site.url) == 0
        assert site.asked == 1
    assert "complete already" in capsys.readouterr().out


def error_of(capsys, status):
    assert status == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) <= 2
    assert "Traceback" not in said
    return said


# torch.hub forgets to close a file where there is no server.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_network_failures_say_what_to_do(into, capsys):
    with Server(ARCHIVE) as site:
        gone = site.url
    said = error_of(capsys, fetch(into, gone))
    assert "refused" in said
    assert "browser" in said
    assert "--archive FILE" in said
    error_of(capsys, fetch(into, "http://no-such-host.invalid/x.zip"))
    error_of(capsys, fetch(into, "http://127.0.0.1:99999/x.zip"))
    for bad in ("http:///x.zip", "http://[/x.zip", "http://a b/c d.zip", "http://é\udcff/"):
        error_of(capsys, fetch(into, bad))
    assert os.listdir(into.parent) == []


def test_a_missing_page_says_so(into, capsys):
    with Server(None) as site:
        assert "Not Found" in error_of(capsys, fetch(into, site.url))


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>Quota exceeded", b"\n <HTML><body>"])
def test_a_web_page_instead_of_the_archive(tmp_path, into, capsys, page):
    with Server(page) as site:
        assert "web page" in error_of(capsys, fetch(into, site.url))
        site.data = ARCHIVE
        (tmp_path / "page.zip").write_bytes(page)
        assert "web page" in error_of(capsys, fetch(into, tmp_path / "page.zip"))
        assert fetch(into, site.url) == 0
    assert_complete(into)


def test_broken_archives_are_not_kept(into, capsys):
    with Server(ARCHIVE[:-30]) as site:
        assert "truncated, broken" in error_of(capsys, fetch(into, site.url))
        site.data = ARCHIVE
        assert fetch(into, site.url) == 0
        assert site.asked == 2
    assert_complete(into)


def test_other_classes_are_named(tmp_path, into, capsys):
    path = tmp_path / "a.zip"
    other = {**COUNTS, "sunny": 2}
    del other["rime"]
    path.write_bytes(archive_of(other))
    said = error_of(capsys, fetch(into, path))
    assert "missing ['rime']" in said
    assert "unknown ['sunny']" in said
    assert not into.exists()
    path.write_bytes(archive_of({"rain": 1}))
    assert "only one class" in error_of(capsys, fetch(into, path))
    assert os.listdir(into.parent) == []


def test_class_names_may_differ_in_case(tmp_path, into):
    path = tmp_path / "a.zip"
    path.write_bytes(archive_of({name.upper(): 1 for name in COUNTS}))
    assert fetch(into, path) == 0
    assert fetch(into, "not needed") == 0


def test_what_is_there_is_kept(tmp_path, into, capsys):
    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVE)
    (into / "rain").mkdir(parents=True)
    (into / "rain" / "mine.jpg").write_bytes(photo("rain"))
    said = error_of(capsys, fetch(into, path))
    assert "--overwrite" in said
    assert [file.name for file in into.rglob("*.jpg")] == ["mine.jpg"]
    assert fetch(into, path, "--overwrite") == 0
    assert_complete(into)

    before = (into / "snow" / "0.jpg").stat()
    capsys.readouterr()
    assert fetch(into, "http://127.0.0.1:1/never-asked") == 0
    assert "complete already" in capsys.readouterr().out
    assert (into / "snow" / "0.jpg").stat() == before
    assert_complete(into)


def test_a_failed_overwrite_keeps_the_old_photos(tmp_path, into, capsys):
    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVE)
    assert fetch(into, path) == 0
    path.write_bytes(ARCHIVE[:-100])
    error_of(capsys, fetch(into, path, "--overwrite"))
    assert_complete(into)


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path, into):
    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVE)
    (tmp_path / "large-disk" / "weather").mkdir(parents=True)
    into.parent.mkdir()
    into.symlink_to(tmp_path / "large-disk" / "weather")
    assert fetch(into, path) == 0
    assert into.is_symlink()
    assert_complete(into)
    assert os.listdir(tmp_path / "large-disk") == ["weather"]


def test_folders_that_must_not_be_replaced(tmp_path, into, capsys, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVE)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for folder in (".", "..", "/", "~"):
        assert "in use" in error_of(capsys, fetch(folder, path, "--overwrite"))
    into.mkdir(parents=True)
    path = path.rename(into / "a.zip")
    assert "lies in the folder" in error_of(capsys, fetch(into, path, "--overwrite"))
    assert path.read_bytes() == ARCHIVE


def test_bad_arguments(tmp_path, into, capsys):
    assert "no file" in error_of(capsys, fetch(into, tmp_path / "missing.zip"))
    assert "no file" in error_of(capsys, fetch(into, tmp_path))
    assert "no file" in error_of(capsys, fetch(into, "ftp://host/x.zip"))
    (tmp_path / "file").write_bytes(b"")
    error_of(capsys, fetch(tmp_path / "file" / "weather", tmp_path))
    error_of(capsys, fetch(tmp_path / "file", tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["--arch", "x"])
    assert stop.value.code == 2


def test_google_drive_without_gdown(into, capsys, monkeypatch):
    monkeypatch.setattr(download, "find_spec", lambda name: None)
    said = error_of(capsys, main(["--into", str(into)]))
    assert "needs the package gdown: pip install gdown" in said
    assert download.GOOGLE_DRIVE_ID in said
    assert not into.exists()


GDOWN = """
def download(id, output, quiet, user_agent):
    data = {data!r}
    if not data:
        raise ConnectionError("no route\\nto host")
    with open(output, "wb") as file:
        file.write(data)
"""


@pytest.mark.parametrize("data", [ARCHIVE, b"", b"<!DOCTYPE html>Too many users"])
def test_google_drive_through_torchvision(tmp_path, into, capsys, monkeypatch, data):
    """torchvision's own helper, with another package in the place of gdown."""
    (tmp_path / "gdown.py").write_text(GDOWN.format(data=data))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    status = main(["--into", str(into)])
    if data is ARCHIVE:
        assert status == 0
        assert_complete(into, capsys.readouterr().out)
        return
    said = error_of(capsys, status)
    assert ("web page" if data else "no route to host") in said
    assert "--archive FILE" in said
    assert not into.exists()


def test_errors_are_user_errors(into):
    with pytest.raises(UserError):
        download.fetch_photos("missing.zip", into, overwrite=False)
