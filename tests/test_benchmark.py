"""The benchmark measures what it says it measures; how fast that is, is the machine's business."""

import pytest

from tests.photo_folders import make_photos, training
from utils import benchmark


def test_its_row_has_both_speeds_and_their_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "SECONDS", 0.2)
    words = training(make_photos(tmp_path / "weather"), tmp_path, "--batch-size", 4)
    benchmark.main([*words, "--models", "resnet18"])
    (row,) = capsys.readouterr().out.partition("|---|---:|---:|---:|\n")[2].splitlines()
    title, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
    assert title == "resnet18, 32 px"
    real, bare, ratio = map(float, numbers)
    assert min(real, bare) > 0
    assert ratio == pytest.approx(real / bare, rel=0.03)
