"""Metrics: functions of all logits of a split, on the CPU in float32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of photos, 0..1, whose largest logit is the label's. (N, C) floats, (N,) int64."""
    return (logits.argmax(1) == labels).double().mean().item()


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """(C, C) int64 counts: row the true class, column the predicted one."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def recalls(confusion: Tensor) -> Tensor:
    """(C,) share of each class's photos that were recognised; nan for a class without photos."""
    return confusion.diag() / confusion.sum(1)


def macro_f1(confusion: Tensor) -> float:
    """Mean over the classes that have photos of 2·TP / (2·TP + FP + FN), 0..1.

    A class that is never predicted counts as 0: it was asked for and not found.
    """
    hits = confusion.diag()
    f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1))
    return f1[confusion.sum(1) > 0].double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0..1, of the top class over `bins` equal bins of confidence.

    The mean over photos of |accuracy − confidence| of the photo's bin (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599); empty bins count nothing.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, gap)
    return (sums.abs().sum() / len(labels)).item()


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Every metric of one split as plain values, ready for JSON.

    `wrong` are the places in the split, from 0, of the photos that were taken for another class:
    with them two runs can be compared photo by photo.
    """
    confusion = confusion_matrix(logits, labels)
    return {
        "photos": len(labels),
        "loss": cross_entropy(logits, labels).item(),
        "accuracy": accuracy(logits, labels),
        "macro_f1": macro_f1(confusion),
        "calibration_error": calibration_error(logits, labels),
        "recall": dict(zip(classes, recalls(confusion).tolist(), strict=True)),
        "confusion": confusion.tolist(),
        "wrong": torch.nonzero(logits.argmax(1) != labels).flatten().tolist(),
    }


def agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How far two models answer alike, from their (N, C) logits for the same photos.

    `top1` is the share, 0..1, of photos that both give the same class, and `kl` the mean over the
    photos of KL(teacher ‖ student) in nats.
    """
    log_s, log_t = student.double().log_softmax(1), teacher.double().log_softmax(1)
    return {
        "top1": (student.argmax(1) == teacher.argmax(1)).double().mean().item(),
        "kl": kl_div(log_s, log_t, reduction="batchmean", log_target=True).item(),
    }


def paired_interval(
    first: np.ndarray, second: np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of mean(first − second), bootstrapped over seeds and photos alike.

    `first` and `second` are (seeds, photos) bools, which photos were recognised, of runs that
    share each row's seed and each column's photo. A draw takes as many seeds and as many photos,
    with replacement, so the interval holds what other seeds and what other photos would change;
    with a single seed it says nothing about seeds.
    """
    return middle_95(drawn_means(first, second, draws, np.random.default_rng(seed)))


def paired_interval_over_splits(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the mean over splits of mean(first − second), bootstrapped over splits
    and, within each that is drawn, over its seeds and its test photos.

    `first` and `second` have one (seeds, photos) bool array for each split, as for
    `paired_interval`. Of a split that is drawn twice, seeds and photos are drawn anew.
    """
    random, splits = np.random.default_rng(seed), len(first)
    means = [
        drawn_means(mine, other, draws * splits, random).reshape(draws, splits)
        for mine, other in zip(first, second, strict=True)
    ]
    which = random.integers(0, splits, (1, draws, splits))
    return middle_95(np.take_along_axis(np.stack(means), which, 0).mean((0, 2)))


def drawn_means(
    first: np.ndarray, second: np.ndarray, draws: int, random: np.random.Generator
) -> np.ndarray:
    """(draws,) means of first − second over as many seeds and photos, drawn with replacement."""
    difference = first.astype(float) - second.astype(float)
    seeds, photos = difference.shape
    # Photos that fared alike are drawn together, which changes nothing but the time it takes.
    kinds, counts = np.unique(difference, axis=1, return_counts=True)
    by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    by_kind = random.multinomial(photos, counts / photos, draws) / photos
    return np.asarray((by_seed * (by_kind @ kinds.T)).sum(1))


def middle_95(means: np.ndarray) -> tuple[float, float]:
    """The ends of what holds 95 % of the means and leaves as many on either side."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
