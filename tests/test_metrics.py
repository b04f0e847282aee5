"""Metrics against sums done by hand and formulas written out."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from config import UserError
from utils import metrics
from utils.metrics import mean_interval, measure, student_t


def test_the_metrics_of_eight_photos():
    """Rain is never predicted; snow is, of which there is no photo. The first two are not sure."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    scales = torch.tensor([1, 1, 9, 9, 9, 9, 9, 9])[:, None]
    logits = scales * torch.eye(4)[[0, 0, 0, 1, 1, 0, 0, 3]]
    measured = measure(logits, labels, ("fog", "hail", "rain", "snow"))
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    unsure, sure = (math.exp(scale) / (math.exp(scale) + 3) for scale in (1, 9))
    right, wrong = -math.log(sure), 9 - math.log(sure)
    over, under = (6 * sure - 2) / 8, (2 - 2 * unsure) / 8  # confident
    assert measured == {
        "photos": 8, "accuracy": 0.5, "wrong": [3, 5, 6, 7],
        "recall": {"fog": 0.75, "hail": 0.5, "rain": 0, "snow": None},
        "confusion": [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0] * 4],  # the truth in the rows
        # 2·TP / (2·TP + FP + FN) of the three classes that have photos.
        "macro_f1": pytest.approx((6 / 9 + 2 / 4 + 0) / 3, abs=1e-6),
        "loss": pytest.approx((2 * right + 4 * wrong - 2 * math.log(unsure)) / 8, abs=1e-5),
        "calibration_error": pytest.approx(over + under, abs=1e-6),
    }  # fmt: skip
    assert metrics.calibration_error(logits, labels, bins=1) == pytest.approx(over - under)
    for odd in (math.nan, math.inf):
        with pytest.raises(UserError, match="are not finite"):
            measure(torch.tensor([[0.0, 1.0], [odd, 0.0]]), torch.tensor([0, 1]), ("fog", "hail"))


def test_students_t_is_that_of_the_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 9: 2.262, 30: 2.042, 1e9: 1.962}
    assert {freedom: student_t(freedom) for freedom in table} == pytest.approx(table, abs=0.001)


def differences(seeds: int, photos: int, seed: int) -> np.ndarray:
    """Two runs per seed: 1 where only the first is right, -1 where only the second is, else 0."""
    return np.random.default_rng(seed).choice([-1.0, 0, 1], (seeds, photos), p=[0.1, 0.7, 0.2])


def around(mean: float, *halves: float) -> Any:
    """An interval around the mean, whose half-width is the largest of these, to four digits."""
    return pytest.approx((mean, mean - max(halves), mean + max(halves)), abs=1e-4)


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_over_folds_the_interval_is_students_t_but_never_narrower_than_over_photos(scatter):
    values = [np.roll(differences(1, 40, 0), k) + scatter * (k - 2) for k in range(5)]
    means = [fold.mean() for fold in values]
    over_folds = student_t(4) * np.std(means, ddof=1) / math.sqrt(5)
    over_photos = 1.962 * math.sqrt(sum(fold.var(ddof=1) / 40 for fold in values)) / 5
    assert (over_folds > over_photos) == (scatter > 0)
    assert mean_interval(values) == around(np.mean(means), over_folds, over_photos)
    # Folds of other sizes: the mean is over all photos, and seeds of a fold are averaged.
    unequal = [differences(2, size, size) for size in (30, 40, 50)]
    assert mean_interval(unequal)[0] == pytest.approx(np.concatenate(unequal, 1).mean())


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_over_seeds_and_photos_the_interval_matches_an_analysis_of_variance(shift):
    values = differences(3, 40, 5) + shift * np.array([[0.0], [1.0], [0.3]])
    mean, of_seed, of_photo = values.mean(), values.mean(1), values.mean(0)
    cells = [(s, i) for s in range(3) for i in range(40)]
    rest = sum((values[s, i] - of_seed[s] - of_photo[i] + mean) ** 2 for s, i in cells) / (2 * 39)
    seeds, photos = 40 * of_seed.var(ddof=1), 3 * of_photo.var(ddof=1)
    both = seeds + max(photos - rest, 0)
    half = student_t(2 * both**2 / seeds**2) * math.sqrt(both / 120)
    over_photos = student_t(1e9) * math.sqrt(photos / 120)
    assert (half > over_photos) == (shift > 0)
    assert mean_interval([values]) == around(mean, half, over_photos)
    of_one = 1.962 * values[0].std(ddof=1) / math.sqrt(40)
    assert mean_interval([values[:1]]) == around(values[0].mean(), of_one)
    assert mean_interval([np.zeros((3, 40))]) == (0, -0.075, 0.075)  # by the rule of three
    assert mean_interval([np.ones((2, 1))] * 3) == (1, 0, 2)


@pytest.mark.parametrize("scatter", [0, 2, 4])
@pytest.mark.parametrize(("splits", "seeds"), [(10, 1), (10, 3), (3, 1), (1, 2), (1, 5)])
def test_the_interval_holds_the_true_gain_in_95_of_100_experiments(splits, seeds, scatter):
    """Photos differ in how likely they are to be recognised, and runs by `scatter` points."""
    draw, photos, gain, held = np.random.default_rng(splits), 371, 0.02, 0
    for _ in range(300):
        chance = draw.beta(2, 0.7, (splits, 1, photos)) * 0.9 + 0.05
        first, second = (
            draw.random((splits, seeds, photos))
            < chance + extra + draw.normal(0, scatter / 100, (splits, seeds, 1))
            for extra in (gain / 2, -gain / 2)
        )
        _, low, high = mean_interval(list(first.astype(float) - second))
        held += low <= gain <= high
    assert held >= 0.93 * 300


def learned(draw, points, labels, width):
    """A classifier that differs from draw to draw: least squares on random features."""
    layer = draw.normal(size=(points.shape[1], width))
    weights = np.linalg.lstsq(np.tanh(points @ layer), np.eye(4)[labels], rcond=None)[0]
    return lambda points: (np.tanh(points @ layer) @ weights).argmax(1)


def test_the_interval_holds_though_the_training_sets_of_folds_overlap():
    draw, found = np.random.default_rng(0), []
    centres = 2 * draw.normal(size=(4, 3, 6))
    for _ in range(150):
        labels, part, folds = draw.integers(4, size=500), draw.permutation(500) % 10, []
        points = centres[labels, draw.integers(3, size=500)] + draw.normal(size=(500, 6))
        for fold in range(10):
            test, train = part == fold, (part - fold) % 10 > 2
            both = (learned(draw, points[train], labels[train], width) for width in (40, 20))
            first, second = (1.0 * (one(points[test]) == labels[test]) for one in both)
            folds.append((first - second)[None])
        found.append(mean_interval(folds))
    gain, low, high = np.array(found).T
    assert np.mean((low <= gain.mean()) & (gain.mean() <= high)) >= 0.93
