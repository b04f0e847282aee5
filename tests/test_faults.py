"""Runs that are killed at random moments and resumed end as if nothing had happened.

The number of kills is KILLS, 3 unless the environment says otherwise: KILLS=50 pytest
tests/test_faults.py
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.photo_folders import make_photos

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "3"))
RUN = "weather-32px-resnet18-seed3"


def words(photos: Path, folder: Path) -> list[str]:
    return [
        sys.executable, "train.py", "--data", str(photos), "--models", "resnet18", "--image-size",
        "32", "--batch-size", "8", "--epochs", "4", "--mixup", "0.2", "--seeds", "3",
        "--output", str(folder / "output"), "--cache", str(folder / "cache"), "--resume",
    ]  # fmt: skip


def test_killed_and_resumed_a_run_ends_with_the_same_bits(tmp_path):
    photos = make_photos(tmp_path / "weather", per_class=40)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.perf_counter()
    subprocess.run(words(photos, whole), cwd=ROOT, check=True, capture_output=True)
    length = time.perf_counter() - started

    draw = random.Random(20)
    kills = 0
    while kills < KILLS:
        # From the decoding on: before that a run only imports its libraries.
        moment = draw.uniform(0.3, 1.0) * length
        process = subprocess.Popen(
            words(photos, killed), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        # It ended before its kill: all that is left of it goes, so that the next start is cold.
        compare(whole, killed)
        subprocess.run(["rm", "-r", str(killed)], check=True)
    subprocess.run(words(photos, killed), cwd=ROOT, check=True, capture_output=True)
    compare(whole, killed)


def compare(whole: Path, killed: Path) -> None:
    for name in ("last.pt", "best.pt"):
        first, second = (
            torch.load(f / "output" / "checkpoints" / RUN / name, weights_only=True)
            for f in (whole, killed)
        )
        for key, value in first["model"].items():
            assert torch.equal(value, second["model"][key]), (name, key)
    first, second = (
        json.loads((f / "output" / "results" / RUN / "result.json").read_text())
        for f in (whole, killed)
    )
    for key in ("table", "best_epoch", "test", "val", "photos", "recipe"):
        assert first[key] == second[key], key
    logits = [
        (f / "output" / "results" / RUN / "test_logits.npz").read_bytes() for f in (whole, killed)
    ]
    assert logits[0] == logits[1]
    assert not list(killed.rglob("*unfinished*"))
    assert len(list((killed / "output" / "logs" / RUN).iterdir())) == 1
