"""The benchmark measures what it says it measures; how fast that is, is the machine's business."""

import pytest
import torch

from config import Config
from tests.faults import only_whole
from tests.photo_folders import make_photos
from utils import benchmark
from utils.benchmark import main, plain_round, plain_training


@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(["--models", "resnet18"], ["resnet18, 32 px"], marks=only_whole),
        (
            ["--distil", "--experiment", "experiment_1", "--method", "fitnet", "--seeds", "1", "2"],
            ["densenet169 teaches resnet18, fitnet, 32 px"],
        ),
    ],
)
def test_each_row_has_three_speeds_and_their_ratios(words, names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "SECONDS", 0.2)
    where = ["--data", make_photos(tmp_path / "weather"), "--output", tmp_path, "--cache", tmp_path]
    main([*map(str, where), "--image-size", "32", "--batch-size", "4", *words])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[-len(names) :]]
    assert [row[0] for row in rows] == names
    for _, *numbers, memory in rows:
        a, b, of_bare, c, of_plain = map(float, numbers)
        assert min(a, b, c) > 0
        assert of_bare == pytest.approx(a / b, abs=0.01)
        assert of_plain == pytest.approx(a / c, rel=0.02, abs=0.02)
        assert memory == ""  # measured on GPUs


def test_the_plain_loop_trains_the_network_on_the_photos(tmp_path):
    folder = make_photos(tmp_path / "weather", per_class=4)
    files = tuple((path, number % 4) for number, path in enumerate(sorted(folder.rglob("*.jpg"))))
    settings = Config(image_size=32, batch_size=4), files, 4, torch.device("cpu")
    loader, model, _, _ = plain_training(*settings)
    before = model.fc.weight.detach().clone()
    assert sorted(torch.cat([labels for _, labels in loader]).tolist()) == sorted([0, 1, 2, 3] * 4)
    assert plain_round(0.1, *settings) > 0
    assert not torch.equal(model.fc.weight, before)
