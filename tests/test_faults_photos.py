"""Odd and broken files in a folder: each is trained on as what it shows, or reported by name."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

from tests.odd_photos import readable, unreadable
from tests.photo_folders import CLASSES, make_photos

ROOT = Path(__file__).parents[1]
NAMES = (os.fsdecode(b"f\xf6g"), "ha\nil | x", "rain", "雪")  # of the class folders
SHOWN = {f"{NAMES[n % 4]}/{name}": kind for n, (name, kind) in enumerate(readable().items())}
BROKEN = {f"{NAMES[n % 4]}/{name}": kind for n, (name, kind) in enumerate(unreadable().items())}


def test_training_writes_down_every_file_that_is_left_out(tmp_path):
    """In a terminal that knows ASCII alone, too. Every other file is decoded."""
    folder = make_photos(tmp_path / "weather", per_class=24)
    for plain, odd in zip(CLASSES, NAMES, strict=True):
        (folder / plain).rename(folder / odd)
    for path, (data, _) in (SHOWN | BROKEN).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    run = subprocess.run(
        [sys.executable, "train.py", "--data", folder, "--models", "resnet18", "--image-size", "32",
         "--batch-size", "8", "--epochs", "1", "--output", tmp_path / "o", "--cache", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert f": {4 * 24 + len(SHOWN)} in 4 classes" in run.stdout
    assert f"{len(BROKEN)} files cannot be read" in run.stdout
    (results,) = (tmp_path / "o" / "results").glob("*resnet18*")
    text = (results / "unreadable.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    assert [path for path, _ in rows] == ["path", *sorted(BROKEN)]
