"""The benchmark measures what it says it measures; how fast that is, is the machine's business."""

import numpy as np
import pytest

from config import parse
from tests.photo_folders import make_photos
from utils import benchmark
from utils.benchmark import PlainLoop, compare, contenders, plain_loop, steps_of_a_round
from utils.setup import Setup, prepare


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("benchmark")
    return [
        "--data", str(make_photos(folder / "weather")), "--cache", str(folder / "cache"),
        "--image-size", "32", "--batch-size", "4", "--output", str(folder / "output"),
        "--precision", "float32",
    ]  # fmt: skip


@pytest.fixture
def setup(words, monkeypatch) -> Setup:
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "SECONDS", 0.2)
    return prepare(parse(words, ""))[0]


def test_by_default_every_model_and_both_experiments_are_measured(setup, words):
    names = [name for name, _ in contenders(setup, setup.config)]
    assert names == [
        "densenet169", "resnet50", "resnet18",
        "densenet169 teaches resnet18, kd", "resnet50 teaches resnet18, kd",
    ]  # fmt: skip
    one = parse([*words, "--models", "resnet50"], "")
    assert [name for name, _ in contenders(setup, one)] == ["resnet50"]
    lesson = parse([*words, "--reverse", "--method", "rkd", "sp"], "", distils=True)
    assert [name for name, _ in contenders(setup, lesson, distils=True)] == [
        "resnet18 teaches densenet169, rkd", "resnet18 teaches densenet169, sp",
    ]  # fmt: skip


def test_a_row_has_three_speeds_that_go_with_their_ratios(setup, words):
    name, make = contenders(setup, setup.config)[-1]
    with plain_loop(words, False, 4) as plain_speed:
        row = compare(setup, name, make, plain_speed)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == name
    a, b, of_bare, c, of_plain = map(float, cells[1:-1])
    assert min(a, b, c) > 0
    assert of_bare == pytest.approx(a / b, abs=0.01)
    assert of_plain == pytest.approx(a / c, abs=0.02)
    assert cells[-1] == ""  # memory is measured on GPUs


@pytest.mark.parametrize(("a_second", "steps"), [(1e9, 81), (100, 20), (2.4, 1), (0.1, 1)])
def test_a_round_has_as_many_steps_as_its_seconds_allow_and_no_more_than_an_epoch(
    a_second, steps, setup
):
    assert steps_of_a_round(a_second, epoch=81) == steps


def test_the_plain_loop_trains_the_same_network_on_the_same_photos(setup):
    _, make = contenders(setup, parse(["--models", "resnet18"], ""))[0]
    model, objective, _ = make()
    before = model.state_dict()["fc.weight"].clone()
    loop = PlainLoop(setup, model, objective)
    photos, chosen = setup.decoded.photos, setup.split.indices("train")
    files = loop.loader.dataset.files  # type: ignore[attr-defined]
    assert [path for path, _ in files] == [photos.root / photos.paths[i] for i in chosen]
    assert [photos.classes[label] for _, label in files] == [path.parent.name for path, _ in files]
    assert loop.speed(0.1) > 0
    assert not np.allclose(before, model.state_dict()["fc.weight"])
