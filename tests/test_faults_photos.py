"""Odd and broken files in a folder: each is trained on as what it shows, or reported by name."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.cache import decode_photos
from data.photos import find_photos
from tests.odd_photos import readable, unreadable
from tests.photo_folders import CLASSES, make_photos

ROOT = Path(__file__).parents[1]
NAMES = (os.fsdecode(b"f\xf6g"), "ha\nil | x", "rain", "雪")  # of the class folders
SHOWN = {f"{NAMES[n % 4]}/{name}": kind for n, (name, kind) in enumerate(readable().items())}
BROKEN = {f"{NAMES[n % 4]}/{name}": kind for n, (name, kind) in enumerate(unreadable().items())}
# pytest puts its own warning filters in the place of those that data.photos sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four healthy classes, with every kind of file in one of them."""
    folder = make_photos(tmp_path_factory.mktemp("odd") / "weather", per_class=24)
    for plain, odd in zip(CLASSES, NAMES, strict=True):
        (folder / plain).rename(folder / odd)
    for path, (data, _) in (SHOWN | BROKEN).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_every_file_is_decoded_into_its_own_row_or_reported(folder, tmp_path):
    photos = find_photos(folder, tmp_path)
    healthy = {f"{name}/{n}.jpg" for name in NAMES for n in range(24)}
    assert set(photos.paths) == healthy | set(SHOWN | BROKEN)
    decoded = decode_photos(photos, 64, tmp_path, workers=2, strict=False)
    assert [path for path, _ in decoded.unreadable] == sorted(BROKEN)
    assert set(decoded.photos.paths) == set(photos.paths) - set(BROKEN)
    for path, row in zip(decoded.photos.paths, decoded.rows, strict=True):
        if path in SHOWN:
            square = decoded.pixels[row].astype(float).reshape(2, 32, 2, 32, 3)[:, 4:28, :, 4:28]
            assert np.abs(square - SHOWN[path][1][:, None, :, None]).mean() < 6, path


def test_training_writes_down_every_file_that_is_left_out(folder, tmp_path):
    """In a terminal that knows ASCII alone, too."""
    run = subprocess.run(
        [sys.executable, "train.py", "--data", folder, "--models", "resnet18", "--image-size", "32",
         "--batch-size", "8", "--epochs", "1", "--output", tmp_path / "o", "--cache", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{len(BROKEN)} files cannot be read" in run.stdout
    (results,) = (tmp_path / "o" / "results").glob("*resnet18*")
    text = (results / "unreadable.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    assert [path for path, _ in rows] == ["path", *sorted(BROKEN)]


def test_photos_that_change_between_listing_and_decoding(tmp_path):
    rain = make_photos(tmp_path / "weather", per_class=6) / "rain"
    photos = find_photos(tmp_path / "weather", tmp_path)
    (rain / "0.jpg").unlink()
    (rain / "1.jpg").write_text("no photo any more")
    (rain / "2.jpg").write_bytes((rain / "2.jpg").read_bytes()[:90])
    (rain / "3.jpg").unlink()
    (rain / "3.jpg").mkdir()
    (rain / "4.jpg").unlink()
    os.mkfifo(rain / "4.jpg")
    decoded = decode_photos(photos, 64, tmp_path, workers=1, strict=False)
    assert [path for path, _ in decoded.unreadable] == [f"rain/{n}.jpg" for n in range(5)]
    assert len(decoded.photos) == 19
