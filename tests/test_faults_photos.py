"""Odd and broken files in a folder: each is trained on as what it shows, or reported by name."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.cache import Decoded, decode_photos
from data.photos import Photos, find_photos
from tests.odd_photos import EXACT, draw_corners, every_kind, picture, rgb
from tests.photo_folders import CLASSES, make_photos
from utils.report import write_report

ROOT = Path(__file__).parents[1]
SIDE = 64
# pytest puts its own warning filters in the place of those that data.photos sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

NAMES = (os.fsdecode(b"f\xf6g"), "ha\nil | x", "rain", "雪")  # of the class folders
KINDS = {f"{NAMES[n % 4]}/{kind.name}": kind for n, kind in enumerate(every_kind())}
REPORTED = {path: kind.reason for path, kind in sorted(KINDS.items()) if kind.reason}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Four healthy classes, and every kind in one of them."""
    folder = make_photos(tmp_path_factory.mktemp("odd") / "weather", per_class=24)
    for plain, odd in zip(CLASSES, NAMES, strict=True):
        (folder / plain).rename(folder / odd)
    for path, kind in KINDS.items():
        kind.put(folder / path.split("/")[0])
    return folder


@pytest.fixture(scope="module")
def listed(corpus) -> Photos:
    return find_photos(corpus, corpus.parent)


@pytest.fixture(scope="module")
def decoded(listed, tmp_path_factory) -> Decoded:
    cache = tmp_path_factory.mktemp("cache")
    return decode_photos(listed, SIDE, cache, workers=2, strict=False)


def corners_of(square: np.ndarray) -> np.ndarray:
    """(2, 2, 64, 3) levels near the four corners; pixels in between may be blurred."""
    near = np.concatenate([square[2:10], square[-10:-2]])
    near = np.concatenate([near[:, 2:10], near[:, -10:-2]], axis=1)
    return near.reshape(2, 8, 2, 8, 3).swapaxes(1, 2).reshape(2, 2, 64, 3).astype(float)


def shows(square: np.ndarray, corners: np.ndarray, tolerance: int = EXACT) -> bool:
    return bool(np.abs(corners_of(square) - corners[:, :, None]).max() <= tolerance)


@pytest.mark.parametrize("path", sorted(set(KINDS) - set(REPORTED)), ids=repr)
def test_an_odd_photo_is_trained_on_as_what_it_shows(path, decoded):
    kind = KINDS[path]
    assert path not in dict(decoded.unreadable)
    assert decoded.photos.paths.count(path) == 1
    number = decoded.photos.paths.index(path)
    assert decoded.photos.classes[decoded.photos.labels[number]] == path.split("/")[0]
    assert kind.corners is not None
    assert shows(decoded.pixels[decoded.rows[number]], kind.corners, kind.tolerance)


@pytest.mark.parametrize("path", REPORTED, ids=repr)
def test_a_file_that_is_no_photo_is_reported_with_the_reason(path, decoded):
    reasons = [reason for name, reason in decoded.unreadable if name == path]
    assert len(reasons) == 1
    assert REPORTED[path] in reasons[0]
    assert path not in decoded.photos.paths


def test_no_file_is_lost_or_listed_twice(decoded):
    healthy = {f"{name}/{number}.jpg" for name in NAMES for number in range(24)}
    expected = sorted(healthy | set(KINDS))
    reported = [path for path, _ in decoded.unreadable]
    assert sorted([*decoded.photos.paths, *reported]) == expected


def test_the_corpus_trains_and_every_file_left_out_is_written_down(corpus, tmp_path):
    """In a terminal that knows ASCII alone, too."""
    run = subprocess.run(
        [sys.executable, "train.py", "--data", corpus, "--models", "resnet18", "--image-size", "32",
         "--batch-size", "8", "--epochs", "1", "--output", tmp_path / "o",
         "--cache", tmp_path / "c"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    (results,) = (tmp_path / "o" / "results").glob("weather-32px-resnet18-*")
    written = read_csv(results / "unreadable.csv")
    assert written[0] == ["path", "reason"]
    assert [path for path, _ in written[1:]] == list(REPORTED)
    assert all(REPORTED[path] in reason for path, reason in written[1:])
    split = read_csv(results / "split.csv")
    assert {path for path, _, _ in split} >= set(KINDS) - set(REPORTED)

    report = write_report(tmp_path / "o" / "results")
    recall = report.split("| Test recall of")[1].splitlines()[2:6]
    titles = [line.split("|")[1].strip() for line in recall]
    assert titles == ["'f\\udcf6g'", "'ha\\nil &#124; x'", "rain", "雪"]
    lines = run.stdout.splitlines()
    start = lines.index(f"WARNING  {len(REPORTED)} files cannot be read and are left out:")
    for path, line in zip(list(REPORTED)[:5], lines[start + 1 :], strict=False):
        assert ascii(path) in line
    elsewhere = tmp_path / "o" / "results" / "<run>" / "unreadable.csv"
    more = f"and {len(REPORTED) - 5} more; a run lists all in {elsewhere}"
    assert lines[start + 6].strip() == more


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_photos_that_change_between_listing_and_decoding(tmp_path):
    names = ("gone", "text", "other", "cut", "pipe", "same")
    for label in ("rain", "snow"):
        for name in names:
            rgb(f"{label}/{name}.png", "PNG").put(tmp_path / "weather")
    listed = find_photos(tmp_path / "weather", tmp_path)
    rain = tmp_path / "weather" / "rain"
    (rain / "gone.png").unlink()
    (rain / "text.png").write_text("no photo any more")
    picture(draw_corners("new")).save(rain / "other.png")
    (rain / "cut.png").write_bytes((rain / "cut.png").read_bytes()[:90])
    (rain / "pipe.png").unlink()
    os.mkfifo(rain / "pipe.png")

    decoded = decode_photos(listed, SIDE, tmp_path / "cache", workers=1, strict=False)
    said = dict(decoded.unreadable)
    assert list(said) == [f"rain/{name}.png" for name in ("cut", "gone", "pipe", "text")]
    for path, reason in zip(
        said, ("truncated", "No such file", "not a regular file", "not an image"), strict=True
    ):
        assert reason in said[path]
    seen = dict(zip(decoded.photos.paths, decoded.rows, strict=True))
    assert len(seen) == 8
    for path, row in seen.items():
        corners = draw_corners("new" if path == "rain/other.png" else path)
        assert shows(decoded.pixels[row], corners), path
