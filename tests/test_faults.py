"""Runs that are killed at any moment and resumed are bitwise identical to uninterrupted ones,
Ctrl-C and SIGTERM stop them cleanly, and a full disk is reported. tests/test_train.py has a quick
version; FAULTS=whole pytest tests/test_faults.py runs everything."""

import csv
import functools
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from models.checkpoint import load_checkpoint
from tests.faults import only_whole
from tests.photo_folders import make_photos, python, training

BASELINE = "weather-32px-resnet18-mixed-seed3"
STUDENT = "weather-32px-resnet18-from-resnet18-fitnet-a0.7-T2-w1-mixed-seed3"
# A short baseline; and a baseline that then teaches a student with an adapter.
SCRIPTS = {
    BASELINE: ["train.py", "--models", "resnet18"],
    STUDENT: ["knowledge_distillation.py", "--teacher", "resnet18", "--student", "resnet18",
              "--method", "fitnet"],
}  # fmt: skip
KILLS = {BASELINE: 25, STUDENT: 50}
# Files that a run may be writing when it is killed, in the order in which they are written.
MOMENTS = ("pixels.raw", "index.npz", "settings.json", "tfevents", "last.pt",
           "test_logits.npz", "best.pt", "history.csv", "split.csv", "result.json")  # fmt: skip
ASKED = {signal.SIGINT: 130, signal.SIGTERM: 143}
ENDINGS = [*4 * [signal.SIGKILL], *ASKED]
STOPPED = "stopped; the same command with --resume continues"
SPEED = ("images_per_second", "seconds", "wall_time")


def words(run: str, photos: Path, folder: Path) -> list[str]:
    more = ["--epochs", 4, "--mixup", 0.2, "--seeds", 3, "--tag", "mixed", "--resume"]
    return [*SCRIPTS[run], *training(photos, folder, *more)]


def finish(run: str, photos: Path, folder: Path) -> None:
    """Run the command to its end."""
    done = python(*words(run, photos, folder))
    assert done.returncode == 0, done.stderr


def interrupted(
    run: str, photos: Path, folder: Path, ending: int, number: int, wait: float, name: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command; send it a signal `wait` ms after change `number` to a path with `name`."""
    folder.mkdir(exist_ok=True)
    program = ("-m", "tests.killed_program", folder, name, int(ending), number, wait)
    return python(*program, *words(run, photos, folder))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather", per_class=24)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Callable[[str], tuple[Path, int]]:
    """Folder of an uninterrupted run, and the number of file changes that it made."""

    @functools.cache
    def made(run: str) -> tuple[Path, int]:
        folder = tmp_path_factory.mktemp("whole") / "whole"
        return folder, int(interrupted(run, photos, folder, 0, 0, 0).stderr.split()[-1])

    return made


@only_whole
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", [BASELINE, STUDENT])
def test_a_run_that_is_stopped_and_resumed_is_bitwise_identical(run, photos, whole, tmp_path):
    expected, changes = whole(run)
    folder = tmp_path / "interrupted"
    for moment in MOMENTS:
        ended = interrupted(run, photos, folder, signal.SIGKILL, 1, 0, moment)
        assert ended.returncode == -signal.SIGKILL, (moment, ended.stderr)
    draw = random.Random(20)
    kills = 0
    while kills < KILLS[run]:
        # Early ones more often: after each kill there is less left to do.
        number = 1 + int(changes * draw.random() ** 2)
        ending = draw.choice(ENDINGS)
        wait = draw.choice([0, draw.uniform(0, 40), draw.uniform(0, 1000)])
        ended = interrupted(run, photos, folder, ending, number, 0 if ending in ASKED else wait)
        if ended.returncode == 0:
            # It ended before the signal: delete its files, so that the next starts from scratch.
            compare(run, expected, folder)
            shutil.rmtree(folder)
        elif ending in ASKED:
            assert ended.returncode == ASKED[ending], ended.stderr
            assert ended.stderr.splitlines() == ["", STOPPED]
        else:
            assert ended.returncode == -signal.SIGKILL, ended.stderr
            kills += 1
    finish(run, photos, folder)
    compare(run, expected, folder)


def compare(run: str, whole: Path, other: Path) -> None:
    """Assert that both folders have the same results of a run, and the other no leftover files."""
    first, second = (traces(folder / "output", run) for folder in (whole, other))
    for name in first:
        assert first[name] == second[name], name
    best = (folder / "output" / "checkpoints" / run / "best.pt" for folder in (whole, other))
    torch.testing.assert_close(*(load_checkpoint(b)["model"] for b in best), rtol=0, atol=0)
    assert not list((other / "output").rglob("*.tmp"))
    assert len(list((other / "output" / "logs" / run).rglob("*.*"))) == 3


def traces(output: Path, run: str) -> dict[str, Any]:
    """The part of a run's output that must be the same in an identical run."""
    results = output / "results" / run
    result = json.loads((results / "result.json").read_text("utf-8"))
    with (results / "history.csv").open(encoding="utf-8") as file:
        history = [{k: v for k, v in row.items() if k not in SPEED} for row in csv.DictReader(file)]
    with np.load(results / "test_logits.npz") as saved:
        logits = {name: saved[name].tolist() for name in saved.files}
    points = []
    for path in sorted((output / "logs" / run).rglob("*.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars" and value.tag not in SPEED:
                    points.append((value.tag, event.step, value.tensor.float_val[0]))
    keys = ("table", "best_epoch", "digest", "test", "val", "photos", "recipe", "agreement")
    return {
        "result": {key: result.get(key) for key in keys},
        "split": (results / "split.csv").read_text("utf-8"),
        "history": history,
        "logits": logits,
        "points": points,
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which `mounted` gives another size."""
    (folder := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def mounted(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


# From no room for the decoded photos to none for the second of the checkpoints to resume from.
SIZES = ["500k", "1m", "20m", "60m", "150m", "200m", "250m"]


@only_whole
@pytest.mark.timeout(1200)
def test_a_full_or_read_only_disk_is_one_line_and_with_room_the_run_resumes(disk, photos, whole):
    epochs = 0
    for options in [*(f"size={size}" for size in SIZES), "size=1g,ro"]:
        mounted(disk, options)
        ended = python(*words(BASELINE, photos, disk))
        assert ended.returncode == 2, (options, ended.stdout, ended.stderr)
        assert ended.stderr.startswith("error: "), options
        assert len(ended.stderr.splitlines()) <= 2, options
        assert not list(disk.rglob("*.tmp")), options
        for checkpoint in disk.rglob("last.pt"):
            epochs = len(load_checkpoint(checkpoint)["history"])
    assert epochs >= 1
    mounted(disk, "rw")
    finish(BASELINE, photos, disk)
    compare(BASELINE, whole(BASELINE)[0], disk)
