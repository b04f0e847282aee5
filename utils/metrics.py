"""Metrics: functions of all logits of a split, on the CPU in float32."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from config import UserError


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of photos, 0..1, whose largest logit is the label's. (N, C) floats, (N,) int64."""
    return (logits.argmax(1) == labels).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0..1: the mean over photos of |accuracy − confidence| of the
    photo's bin, of `bins` equal ones (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    which = (confidence * bins).ceil().long().clamp(1, bins)
    return (which.bincount(gap).abs().sum() / len(labels)).item()


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Every metric of one split as plain values for JSON: `confusion` has a row for each true class
    and a column for each predicted one; `macro_f1` is the mean of 2·TP / (2·TP + FP + FN) over the
    classes that have photos; `wrong` are the indices in the split, from 0, of wrongly classified
    photos. Raises UserError for logits that are not finite."""
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: train it with a smaller --lr")
    predicted, count = logits.argmax(1), len(classes)
    confusion = torch.bincount(labels * count + predicted, minlength=count**2).view(count, count)
    right, photos = confusion.diag(), confusion.sum(1)
    f1 = 2 * right / (confusion.sum(0) + photos)
    shares = zip(classes, right.tolist(), photos.tolist(), strict=True)
    return {
        "photos": len(labels),
        "loss": cross_entropy(logits, labels).item(),
        "accuracy": accuracy(logits, labels),
        "macro_f1": f1[photos > 0].double().mean().item(),
        "calibration_error": calibration_error(logits, labels),
        "recall": {name: hits / of if of else None for name, hits, of in shares},
        "confusion": confusion.tolist(),
        "wrong": torch.nonzero(predicted != labels).flatten().tolist(),
    }


def mean_interval(splits: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean over all photos and the ends of its 95 % confidence interval. `splits` has one
    (seeds, photos) array for each split or fold: 1 for a photo that was classified correctly, else
    0, or the difference of two such runs. Student's t is used: over several splits; over the seeds
    and photos of one, both as random effects (Hillis 2007, https://doi.org/10.1002/sim.2532); or
    over the photos of one run, which says nothing about other seeds. The interval is never narrower
    than that over photos alone, as a few runs may agree by chance, nor than ± 3 / photos: what
    happened to none of n photos happens to up to 3 / n of all, with 95 % confidence."""
    means = np.array([split.mean() for split in splits])
    sizes = np.array([split.shape[1] for split in splits])
    weights = sizes / sizes.sum()
    mean = float(weights @ means)
    over_photos = [s.mean(0).var(ddof=min(1, s.shape[1] - 1)) / s.shape[1] for s in splits]
    half = max(3 / sizes.sum(), student_t(math.inf) * math.sqrt(weights**2 @ over_photos))
    if len(splits) > 1:
        variance = weights**2 @ (means - mean) ** 2 * len(splits) / (len(splits) - 1)
        half = max(half, student_t(len(splits) - 1) * math.sqrt(variance))
    elif min(splits[0].shape) > 1:  # an analysis of variance
        values, (seeds, photos) = splits[0], splits[0].shape
        of_seeds, of_photos = values.mean(1), values.mean(0)
        squares = ((values - of_seeds[:, None] - of_photos + mean) ** 2).sum()
        between_seeds = photos * of_seeds.var(ddof=1)
        between_photos = seeds * of_photos.var(ddof=1)
        both = between_seeds + max(between_photos - squares / (seeds - 1) / (photos - 1), 0)
        freedom = (seeds - 1) * (both / between_seeds) ** 2 if between_seeds else math.inf
        half = max(half, student_t(freedom) * math.sqrt(both / values.size))
    return mean, mean - half, mean + half


def student_t(freedom: float) -> float:
    """The 97.5 % quantile of Student's t distribution with `freedom` ≥ 1 degrees of freedom."""
    # t is sqrt(freedom) times the tangent of an angle whose density is cos^(freedom - 1).
    freedom = min(freedom, 1000.0)
    edges = np.linspace(0, math.pi / 2, 10_001)
    share = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(0.95 * share[-1], share, edges[1:]))
