"""The benchmark measures what it says it measures; how fast that is, is the machine's business."""

import pytest

from tests.faults import only_whole
from tests.photo_folders import make_photos
from utils import benchmark
from utils.benchmark import main


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
def test_each_row_has_both_speeds_and_their_ratio(words, names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "SECONDS", 0.2)
    where = ["--data", make_photos(tmp_path / "weather"), "--output", tmp_path, "--cache", tmp_path]
    main([*map(str, where), "--image-size", "32", "--batch-size", "4", *words])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[-len(names) :]]
    assert [row[0] for row in rows] == names
    for _, *numbers, memory in rows:
        real, bare, ratio = map(float, numbers)
        assert min(real, bare) > 0
        assert ratio == pytest.approx(real / bare, rel=0.03)
        assert memory == ""  # measured on GPUs
