"""Metrics: functions of all logits of a split, on the CPU in float32."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
    """Every metric of one split as plain values, ready for JSON."""
    confusion = confusion_matrix(logits, labels)
    return {
        "photos": len(labels),
        "loss": cross_entropy(logits, labels).item(),
        "accuracy": accuracy(logits, labels),
        "macro_f1": macro_f1(confusion),
        "calibration_error": calibration_error(logits, labels),
        "recall": dict(zip(classes, recalls(confusion).tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }
