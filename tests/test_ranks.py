"""Several processes under torchrun: the same training as in one, for both scripts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from config import UserError, parse
from data.dataset import load_datasets
from data.files import read_json
from tests import ranks_program
from tests.faults import only_whole
from tests.photo_folders import python, training

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[dict[str, Any]]:
    """What this process has in the end, and what each of two ranks has."""
    folder = tmp_path_factory.mktemp("program")
    ranks_program.main(folder)
    run = python(*TORCHRUN, "-m", "tests.ranks_program", folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("written") == 1  # by rank 0 alone
    names = ("rank0of1", "rank0of2", "rank1of2")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


def test_after_two_epochs_all_ranks_have_the_weights_and_the_metrics_of_one(saved):
    alone, *both = saved
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(both[0]["weights"][name], weights, rtol=1e-3, atol=1e-5)
        assert torch.equal(both[0]["weights"][name], both[1]["weights"][name])
    for row, first, second in zip(*(each["history"] for each in saved), strict=True):
        assert {"loss/train", "accuracy/train", "loss/val", "fitnet/train", "kd/val"} < row.keys()
        for name in row.keys() - {"seconds", "wall_time", "images_per_second"}:
            assert first[name] == pytest.approx(row[name], rel=1e-3), name
            assert second[name] == first[name], name
    assert all("the ranks differ in photos, flags or precision" in each["said"] for each in both)
    assert (alone["saved"], both[0]["saved"], both[1]["saved"]) == ([1, 2], [1, 2], [])


@pytest.fixture(scope="module")
def words(photos, tmp_path_factory) -> list[str]:
    return training(photos, tmp_path_factory.mktemp("runs"))


@only_whole
def test_distilling_in_two_ranks_writes_and_prints_once(words):
    more = ("--method", "fitnet", "--teacher", "resnet18", "--student", "resnet18", "--tag", "two")
    run = python(*TORCHRUN, "knowledge_distillation.py", *words, *more)
    assert run.returncode == 0, run.stderr
    assert not re.search("rror|Warning: ", run.stderr)
    assert len(re.findall(r"^epoch +1/1 ", run.stdout, re.M)) == 2
    assert "each of 2 ranks" in run.stdout
    results = list(Path(words[3]).glob("results/*-two-*/result.json"))
    assert len(results) == 2
    for result in results:
        content = read_json(result)
        assert sum(map(sum, content["test"]["confusion"])) == content["photos"]["counts"]["test"]
        assert content["environment"]["ranks"] == 2


def test_photos_and_batches_that_the_ranks_cannot_share_are_refused(words):
    for batch_size, count in ((9, 2), (8, 8)):
        config = parse([*words, "--batch-size", str(batch_size)], "")
        with pytest.raises(UserError, match=f"--batch-size {batch_size}: {count} ranks need"):
            load_datasets(config, torch.device("cpu"), count)
