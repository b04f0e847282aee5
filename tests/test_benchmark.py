"""The benchmark measures what it says it measures; how fast that is, is the machine's business."""

import re
from pathlib import Path

import numpy as np
import pytest

from config import parse
from tests.photo_folders import make_photos
from utils import benchmark
from utils.benchmark import (
    PlainLoop,
    compare,
    contenders,
    decoding,
    first_step,
    main,
    plain_loop,
)
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
    monkeypatch.setattr(benchmark, "STEPS", {"cpu": 2})
    return prepare(parse(words, ""))


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
    with plain_loop(words, False, 4, steps=2) as plain_speed:
        row = compare(setup, name, make, plain_speed)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == name
    a, b, of_bare, c, of_plain, _ = (float(cell.removesuffix(" MB")) for cell in cells[1:])
    assert min(a, b, c) > 0
    assert of_bare == pytest.approx(a / b, abs=0.01)
    assert of_plain == pytest.approx(a / c, abs=0.02)


def test_the_plain_loop_trains_the_same_network_on_the_same_photos(setup):
    _, make = contenders(setup, parse(["--models", "resnet18"], ""))[0]
    model, objective, _ = make()
    before = model.state_dict()["fc.weight"].clone()
    (setup.decoded.photos.root / ".hidden").mkdir()  # it would be the first class
    loop = PlainLoop(setup, model, objective)
    rows = setup.split.indices("train")
    expected = [setup.decoded.photos.paths[i] for i in rows]
    root = setup.decoded.photos.root
    (root / ".hidden").rmdir()
    samples = loop.loader.dataset.samples  # type: ignore[attr-defined]
    assert sorted(Path(path).relative_to(root).as_posix() for path, _ in samples) == sorted(
        expected
    )
    of_path = dict(zip(expected, setup.decoded.photos.labels[rows], strict=True))
    assert all(of_path[Path(path).relative_to(root).as_posix()] == label for path, label in samples)
    assert loop.speed(2) > 0
    assert not np.allclose(before, model.state_dict()["fc.weight"])


def test_the_first_step_is_that_of_a_whole_command(words, monkeypatch, capsys):
    main([*words, "--models", "resnet18", "--first-step"])
    assert capsys.readouterr().out == ""
    # At 24 px DenseNet169, which no one asked for, would fail.
    own = ["--distil", "--teacher", "resnet18", "--student", "resnet18", "--image-size", "24"]
    main([*words, *own, "--first-step"])
    monkeypatch.setattr(benchmark, "STARTS", 1)
    told = first_step([*words, "--models", "resnet18"])
    cold, warm = map(float, re.findall(r"(\d+\.\d) s", told))
    assert min(cold, warm) > 0.5  # importing torch alone takes longer


def test_decoding_is_told_beside_pillows(setup):
    ours, plain, ratio = map(float, re.findall(r"\d+(?:\.\d+)?", decoding(setup)))
    assert ratio == pytest.approx(ours / plain, rel=0.05)
