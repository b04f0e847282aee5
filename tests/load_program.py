"""Run by test_faults_load.py: each stage from photos to a trained network, timed and watched.

python -m tests.load_program prepare PHOTOS FOLDER    list, decode, search duplicates, split
python -m tests.load_program train PHOTOS FOLDER 512  train.py for one epoch, by batches of 512

Prints, as the last line, {stage: {"seconds": ..., "megabytes": the most anonymous memory}}.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.batches import cached_side
from data.cache import decode_photos
from data.photos import find_photos
from data.split import split_photos
from tests.faults import anonymous_megabytes
from train import main

IMAGE_SIZE = 8
measured: dict[str, dict[str, float]] = {}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure what is done inside: seconds of one core, which other programs do not lengthen, and
    the peak of memory, looked at every 10 ms."""
    done, peak = threading.Event(), anonymous_megabytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - started
        done.set()
        watcher.join()
    measured[name] = {"seconds": seconds, "megabytes": max(peak, anonymous_megabytes())}


def prepare(path: Path, cache: Path) -> None:
    """What utils.setup.prepare does with the photos, stage by stage."""
    with stage("listing"):
        photos = find_photos(path, cache)
    with stage("decoding"):
        decoded = decode_photos(photos, cached_side(IMAGE_SIZE), cache, workers=1, strict=True)
    with stage("duplicates and split"):
        manifest = decoded.folder / "split-seed0.csv"
        split_photos(decoded.photos, decoded.signatures, manifest, seed=0)


def train(path: Path, folder: Path, batch: str) -> None:
    """One epoch of the smallest network, validation and test."""
    words = f"--models resnet18 --image-size {IMAGE_SIZE} --epochs 1 --workers 1 --device cpu"
    folders = ["--cache", str(folder / "cache"), "--output", str(folder / "output")]
    with stage("train.py, one epoch"):
        main([*words.split(), "--batch-size", batch, "--data", str(path), *folders])


if __name__ == "__main__":
    what, photos_path, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "prepare":
        prepare(photos_path, work / "cache")
    else:
        train(photos_path, work, sys.argv[4])
    print(json.dumps(measured))
