"""Settings, photos and teachers at their extremes: finite numbers, or a line that says what to do.

FAULTS=whole in the environment tries every temperature and alpha with every teacher and method.
"""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import knowledge_distillation
import train
from config import UserError
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.faults import WHOLE, not_finite
from tests.photo_folders import CLASSES, make_photos, training
from utils.distillation import METHODS


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather", per_class=5)


def words_for(photos: Path, folder: Path, *more: object) -> list[str]:
    """Of four classes with five photos each, three are for training: two steps an epoch."""
    return training(photos, folder, "--batch-size", 6, *more)


def results_of(folder: Path, name: str = "") -> list[dict[str, Any]]:
    """The results of the runs with this in their name, after looking at each of their numbers."""
    paths = sorted(folder.glob(f"output/results/*{name}*/result.json"))
    results = [dict(json.loads(path.read_text("utf-8"))) for path in paths]
    assert results
    assert not_finite(results) == []
    return results


def trained(photos: Path, folder: Path, *more: object) -> dict[str, Any]:
    """The result of a ResNet18 with these settings."""
    train.main(words_for(photos, folder, "--models", "resnet18", *more))
    (result,) = results_of(folder)
    return result


RATES = list(product(("1e6", "1e30", "1e300"), ("adamw", "sgd"), ("6", "12")))


@pytest.mark.parametrize(("rate", "optimizer", "batch"), RATES if WHOLE else RATES[::3])
def test_an_absurd_learning_rate_ends_finite_or_says_that_it_is_too_high(
    rate, optimizer, batch, photos, tmp_path
):
    """With a batch of 12 an epoch is one step: only validation sees what it has done."""
    more = ("--lr", rate, "--optimizer", optimizer, "--batch-size", batch, "--warmup-epochs", "0")
    try:
        trained(photos, tmp_path, *more)
    except UserError as problem:
        message = str(problem)
        assert "--lr" in message
        assert len(message.splitlines()) == 1
        assert not [*tmp_path.rglob("result.json"), *tmp_path.rglob("best.pt")]


def test_photos_are_trained_on_that_are_black_but_for_noise(tmp_path):
    draw = np.random.default_rng(0)
    for name, number in product(CLASSES, range(5)):
        blocks = draw.integers(0, 4, (8, 8, 3)).astype(np.uint8)
        (tmp_path / "black" / name).mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(np.kron(blocks, np.ones((6, 6, 1), np.uint8)))
        photo.save(tmp_path / "black" / name / f"{number}.png")
    result = trained(tmp_path / "black", tmp_path / "o")
    assert result["photos"]["counts"] == {"train": 12, "val": 4, "test": 4}


def test_batches_of_two_photos_of_two_classes(photos, tmp_path):
    (tmp_path / "two").mkdir()
    for name in CLASSES[:2]:
        (tmp_path / "two" / name).symlink_to(photos / name)
    methods = [name for name in METHODS if name != "dkd"] if WHOLE else ["kd", "dist", "rkd"]
    more = ["--teacher", "resnet18", "--batch-size", "2", "--method", *methods]
    knowledge_distillation.main(words_for(tmp_path / "two", tmp_path / "o", *more))
    assert len(results_of(tmp_path / "o", "from")) == len(methods)
    assert all(len(result["test"]["recall"]) == 2 for result in results_of(tmp_path / "o"))


CASES = list(product(("constant", "sure", "usual"), ("0.01", "100", "1000"), ("0", "1")))
FEW = [("sure", "1000", "1")]


@pytest.mark.parametrize(("kind", "temperature", "alpha"), CASES if WHOLE else FEW)
def test_odd_teachers_leave_finite_students(kind, temperature, alpha, photos, tmp_path):
    """A teacher that gives all photos the same answer, or one that is far too confident."""
    trained(photos, tmp_path)
    (path,) = tmp_path.glob("output/checkpoints/*/best.pt")
    content = load_checkpoint(path)
    if kind != "usual":
        content["model"]["fc.weight"].mul_(0 if kind == "constant" else 1e4)
        values = [0.0] * 4 if kind == "constant" else [1e4, 0, -1e4, 0]
        content["model"]["fc.bias"] = torch.tensor(values)
    save_checkpoint(tmp_path / kind / "best.pt", content)
    more = ["--student", "resnet18", "--teacher-checkpoint", tmp_path / kind / "best.pt"]
    more += ["--method", *METHODS, "--temperature", temperature, "--alpha", alpha]
    knowledge_distillation.main(words_for(photos, tmp_path, *more))
    students = results_of(tmp_path, f"-a{alpha}-T{temperature}")
    assert {student["distillation"]["method"] for student in students} == set(METHODS)
    for student in students if kind == "constant" else ():
        measured = student["teacher"]["test"]
        assert measured["loss"] == pytest.approx(math.log(4), abs=1e-6)
        assert measured["recall"] == {"fog": 1, "hail": 0, "rain": 0, "snow": 0}
