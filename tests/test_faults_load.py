"""20,000 photos: time grows no faster than their number, but for the search of duplicates, memory
hardly at all, and duplicates are found as among few. Runs by `make test-faults` alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.duplicates import group_duplicates
from data.photos import find_photos
from data.split import read_manifest
from tests.faults import WHOLE
from tests.photo_folders import encoded

ROOT = Path(__file__).parents[1]
SIZES = (2_000, 20_000)
SIDE, WAVES = 48, 16
PREPARE = """
import sys
from pathlib import Path
import numpy as np
from data.cache import decode_photos
from data.photos import find_photos
from data.split import split_photos

folder, last = Path(sys.argv[1]), sys.argv[2]
photos = find_photos(folder / "photos", folder)
if last != "list":
    decoded = decode_photos(photos, 16, folder / "cache", workers=1, strict=True)
if last == "split":
    split_photos(decoded.photos, decoded.signatures, folder / "split.csv", seed=0)
    np.save(folder / "signatures.npy", decoded.signatures)
"""
TRAIN = "train.py --models resnet18 --image-size 8 --epochs 1 --workers 1 --device cpu --batch-size"
# Stages, each a process that repeats or loads what comes before; the most bytes for a photo more:
# names, numbers, and while duplicates are searched, details. What was decoded is 1,792 bytes.
BYTES = {"list": 400, "decode": 6_000, "split": 14_000, "train": 5_000}
pytestmark = [
    pytest.mark.skipif(not WHOLE, reason="FAULTS=whole runs it"),
    pytest.mark.timeout(1_800),
]


def clouds(rng: np.random.Generator) -> Image.Image:
    """Coloured clouds with detail at all scales, as photos have."""
    side = np.cos(np.pi * np.arange(WAVES)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
    waves = rng.normal(size=(3, WAVES, WAVES))
    waves[1:] = 0.8 * waves[:1] + 0.6 * waves[1:]
    waves /= np.maximum(1, np.hypot(*np.ogrid[:WAVES, :WAVES])) ** 1.25
    levels = 128 + 40 * side.T @ waves @ side
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_photos(folder: Path, count: int) -> dict[str, str]:
    """`count` JPEGs of 11 classes; each planted copy and what it is a copy of: as it was, encoded
    anew, larger, or with a border cut off."""
    rng, planted = np.random.default_rng(0), {}
    for number in range(count - count // 10):
        image = clouds(rng)
        name = f"class{number % 11:02}/{number:06}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image, quality=92))
        if number < count // 10:
            again = (image, image, image.resize((60, 60)), image.crop((0, 0, SIDE, SIDE - 4)))
            planted[name.replace(".jpg", "-again.jpg")] = name
            path = folder / name.replace(".jpg", "-again.jpg")
            path.write_bytes(encoded(again[number % 4], quality=92 if number % 4 == 0 else 75))
    return planted


def measure(*words: str | Path) -> tuple[float, float]:
    """Seconds of one core and megabytes at most that a Python process takes."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, process.returncode, used = os.wait4(process.pid, 0)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def test_many_photos(tmp_path):
    used = {}
    for count in SIZES:
        folder = tmp_path / str(count)
        planted = make_photos(folder / "photos", count)
        for stage in ("list", "decode", "split"):
            used[stage, count] = measure("-c", PREPARE, folder, stage)
        used["train", count] = measure(
            *TRAIN.split(), str(SIZES[0] // 4), "--data", folder / "photos",
            "--cache", folder / "cache", "--output", folder / "output",
        )  # fmt: skip
    print(*used.items(), sep="\n")
    few, many = SIZES
    for stage, most in BYTES.items():
        (seconds, megabytes), (more_seconds, more_megabytes) = used[stage, few], used[stage, many]
        assert more_seconds < 1.5 * many / few * seconds + 1
        assert more_megabytes - megabytes < most * (many - few) / 1e6 + 80

    split = read_manifest(folder / "split.csv")
    paths = find_photos(folder / "photos", folder).paths
    groups = group_duplicates(np.load(folder / "signatures.npy"))
    first = {path: paths[group] for path, group in zip(paths, groups, strict=True)}
    found = [copy for copy, original in planted.items() if first[copy] == first[original]]
    assert len(found) >= 0.97 * len(planted)
    assert len(found) == len(paths) - len(np.unique(groups))
    part = dict(zip(split.paths, split.part.tolist(), strict=True))
    assert [part[copy] for copy in found] == [part[planted[copy]] for copy in found]
