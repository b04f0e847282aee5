"""Runs that are killed at random moments and resumed end as if nothing had happened, those that
are asked to stop do so in order, and no two processes train the same run.

KILLS in the environment says how many kills there are, instead of one or two:
KILLS=50 pytest tests/test_faults.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint
from tests.photo_folders import make_photos

ROOT = Path(__file__).parents[1]
BASELINE = "weather-32px-resnet18-mixed-seed3"
STUDENT = "weather-32px-resnet18-from-resnet18.2epochs-fitnet-a0.7-T2-w100-mixed-seed3"
# A short baseline; and a teacher, a baseline and a student with an adapter one after the other.
SCRIPTS = {
    BASELINE: ["train.py", "--models", "resnet18"],
    STUDENT: ["knowledge_distillation.py", "--teacher", "resnet18", "--student", "resnet18",
              "--teacher-epochs", "2", "--method", "fitnet"],
}  # fmt: skip
KILLS = {run: int(os.environ.get("KILLS", few)) for run, few in ((BASELINE, 1), (STUDENT, 2))}


def words(run: str, photos: Path, folder: Path) -> list[str]:
    return [
        sys.executable, *SCRIPTS[run], "--data", str(photos), "--image-size", "32",
        "--batch-size", "8", "--epochs", "4", "--mixup", "0.2", "--seeds", "3", "--tag", "mixed",
        "--output", str(folder / "output"), "--cache", str(folder / "cache"), "--resume",
    ]  # fmt: skip


@pytest.mark.parametrize("run", SCRIPTS)
def test_killed_and_resumed_a_run_ends_with_the_same_bits(run, tmp_path):
    photos = make_photos(tmp_path / "weather", per_class=24)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.perf_counter()
    subprocess.run(words(run, photos, whole), cwd=ROOT, check=True, capture_output=True)
    length = time.perf_counter() - started

    draw = random.Random(20)
    kills = 0
    while kills < KILLS[run]:
        # From the decoding on: before that a run only imports its libraries.
        moment = draw.uniform(0.3, 1.0) * length
        process = subprocess.Popen(
            words(run, photos, killed), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
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
        compare(run, whole, killed)
        subprocess.run(["rm", "-r", str(killed)], check=True)
    subprocess.run(words(run, photos, killed), cwd=ROOT, check=True, capture_output=True)
    compare(run, whole, killed)


def compare(run: str, whole: Path, killed: Path) -> None:
    for name in ("last.pt", "best.pt"):
        first, second = (
            torch.load(f / "output" / "checkpoints" / run / name, weights_only=True)
            for f in (whole, killed)
        )
        for part in ("model", "objective"):
            for key, value in first.get(part, {}).items():
                assert torch.equal(value, second[part][key]), (name, key)
    first, second = (
        json.loads((f / "output" / "results" / run / "result.json").read_text())
        for f in (whole, killed)
    )
    for key in ("table", "best_epoch", "test", "val", "photos", "recipe"):
        assert first[key] == second[key], key
    logits = [
        (f / "output" / "results" / run / "test_logits.npz").read_bytes() for f in (whole, killed)
    ]
    assert logits[0] == logits[1]
    if run == STUDENT:
        assert first["agreement"] == second["agreement"]
    assert not list(killed.rglob("*unfinished*"))
    assert len(list((killed / "output" / "logs" / run).iterdir())) == 1


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on_and_nobody_else_may_train_it(
    ending, status, tmp_path
):
    photos = make_photos(tmp_path / "weather", per_class=24)
    command = [*words(BASELINE, photos, tmp_path), "--epochs", "500"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("epoch   2/") for line in lines)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2
    assert "is being trained by another process" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert errors.strip().splitlines() == ["stopped; the same command with --resume goes on"]
    (last,) = tmp_path.rglob("last.pt")
    assert len(load_checkpoint(last)["history"]) >= 2
    assert not list(tmp_path.rglob("*unfinished*"))
