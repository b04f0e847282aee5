"""20,000 photos: time grows no faster than their number, but for the search of duplicates, and
memory hardly at all. Runs by `make test-faults` alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults import WHOLE

ROOT = Path(__file__).parents[1]
FEW, MANY = 2_000, 20_000
SIDE, WAVES = 48, 16
PREPARE = """
import sys
from pathlib import Path
from data.cache import decode_photos
from data.photos import find_photos
from data.split import split_photos

folder, last = Path(sys.argv[1]), sys.argv[2]
photos = find_photos(folder / "photos", folder)
if last != "list":
    decoded = decode_photos(photos, 16, folder / "cache", workers=1, strict=True)
if last == "split":
    split_photos(decoded.photos, decoded.groups, seed=0).hash
"""
TRAIN = (
    "train.py --models resnet18 --image-size 32 --epochs 1 --workers 1 --device cpu --batch-size"
)
# Stages, each a process that repeats or loads what comes before; the most bytes for a photo more:
# names, numbers, and while duplicates are searched, details. What was decoded is 12 kB in training.
BYTES = {"list": 400, "decode": 14_000, "split": 5_000, "train": 18_000}


def make_photos(folder: Path, count: int) -> None:
    """Coloured clouds of 11 classes with detail at all scales, as photos have."""
    rng = np.random.default_rng(0)
    wave = np.cos(np.pi * np.arange(WAVES)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
    for number in range(count):
        waves = rng.normal(size=(3, WAVES, WAVES))
        waves[1:] = 0.8 * waves[:1] + 0.6 * waves[1:]
        waves /= np.maximum(1, np.hypot(*np.ogrid[:WAVES, :WAVES])) ** 1.25
        levels = (128 + 40 * wave.T @ waves @ wave).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % 11:02}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.transpose(1, 2, 0)).save(path)


def measure(*words: str | Path) -> tuple[float, float]:
    """Seconds of one core and megabytes at most that a Python process takes."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, process.returncode, used = os.wait4(process.pid, 0)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


@pytest.mark.skipif(not WHOLE, reason="FAULTS=whole runs it")
@pytest.mark.timeout(1_800)
def test_many_photos(tmp_path):
    used = {}
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        make_photos(folder / "photos", count)
        for stage in ("list", "decode", "split"):
            used[stage, count] = measure("-c", PREPARE, folder, stage)
        used["train", count] = measure(
            *TRAIN.split(), str(FEW // 4), "--data", folder / "photos",
            "--cache", folder / "cache", "--output", folder / "output",
        )  # fmt: skip
    print(*used.items(), sep="\n")
    for stage, most in BYTES.items():
        (seconds, megabytes), (more_seconds, more_megabytes) = used[stage, FEW], used[stage, MANY]
        growth = (MANY / FEW) ** (2 if stage == "decode" else 1)  # each is compared with each other
        assert more_seconds < 1.5 * growth * seconds + 1
        assert more_megabytes - megabytes < most * (MANY - FEW) / 1e6 + 80
