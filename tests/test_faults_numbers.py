"""Photos and teachers at their extremes: finite numbers. FAULTS=whole in the environment tries
every temperature and alpha with every teacher and method."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import knowledge_distillation
import train
from data.files import read_json
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.faults import WHOLE
from tests.photo_folders import CLASSES, make_photos, training
from utils.distillation import METHODS


def results_of(folder: Path, name: str = "") -> list[dict[str, Any]]:
    """The results of the runs with this in their name, after looking at each of their numbers."""
    results = [read_json(path) for path in folder.glob(f"output/results/*{name}*/result.json")]
    assert results
    json.dumps(results, allow_nan=False)  # raises for a number that is not finite
    return results


def test_two_classes_of_photos_that_are_black_but_for_noise_in_batches_of_two(tmp_path):
    draw = np.random.default_rng(0)
    for name, number in product(CLASSES[:2], range(5)):
        levels = draw.integers(0, 4, (8, 8, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
        (tmp_path / "black" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(tmp_path / "black" / name / f"{number}.png")
    words = training(tmp_path / "black", tmp_path, "--teacher", "resnet18", "--batch-size", 2)
    methods = [name for name in METHODS if name != "dkd"] if WHOLE else ["kd", "dist", "rkd"]
    knowledge_distillation.main([*words, "--method", *methods])
    assert len(results_of(tmp_path, "from")) == len(methods)
    for result in results_of(tmp_path):
        assert result["photos"]["counts"] == {"train": 6, "val": 2, "test": 2}
        assert len(result["test"]["recall"]) == 2


CASES = list(product(("constant", "sure"), ("0.01", "100", "1000"), ("0", "1")))


@pytest.mark.parametrize(("kind", "temperature", "alpha"), CASES if WHOLE else CASES[-1:])
def test_odd_teachers_leave_finite_students(kind, temperature, alpha, tmp_path):
    words = training(make_photos(tmp_path / "weather", per_class=5), tmp_path, "--batch-size", 6)
    train.main([*words, "--models", "resnet18"])
    (path,) = tmp_path.glob("output/checkpoints/*/best.pt")
    content = load_checkpoint(path)
    content["model"]["fc.weight"].mul_(0 if kind == "constant" else 1e4)
    content["model"]["fc.bias"] = torch.tensor([1e4, 0, -1e4, 0]) * (kind == "sure")
    save_checkpoint(tmp_path / "odd.pt", content)
    words += ["--student", "resnet18", "--teacher-checkpoint", str(tmp_path / "odd.pt")]
    words += ["--method", *METHODS, "--temperature", temperature, "--alpha", alpha]
    knowledge_distillation.main(words)
    students = results_of(tmp_path, f"-a{alpha}-T{temperature}")
    assert {student["distillation"]["method"] for student in students} == set(METHODS)
