"""Metrics against sums done by hand and against plain Python that shares no code with them."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics import (
    accuracy,
    agreement,
    calibration_error,
    confusion_matrix,
    macro_f1,
    measure,
    paired_interval,
    paired_interval_over_splits,
    recalls,
)


def logits_that_predict(predicted: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float() * 9


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# Three classes, the last never predicted: truth and prediction of eight photos.
TRUTH = [0, 0, 0, 0, 1, 1, 2, 2]
PREDICTED = [0, 0, 0, 1, 1, 0, 0, 1]


def test_the_confusion_matrix_has_the_truth_in_its_rows():
    confusion = confusion_matrix(logits_that_predict(PREDICTED, 3), torch.tensor(TRUTH))
    assert confusion.tolist() == [[3, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert confusion.dtype == torch.int64


def test_accuracy_recall_and_f1_of_eight_photos():
    logits, labels = logits_that_predict(PREDICTED, 3), torch.tensor(TRUTH)
    confusion = confusion_matrix(logits, labels)
    assert accuracy(logits, labels) == 4 / 8
    assert recalls(confusion).tolist() == [0.75, 0.5, 0]
    # 2·TP / (2·TP + FP + FN): 6/9, 2/5 and, never predicted, 0.
    assert macro_f1(confusion) == pytest.approx((6 / 9 + 2 / 5 + 0) / 3, abs=1e-6)


def test_a_class_without_photos_has_no_recall_and_no_say_in_the_mean():
    confusion = torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 3]])
    assert [math.isnan(recall) for recall in recalls(confusion)] == [False, True, False]
    assert macro_f1(confusion) == pytest.approx((4 / 5 + 1) / 2, abs=1e-6)
    # A class that is neither asked for nor predicted changes nothing.
    assert macro_f1(torch.tensor([[2, 0, 1], [0, 0, 0], [1, 0, 3]])) == pytest.approx(
        macro_f1(torch.tensor([[2, 1], [1, 3]]))
    )


SPLITS = st.integers(2, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(
                # Eighths: in softmax, equal stays equal and unequal stays unequal.
                st.lists(
                    st.integers(-60, 60).map(lambda n: n / 8), min_size=classes, max_size=classes
                ),
                st.integers(0, classes - 1),
            ),
            min_size=1,
            max_size=30,
        ),
    )
)


@settings(max_examples=50)
@given(SPLITS)
def test_counts_agree_with_plain_python(drawn):
    classes, photos = drawn
    logits = torch.tensor([row for row, _ in photos])
    labels = torch.tensor([label for _, label in photos])
    pairs = [(label, row.index(max(row))) for row, label in photos]
    confusion = confusion_matrix(logits, labels)
    assert confusion.tolist() == [
        [pairs.count((t, p)) for p in range(classes)] for t in range(classes)
    ]
    assert accuracy(logits, labels) == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    f1 = []
    for name in {truth for truth, _ in pairs}:
        hits = pairs.count((name, name))
        found = sum(predicted == name for _, predicted in pairs)
        there = sum(truth == name for truth, _ in pairs)
        assert recalls(confusion)[name].item() == pytest.approx(hits / there, abs=1e-6)
        precision, recall = (hits / found if found else 0), hits / there
        f1.append(2 * precision * recall / (precision + recall) if hits else 0)
    assert macro_f1(confusion) == pytest.approx(sum(f1) / len(f1), abs=1e-6)


@settings(max_examples=50)
@given(SPLITS, st.integers(1, 20))
def test_calibration_error_agrees_with_plain_python(drawn, bins):
    _, photos = drawn
    found: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in photos:
        exponentials = [math.exp(value - max(row)) for value in row]
        confidence = 1 / sum(exponentials)
        edges = [edge / bins for edge in range(1, bins)]
        if any(abs(confidence - edge) < 1e-9 for edge in edges):
            return  # rounding decides on which side of an edge it falls
        which = sum(confidence > edge for edge in edges)
        found[which].append((confidence, row.index(max(row)) == label))
    expected = sum(
        len(inside)
        / len(photos)
        * abs(sum(hit for _, hit in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
        for inside in found
        if inside
    )
    logits = torch.tensor([row for row, _ in photos], dtype=torch.float64)
    labels = torch.tensor([label for _, label in photos])
    assert calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-9)


def test_confidence_that_keeps_its_word_has_no_calibration_error():
    # 60 % sure and right in three of five, 90 % sure and right in nine of ten.
    logits = logits_of([[0.6, 0.4]] * 5 + [[0.1, 0.9]] * 10)
    labels = torch.tensor([0] * 3 + [1] * 2 + [1] * 9 + [0])
    assert calibration_error(logits, labels) == pytest.approx(0, abs=1e-9)


def test_being_sure_and_wrong_costs_the_difference():
    logits, labels = logits_of([[0.98, 0.02]] * 4), torch.tensor([0, 0, 1, 1])
    assert calibration_error(logits, labels) == pytest.approx(0.48)
    # Being right more often than one says is an error of the same size.
    assert calibration_error(logits_of([[0.52, 0.48]] * 4), labels * 0) == pytest.approx(0.48)


def test_errors_of_different_bins_do_not_cancel_and_in_one_bin_they_do():
    logits = logits_of([[0.7, 0.3]] * 2 + [[0.9, 0.1]] * 2)
    labels = torch.tensor([0, 0, 0, 1])  # 0.3 too little, 0.4 too much
    assert calibration_error(logits, labels) == pytest.approx((0.3 + 0.4) / 2)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(0.05)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # One half is exact: with two bins it shares the lower one with nothing above it.
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])  # right at 0.5, wrong at 0.88
    surer = 1 / (1 + math.exp(-2))
    assert calibration_error(logits, labels, bins=2) == pytest.approx((0.5 + surer) / 2)
    # Certainty lies in the last bin, not beyond it.
    assert calibration_error(torch.tensor([[0.0, 999.0]]), torch.tensor([0])) == 1


def test_measure_names_the_recalls_and_survives_json():
    logits, labels = logits_that_predict(PREDICTED, 3), torch.tensor(TRUTH)
    measured = measure(logits, labels, ("fog", "hail", "rain"))
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["photos"] == 8
    assert measured["accuracy"] == 0.5
    assert measured["recall"] == {"fog": 0.75, "hail": 0.5, "rain": 0}
    assert measured["confusion"] == [[3, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert measured["wrong"] == [i for i in range(8) if TRUTH[i] != PREDICTED[i]]
    assert measured["macro_f1"] == pytest.approx((6 / 9 + 2 / 5) / 3, abs=1e-6)
    right, wrong = math.log(1 + 2 * math.exp(-9)), math.log(math.exp(9) + 2)
    assert measured["loss"] == pytest.approx((4 * right + 4 * wrong) / 8, abs=1e-5)
    sure = 1 / (1 + 2 * math.exp(-9))
    assert measured["calibration_error"] == pytest.approx(sure - 0.5, abs=1e-6)


def test_class_names_that_do_not_fit_the_logits_are_noticed():
    with pytest.raises(ValueError, match="zip"):
        measure(torch.zeros(2, 3), torch.tensor([0, 1]), ("fog", "hail"))


def test_agreement_is_the_share_of_equal_answers_and_the_mean_divergence():
    student = logits_of([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3]])
    teacher = logits_of([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    found = agreement(student.float() + 3, teacher.float())  # a constant changes nothing
    assert found["top1"] == pytest.approx(2 / 3)
    pairs = zip(teacher.exp().tolist(), student.exp().tolist(), strict=True)
    divergence = [sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in pairs]
    assert found["kl"] == pytest.approx(sum(divergence) / 3, rel=1e-5)
    assert agreement(teacher, teacher) == {"top1": 1.0, "kl": 0.0}


def recognised(seeds: int, photos: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, photos)) < share


def test_the_interval_of_one_seed_is_that_of_a_mean_over_photos():
    first, second = recognised(1, 400, 0.8, 1), recognised(1, 400, 0.7, 2)
    difference = first[0].astype(float) - second[0]
    half = 1.96 * difference.std() / math.sqrt(400)
    low, high = paired_interval(first, second)
    assert low == pytest.approx(difference.mean() - half, abs=0.005)
    assert high == pytest.approx(difference.mean() + half, abs=0.005)


def test_the_interval_is_paired_photo_by_photo_and_seed_by_seed():
    first = recognised(3, 200, 0.5, 1)
    assert paired_interval(first, first) == (0, 0)  # no spread where all is the same
    low, high = paired_interval(first, recognised(3, 200, 0.5, 2))
    assert low < -0.02
    assert high > 0.02
    second = recognised(3, 200, 0.6, 3)
    there, back = paired_interval(first, second), paired_interval(second, first)
    assert there == pytest.approx((-back[1], -back[0]), abs=0.004)


def test_the_interval_holds_what_other_seeds_would_change():
    """Each seed gains on all photos or loses on all: photos alone would show no doubt at all."""
    first = np.array([[True] * 50, [True] * 50, [False] * 50])
    second = np.array([[False] * 50, [False] * 50, [True] * 50])
    assert paired_interval(first, second) == pytest.approx((-1, 1))
    # Three seeds drawn out of three: the mean is that of a multinomial draw.
    sure = np.array([[True] * 50, [False] * 50, [False] * 50])
    low, high = paired_interval(sure, np.zeros((3, 50), bool))
    assert low == 0
    assert high == pytest.approx(1)


def test_the_interval_agrees_with_a_bootstrap_written_out():
    first, second = recognised(3, 40, 0.8, 5), recognised(3, 40, 0.65, 6)
    difference = first.astype(float) - second
    draw = np.random.default_rng(9)
    means = sorted(
        difference[np.ix_(draw.integers(0, 3, 3), draw.integers(0, 40, 40))].mean()
        for _ in range(4000)
    )
    low, high = paired_interval(first, second)
    assert low == pytest.approx(means[100], abs=0.012)
    assert high == pytest.approx(means[3899], abs=0.012)
    assert paired_interval(first, second) == (low, high)  # the same draws each time


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (3, 0.01), (5, 0.0), (5, 0.01)])
def test_the_interval_holds_the_true_gain_in_95_of_100_experiments(seeds, seed_spread):
    """Photos differ in how likely either run is to recognise them, seeds in how good they are."""
    draw, photos, gain, held = np.random.default_rng(0), 371, 0.02, 0
    for _ in range(200):
        chance = draw.beta(2, 0.7, photos) * 0.96 + 0.02
        first, second = (
            draw.random((seeds, photos)) < chance + extra + draw.normal(0, seed_spread, (seeds, 1))
            for extra in (gain / 2, -gain / 2)
        )
        low, high = paired_interval(first, second, draws=1000)
        held += low <= gain <= high
    assert held >= 0.92 * 200


def test_the_interval_over_one_split_is_that_of_its_seeds_and_photos():
    first, second = recognised(3, 400, 0.8, 1), recognised(3, 400, 0.7, 2)
    found = paired_interval_over_splits([first], [second])
    assert found == pytest.approx(paired_interval(first, second), abs=0.004)


def test_the_interval_over_splits_agrees_with_a_bootstrap_written_out():
    """Splits have other photos, not as many, and not as many seeds."""
    shapes = ((1, 40), (3, 30), (2, 50))
    first = [recognised(*shape, 0.8 - 0.05 * k, k) for k, shape in enumerate(shapes)]
    second = [recognised(*shape, 0.6, 9 + k) for k, shape in enumerate(shapes)]
    differences = [a.astype(float) - b for a, b in zip(first, second, strict=True)]
    draw, means = np.random.default_rng(9), []
    for _ in range(4000):
        drawn = [differences[k] for k in draw.integers(0, 3, 3)]
        places = [[draw.integers(0, n, n) for n in difference.shape] for difference in drawn]
        means.append(np.mean([d[np.ix_(*p)].mean() for d, p in zip(drawn, places, strict=True)]))
    means.sort()
    low, high = paired_interval_over_splits(first, second)
    assert low == pytest.approx(means[100], abs=0.012)
    assert high == pytest.approx(means[3899], abs=0.012)
    assert paired_interval_over_splits(first, second) == (low, high)  # the same draws each time


def test_the_interval_over_splits_holds_what_other_splits_would_change():
    """Each split gains on all photos or loses on all: photos alone would show no doubt at all."""
    sure, none = np.ones((1, 50), bool), np.zeros((1, 50), bool)
    found = paired_interval_over_splits([sure, sure, none], [none, none, sure])
    assert found == pytest.approx((-1, 1))


@pytest.mark.parametrize("split_spread", [0.0, 0.01])
def test_the_interval_over_splits_holds_the_true_gain_in_95_of_100_experiments(split_spread):
    """Every split has photos of its own, and runs whose gain is its own."""
    draw, photos, gain, held = np.random.default_rng(0), 371, 0.02, 0
    for _ in range(200):
        chance = draw.beta(2, 0.7, (7, 1, photos)) * 0.96 + 0.02
        first, second = (
            draw.random((7, 1, photos)) < chance + extra + draw.normal(0, split_spread, (7, 1, 1))
            for extra in (gain / 2, -gain / 2)
        )
        low, high = paired_interval_over_splits(list(first), list(second), draws=1000)
        held += low <= gain <= high
    assert held >= 0.92 * 200
