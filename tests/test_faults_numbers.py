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
from config import METHODS, UserError
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.faults import WHOLE, not_finite
from tests.photo_folders import CLASSES, make_photos

# Of four classes with five photos each, three of a class are for training: two steps an epoch.
QUICK = ("--image-size", "20", "--batch-size", "6", "--epochs", "1")
ALONE = ("--models", "resnet18")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather", per_class=5)


@pytest.fixture(scope="module")
def taught(photos, tmp_path_factory) -> Path:
    """The output folder of a finished baseline, which can teach and be compared with."""
    folder = tmp_path_factory.mktemp("taught")
    train.main([*QUICK, *ALONE, *place(photos, folder)])
    return folder


def place(photos: Path, folder: Path) -> list[str]:
    """Arguments that train on these photos and keep all files in a folder."""
    return ["--data", str(photos), "--output", str(folder), "--cache", str(folder / "cache")]


def results_of(output: Path, name: str = "") -> list[dict[str, Any]]:
    """The results of the runs with this in their name, after looking at each of their numbers."""
    paths = sorted(output.glob(f"results/*{name}*/result.json"))
    results = [dict(json.loads(path.read_text("utf-8"))) for path in paths]
    assert results
    for result in results:
        assert not_finite(result) == []
        for measured in (result["val"], result["test"]):
            assert set(measured["recall"]) == set(result["photos"]["classes"])
            shares = [measured[key] for key in ("accuracy", "macro_f1", "calibration_error")]
            assert all(0 <= share <= 1 for share in [*shares, *measured["recall"].values()])
        if "agreement" in result:
            assert 0 <= result["agreement"]["top1"] <= 1
            assert result["agreement"]["kl"] > -1e-9
    return results


def trained(*words: str, photos: Path, folder: Path) -> dict[str, Any]:
    """The result of a ResNet18 with these settings, which come last and so win."""
    train.main([*QUICK, *ALONE, *place(photos, folder), *words])
    (result,) = results_of(folder)
    return result


RATES = list(product(("1e6", "1e30", "1e300"), ("adamw", "sgd"), ("6", "12")))


@pytest.mark.parametrize(("rate", "optimizer", "batch"), RATES if WHOLE else RATES[::3])
def test_an_absurd_learning_rate_ends_finite_or_says_that_it_is_too_high(
    rate, optimizer, batch, photos, tmp_path
):
    """With a batch of 12 an epoch is one step: only validation sees what it has done."""
    words = ("--lr", rate, "--optimizer", optimizer, "--batch-size", batch, "--warmup-epochs", "0")
    try:
        trained(*words, photos=photos, folder=tmp_path)
    except UserError as problem:
        message = str(problem)
        assert "--lr" in message
        assert len(message.splitlines()) == 1
        assert not list(tmp_path.rglob("result.json"))
        assert not list(tmp_path.rglob("best.pt"))


def save_photos(folder: Path, name: str, photos: list[np.ndarray]) -> None:
    (folder / name).mkdir(parents=True)
    for number, pixels in enumerate(photos):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def test_black_photos_train_where_noise_tells_them_apart_and_are_refused_where_none_does(tmp_path):
    draw = np.random.default_rng(0)
    for name in CLASSES:
        save_photos(tmp_path / "same", name, [np.zeros((48, 48, 3))] * 5)
        noisy = [np.kron(draw.integers(0, 4, (8, 8, 3)), np.ones((6, 6, 1))) for _ in range(5)]
        save_photos(tmp_path / "noisy", name, noisy)
    result = trained(photos=tmp_path / "noisy", folder=tmp_path / "o")
    assert result["photos"]["counts"] == {"train": 12, "val": 4, "test": 4}
    with pytest.raises(UserError, match="'fog' has too few photos: 1 different ones") as problem:
        trained(photos=tmp_path / "same", folder=tmp_path / "none")
    assert len(str(problem.value).splitlines()) == 1
    assert not list((tmp_path / "none").rglob("*.pt"))


def test_a_class_with_nearly_all_photos_leaves_the_others_a_recall_of_zero(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("rain", 297), ("snow", 3)):
        blocks = draw.uniform(0, 255, (count, 8, 8, 3))
        save_photos(tmp_path / "weather", name, list(blocks))
    result = trained("--batch-size", "64", photos=tmp_path / "weather", folder=tmp_path / "o")
    assert result["photos"]["counts"]["train"] == 209
    measured = result["test"]
    (hits, missed), (taken_for_rain, found) = measured["confusion"]
    assert (taken_for_rain, found) == (1, 0)
    assert measured["recall"]["snow"] == 0
    rain = 2 * hits / (2 * hits + missed + taken_for_rain)
    assert measured["macro_f1"] == pytest.approx(rain / 2, abs=1e-6)


def test_gradients_clipped_to_nearly_nothing_leave_the_loss_where_it_was(photos, tmp_path):
    words = ("--clip-norm", "1e-300", "--weight-decay", "0", "--epochs", "2")
    result = trained(*words, photos=photos, folder=tmp_path)
    (last,) = tmp_path.rglob("last.pt")
    averages = load_checkpoint(last)["optimizer"]["state"]
    assert all(state["exp_avg"].abs().max() == 0 for state in averages.values())
    assert result["table"]["final_train_loss"] == pytest.approx(math.log(4), abs=0.7)


def test_batches_of_two_photos_of_two_classes(photos, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    for name in CLASSES[:2]:
        (two / name).symlink_to(photos / name)
    words = [*QUICK, "--batch-size", "2", *place(two, tmp_path / "o")]
    train.main([*words, *ALONE])
    lessons = [name for name in METHODS if name != "dkd"] if WHOLE else ["kd", "dist", "rkd"]
    knowledge_distillation.main([*words, *bring(tmp_path / "o"), "--method", *lessons])
    assert len(results_of(tmp_path / "o", "from")) == len(lessons)
    for mixed in results_of(tmp_path / "o"):
        assert len(mixed["test"]["recall"]) == 2


def bring(output: Path) -> list[str]:
    """Arguments by which the only baseline in this folder teaches a network of its own kind."""
    (teacher,) = output.glob("checkpoints/*-resnet18-seed0/best.pt")
    return ["--student", "resnet18", "--teacher-checkpoint", str(teacher)]


def odd_teacher(kind: str, taught: Path, folder: Path) -> Path:
    """A checkpoint of a teacher that answers as it likes: always the same, or far too surely."""
    (path,) = taught.glob("checkpoints/*-resnet18-seed0/best.pt")
    content = load_checkpoint(path)
    head = [content["model"][f"fc.{name}"] for name in ("weight", "bias")]
    if kind == "constant":
        for values in head:
            values.zero_()
    if kind == "sure":
        content["model"]["fc.bias"] = torch.tensor([1e4, 0, -1e4, 0])
        head[0].mul_(1e4)
    save_checkpoint(folder / kind / "best.pt", content)
    return folder / kind / "best.pt"


TEMPERATURES = ("0.01", "100", "1000")
LESSONS = list(product(("constant", "sure", "usual"), TEMPERATURES, ("0", "1")))
FEW = [("constant", "0.01", "1"), ("sure", "1000", "1")]


@pytest.mark.parametrize(("kind", "temperature", "alpha"), LESSONS if WHOLE else FEW)
def test_odd_teachers_leave_finite_students(kind, temperature, alpha, taught, photos, tmp_path):
    teacher = odd_teacher(kind, taught, tmp_path)
    knowledge_distillation.main(
        [
            *QUICK, *place(photos, taught), "--student", "resnet18", "--teacher-checkpoint",
            str(teacher), "--method", *METHODS, "--temperature", temperature, "--alpha", alpha,
        ]
    )  # fmt: skip
    names = f"-a{alpha}-T{temperature}-"
    students = [s for s in results_of(taught, names) if s["teacher"]["run"] == kind]
    assert {student["lesson"]["method"] for student in students} == set(METHODS)


def test_a_constant_teacher_is_measured_as_what_it_is(taught, photos, tmp_path):
    """All its confidences, a quarter each, fall into one bin, and all its answers on one class."""
    teacher = odd_teacher("constant", taught, tmp_path)
    words = [*QUICK, *place(photos, taught), "--tag", "measured"]
    words += ["--student", "resnet18", "--teacher-checkpoint", str(teacher)]
    knowledge_distillation.main(words)
    (result,) = (r for r in results_of(taught, "measured") if r.get("lesson"))
    measured = result["teacher"]["test"]
    assert measured["recall"] == {"fog": 1, "hail": 0, "rain": 0, "snow": 0}
    assert measured["macro_f1"] == pytest.approx(2 / 5 / 4)
    assert measured["calibration_error"] == pytest.approx(0, abs=1e-6)
    assert measured["loss"] == pytest.approx(math.log(4), abs=1e-6)
    folder = taught / "results" / result["run"]
    logits = torch.from_numpy(np.load(folder / "test_logits.npz")["logits"])
    uniform = -math.log(4) - logits.double().log_softmax(1).mean()
    assert result["agreement"]["kl"] == pytest.approx(float(uniform), rel=1e-5)
    assert result["agreement"]["top1"] == (logits.argmax(1) == 0).float().mean()
