"""Several processes under torchrun: the same training as in one, for both scripts."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from config import UserError, parse
from data.dataset import load_datasets
from tests.faults import only_whole
from tests.photo_folders import make_photos, python, start, training
from tests.ranks_program import EQUAL
from tests.test_train import rows_of
from utils.distillation import METHODS

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[dict[str, Any]]:
    """What a process of its own has written, and what each of two ranks has."""
    folder = tmp_path_factory.mktemp("program")
    for launcher in ((), TORCHRUN):
        run = python(*launcher, "-m", "tests.ranks_program", folder)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("written") == 1  # by rank 0 alone
    names = ("rank0of1", "rank0of2", "rank1of2")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.mark.parametrize("method", EQUAL)
def test_gradients_of_two_ranks_are_those_of_one(method, saved):
    alone, *both = (each["gradients"][method] for each in saved)
    assert alone.keys() == both[0].keys()
    adapter = method != "none" and METHODS[method].adapter
    assert any(name.startswith("adapters.") for name in alone) == adapter
    scale = max(gradient.abs().max() for gradient in alone.values())
    for name, gradient in alone.items():
        torch.testing.assert_close(both[0][name], gradient, rtol=1e-3, atol=1e-5 * float(scale))
        assert torch.equal(both[0][name], both[1][name])


def test_after_two_epochs_all_ranks_have_the_weights_and_the_metrics_of_one(saved):
    alone, *both = saved
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(both[0]["weights"][name], weights, rtol=1e-3, atol=1e-4)
        assert torch.equal(both[0]["weights"][name], both[1]["weights"][name])
    for row, first, second in zip(*(each["history"] for each in saved), strict=True):
        assert {"loss/train", "accuracy/train", "loss/val", "fitnet/train", "kd/val"} < row.keys()
        for name in row.keys() - {"seconds", "wall_time", "images_per_second"}:
            assert first[name] == pytest.approx(row[name], rel=1e-3), name
            assert second[name] == first[name], name
    assert all("the ranks differ in photos, flags or precision" in each["said"] for each in both)
    assert (alone["saved"], both[0]["saved"], both[1]["saved"]) == ([1, 2], [1, 2], [])


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    photos = make_photos(folder / "weather", per_class=15)  # 12 to validate, 6 to test
    return training(photos, folder)


@only_whole
def test_a_rank_that_dies_ends_the_job_and_one_process_resumes_it(words):
    script = ("train.py", *words, "--models", "resnet18", "--epochs", 16)
    with start(*TORCHRUN, *script) as job:
        assert job.stdout
        next(line for line in job.stdout if line.startswith("epoch   2/16"))
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        (second,) = (
            int(pid)
            for pid in children
            if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        )
        os.kill(second, signal.SIGKILL)
        _, problems = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGKILL" in problems
    resumed = python(*script, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert 2 <= int(re.findall(r"resumed after epoch (\d+)", resumed.stdout)[0]) < 16
    history = rows_of(Path(words[3], "results", "weather-32px-resnet18-seed0", "history.csv"))
    assert [row["epoch"] for row in history] == [str(n) for n in range(1, 17)]


@only_whole
def test_distilling_in_two_ranks_writes_and_prints_once(words):
    more = ("--method", "fitnet", "--teacher", "resnet18", "--student", "resnet18", "--tag", "two")
    run = python(*TORCHRUN, "knowledge_distillation.py", *words, *more)
    assert run.returncode == 0, run.stderr
    assert not re.search("rror|Warning: ", run.stderr)
    assert len(re.findall(r"^epoch +1/1 ", run.stdout, re.M)) == 2
    assert "each of 2 ranks" in run.stdout
    for result in Path(words[3]).glob("results/*-two-*/result.json"):
        content = json.loads(result.read_text())
        assert sum(map(sum, content["test"]["confusion"])) == content["photos"]["counts"]["test"]
        assert content["environment"]["ranks"] == 2
    # The adapter that was trained is beside the student, and the student loads as in one process.
    again = python("knowledge_distillation.py", *words, *more, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before, kept") == 2


def test_photos_and_batches_that_the_ranks_cannot_share_are_refused(words):
    def load(batch_size: int, count: int) -> None:
        config = parse([*words, "--batch-size", str(batch_size)], "")
        load_datasets(config, torch.device("cpu"), count)

    load(8, 2)
    for batch_size, count in ((9, 2), (8, 8), (14, 7)):
        with pytest.raises(UserError, match=f"--batch-size {batch_size}: {count} ranks need"):
            load(batch_size, count)
