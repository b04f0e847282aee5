"""Several processes under torchrun: the same training as in one, for both scripts."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from config import METHODS
from tests.photo_folders import make_photos
from utils import ranks

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2")
QUICK = ("--image-size", "32", "--batch-size", "8", "--models", "resnet18")
RUN = "weather-32px-resnet18-seed0"


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[dict[str, Any]]:
    """What a process of its own has written, and what each of two ranks has."""
    folder = tmp_path_factory.mktemp("program")
    for launcher in ((), TORCHRUN):
        run = command(*launcher, "-m", "tests.ranks_program", folder)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("written") == 1  # by rank 0 alone
    names = ("rank0of1", "rank0of2", "rank1of2")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_gradients_of_two_ranks_are_those_of_one(method, saved):
    alone, *both = (each["gradients"][method] for each in saved)
    assert alone.keys() == both[0].keys()
    assert any(name.startswith("own.") for name in alone) == (method == "fitnet")
    scale = max(gradient.abs().max() for gradient in alone.values())
    for name, gradient in alone.items():
        torch.testing.assert_close(both[0][name], gradient, rtol=1e-3, atol=1e-5 * float(scale))
        assert torch.equal(both[0][name], both[1][name])


def test_after_two_epochs_all_ranks_have_the_weights_and_the_metrics_of_one(saved):
    alone, *both = saved
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(both[0]["weights"][name], weights, rtol=1e-3, atol=1e-4)
        assert torch.equal(both[0]["weights"][name], both[1]["weights"][name])
    speed = {"seconds", "wall_time", "images_per_second"}
    for row, first, second in zip(*(each["history"] for each in saved), strict=True):
        assert {"loss/train", "accuracy/train", "loss/val", "fitnet/train", "kd/val"} < row.keys()
        for name in row.keys() - speed:
            assert first[name] == pytest.approx(row[name], rel=1e-3), name
            assert second[name] == first[name], name
    assert (alone["saved"], both[0]["saved"], both[1]["saved"]) == ([1, 2], [1, 2], [])


def test_without_torchrun_nothing_is_shared_out():
    rows = torch.arange(6.0, requires_grad=True)
    assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)
    assert ranks.share(7) == slice(0, 7)
    assert ranks.whole_batch(rows) is rows
    assert ranks.gathered(rows) is rows
    module = torch.nn.Linear(2, 2)
    assert ranks.parallel(module) is module


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("runs")
    photos = make_photos(folder / "weather", per_class=15)  # 12 to validate, 6 to test
    where = ("--output", str(folder / "output"), "--cache", str(folder / "cache"))
    return ("--data", str(photos), *where)


@pytest.fixture(scope="module")
def output(place) -> Path:
    return Path(place[place.index("--output") + 1])


def history(output: Path, run: str) -> list[dict[str, str]]:
    with (output / "results" / run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_rank_that_dies_ends_the_job_and_one_process_resumes_it(place, output):
    words = [sys.executable, *TORCHRUN, "train.py", *place, *QUICK, "--epochs", "16"]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout
        for line in job.stdout:
            if line.startswith("epoch   2/16"):
                break
        os.kill(ranks_of(job.pid)[1], signal.SIGKILL)
        _, problems = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGKILL" in problems
    done = len(torch.load(output / "checkpoints" / RUN / "last.pt", weights_only=True)["history"])
    assert 2 <= done < 16
    resumed = command("train.py", *place, *QUICK, "--epochs", "16", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after epoch {done}" in resumed.stdout
    assert [row["epoch"] for row in history(output, RUN)] == [str(n) for n in range(1, 17)]


def ranks_of(launcher: int) -> list[int]:
    """The processes of rank 0 and 1."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environment = {
        int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children
    }
    return sorted(environment, key=lambda pid: b"RANK=1" in environment[pid])


def test_distilling_in_two_ranks_writes_and_prints_once(place, output):
    words = ("knowledge_distillation.py", *place, *QUICK[:4], "--epochs", "1",
             "--teacher", "resnet18", "--student", "resnet18", "--method", "fitnet",
             "--warmup-epochs", "0", "--tag", "two")  # fmt: skip
    run = command(*TORCHRUN, *words)
    assert run.returncode == 0, run.stderr
    assert "rror" not in run.stderr
    assert "Warning: " not in run.stderr
    assert len(re.findall(r"^epoch +1/1 ", run.stdout, re.M)) == 2
    assert "each of 2 ranks" in run.stdout
    for result in output.glob("results/*-two-*/result.json"):
        content = json.loads(result.read_text())
        assert sum(map(sum, content["test"]["confusion"])) == content["photos"]["counts"]["test"]
        assert content["environment"]["ranks"] == 2
    names = {path.name for path in output.glob("checkpoints/*-two-*")}
    assert len(names) == 2
    # The adapter that was trained is beside the student, and the student loads as in one process.
    again = command(*words, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before, kept") == 2


def test_a_batch_that_the_ranks_cannot_share_is_refused(place):
    run = command(*TORCHRUN, "train.py", *place, *QUICK, "--batch-size", "9", "--tag", "nine")
    assert run.returncode != 0
    assert (
        "error: --batch-size 9: the 2 ranks share it, so it has to be a multiple of 2" in run.stderr
    )
