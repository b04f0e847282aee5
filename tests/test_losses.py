"""Distillation losses against formulas written out in numpy, and what those formulas promise."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from utils import losses

Loss = Callable[[Tensor, Tensor], Tensor]
LABELS = torch.tensor([2, 0, 1, 4, 3, 0])
T = 4.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    soft = logits / T - (logits / T).max(1, keepdims=True)
    return soft - np.log(np.exp(soft).sum(1, keepdims=True))


def kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def kd(s: np.ndarray, t: np.ndarray) -> float:
    return T**2 * kl(log_softmax(t), log_softmax(s)) / len(s)


def dkd(s: np.ndarray, t: np.ndarray) -> float:
    total = 0.0
    for p, q, label in zip(log_softmax(t), log_softmax(s), LABELS.tolist(), strict=True):
        others_p, others_q = np.delete(p, label), np.delete(q, label)
        rest_p, rest_q = (np.log(np.exp(others).sum()) for others in (others_p, others_q))
        total += kl(np.array([p[label], rest_p]), np.array([q[label], rest_q]))
        total += 8 * kl(others_p - rest_p, others_q - rest_q)
    return T**2 * total / len(s)


def dist(s: np.ndarray, t: np.ndarray) -> float:
    p, q = np.exp(log_softmax(s)), np.exp(log_softmax(t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return float(T**2 * 2 * (inter + intra))


def pooled(maps: np.ndarray, side: int) -> np.ndarray:
    """Means over windows that cover the map: from 10 pixels to 9, windows of 2 that overlap."""
    old = maps.shape[2]
    windows = [slice(i * old // side, -(-(i + 1) * old // side)) for i in range(side)]
    rows = np.stack([maps[:, :, window].mean(2) for window in windows], 2)
    return np.stack([rows[:, :, :, window].mean(3) for window in windows], 3)


def same_size(s: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
    return [pooled(maps, min(s.shape[2], t.shape[2])) for maps in (s, t)]


def squared_difference(s: np.ndarray, t: np.ndarray) -> float:
    return float(np.square(s - t).mean())


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    return np.array([row / math.hypot(*row) for row in matrix])


def fitnet(s: np.ndarray, t: np.ndarray) -> float:
    return squared_difference(*same_size(s, t))


def attention(s: np.ndarray, t: np.ndarray) -> float:
    energies = [np.square(maps).mean(1).reshape(len(maps), -1) for maps in same_size(s, t)]
    return squared_difference(*map(unit_rows, energies))


def sp(s: np.ndarray, t: np.ndarray) -> float:
    products = [np.array([[(a * b).sum() for b in maps] for a in maps]) for maps in (s, t)]
    return squared_difference(*map(unit_rows, products))


def huber(differences: np.ndarray) -> float:
    size = np.abs(differences)
    return float(np.where(size < 1, size**2 / 2, size - 0.5).mean())


def distances(points: np.ndarray) -> np.ndarray:
    apart = np.array([[math.dist(a, b) for b in points] for a in points])
    return apart / apart[apart > 0].mean()


def cosines(points: np.ndarray) -> np.ndarray:
    values = []
    for i, j, k in itertools.product(range(len(points)), repeat=3):
        a, b = points[j] - points[i], points[k] - points[i]
        lengths = math.hypot(*a) * math.hypot(*b)
        values.append(a @ b / lengths if lengths else 0.0)
    return np.array(values)


def rkd(s: np.ndarray, t: np.ndarray) -> float:
    s, t = s.mean((2, 3)), t.mean((2, 3))
    return 25 * huber(distances(s) - distances(t)) + 50 * huber(cosines(s) - cosines(t))


# Losses, their formulas, and the shapes that they compare: six photos, with different widths and
# sides for teacher and student where the loss allows it.
LOSSES: dict[str, Any] = {
    "kd": (partial(losses.kd_loss, temperature=T), kd, [(6, 5), (6, 5)]),
    "dkd": (partial(losses.dkd_loss, labels=LABELS, temperature=T, beta=8), dkd, [(6, 5), (6, 5)]),
    "dist": (partial(losses.dist_loss, temperature=T, beta=2), dist, [(6, 5), (6, 5)]),
    "fitnet": (losses.fitnet_loss, fitnet, [(6, 4, 10, 10), (6, 4, 9, 9)]),
    "attention": (losses.attention_loss, attention, [(6, 4, 4, 4), (6, 7, 5, 5)]),
    "rkd": (losses.rkd_loss, rkd, [(6, 4, 3, 3), (6, 7, 3, 3)]),
    "sp": (losses.sp_loss, sp, [(6, 4, 3, 3), (6, 7, 2, 2)]),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def example(name: str, seed: int = 0) -> tuple[Loss, Tensor, Tensor]:
    loss, _, (student, teacher) = LOSSES[name]
    return loss, draw(*student, seed=2 * seed), draw(*teacher, seed=2 * seed + 1)


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


@each_loss
@settings(max_examples=15)
@given(st.integers(0, 999), st.sampled_from([0.1, 1.0, 3.0]))
def test_a_loss_is_its_formula(name, seed, scale):
    loss, student, teacher = example(name, seed)
    student[1] *= 9  # far from all others, beyond the square part of Huber's loss
    student[4] = student[5]  # two photos that the student cannot tell apart
    student, teacher = scale * student, scale * teacher
    expected = LOSSES[name][1](student.numpy(), teacher.numpy())
    assert expected > 0
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-7)


@each_loss
def test_gradients_are_those_of_finite_differences(name):
    loss, student, teacher = example(name)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


def test_dist_is_zero_where_the_teacher_ranks_nothing():
    dist_loss, equal = partial(losses.dist_loss, temperature=1, beta=1), torch.zeros(6, 5).double()
    assert dist_loss(draw(6, 5), equal) == 0
    assert dist_loss(equal, draw(6, 5)).item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "largest", "change"),
    [
        ("dist", 1000, lambda logits: torch.full_like(logits, 0.3)),
        ("dist", 1000, lambda logits: logits[:1].repeat(6, 1)),
        ("dist", 1000, lambda logits: logits[:1]),
        ("attention", 1000, lambda maps: maps.index_fill(0, torch.tensor(2), 0)),
        ("sp", 1000, lambda maps: maps.index_fill(0, torch.tensor(2), 0)),
        ("rkd", 1000, lambda maps: maps[[0, 1, 2, 3, 4, 4]] + 1e-7 * maps),  # a rounding error
        ("rkd", math.inf, lambda maps: maps[[0, 0, 0, 1, 1, 1]]),
        *(("rkd", math.inf, lambda maps, by=by: maps * by) for by in (1e-10, 1e-14, 1e-20, 0)),
        ("rkd", math.inf, lambda maps: maps[:1]),
    ],
)
def test_gradients_magnify_neither_zeros_nor_rounding_errors(name, largest, change):
    loss, student, teacher = example(name)
    student = change(student.float())
    teacher = teacher[: len(student)].float()
    assert gradient(loss, student, teacher).abs().max() < largest
    assert gradient(loss, teacher, student).isfinite().all()
    assert loss(student, student) == 0
