"""Knowledge distillation losses of logits (kd, dkd, dist), of features (fitnet, attention), and of
the relations between the photos of a batch (rkd, sp).

All are zero where student and teacher agree, and average over the batch to a scalar ≥ 0 (up to
rounding: about 1e-7 · T² in float32). `student` and `teacher` are logits (N, C) or feature maps
(N, C, H, W) of the same photos; except for fitnet, maps may differ in their number of channels.
Call them with float32 or float64, outside autocast, as Distillation does: half precision would
round the small differences away.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_kl = partial(F.kl_div, reduction="batchmean", log_target=True)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(p(t, T) ‖ p(s, T)) of logits (N, C), p(z, T) = softmax(z / T), T > 0: summed over the
    classes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). T² keeps the gradient's scale,
    which falls by 1/T², beside that of the cross-entropy."""
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * _kl(log_s, log_t)


def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float
) -> Tensor:
    """T² · (TCKD + β · NCKD), decoupled distillation (Zhao et al. 2022,
    https://arxiv.org/abs/2203.08679) with the paper's α = 1. TCKD is the KL between the binary
    distributions (label, any other class), NCKD the KL between the distributions over the other
    classes. kd_loss is TCKD + (1 − p_t) · NCKD, where p_t, the teacher's probability of the label,
    suppresses NCKD exactly where the teacher is confident. Of logits (N, C) of three classes or
    more and labels (N,), one for each photo: utils/distillation.py refuses others."""
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    is_label = labels[:, None] == torch.arange(student.shape[1], device=labels.device)

    def divided(log_p: Tensor) -> tuple[Tensor, Tensor]:  # (label, any other), among the others
        others = log_p.masked_fill(is_label, torch.finfo(log_p.dtype).min)  # not -inf: 0 · inf
        rest = others.logsumexp(1, keepdim=True)
        return torch.cat([log_p.gather(1, labels[:, None]), rest], 1), F.log_softmax(others, 1)

    target, non_target = map(_kl, divided(log_s), divided(log_t))
    return temperature**2 * (target + beta * non_target)


def dist_loss(student: Tensor, teacher: Tensor, temperature: float, beta: float) -> Tensor:
    """T² · β · (inter + intra) of logits (N, C), distillation from a stronger teacher (Huang et al.
    2022, https://arxiv.org/abs/2205.10536) with one weight for both, as in the paper. inter is 1 −
    Pearson's correlation of the two distributions of a photo, intra the same of a class over the
    photos of the batch, 0 for a single one. Scale and offset of the probabilities do not matter."""
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * beta * (_disagreement(p_s, p_t) + _disagreement(p_s.T, p_t.T))


def _disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the rows of 1 − Pearson's correlation; a row counts 0 where the teacher's is
    constant, and 1, without a gradient, where only the student's is."""
    student, teacher = _deviations(student), _deviations(teacher)
    return (teacher.square() - student * teacher).sum(1).mean()


def _deviations(rows: Tensor) -> Tensor:
    """Each row minus its mean, scaled to length 1; 0 if the row varies only by rounding errors."""
    deviations = rows - rows.mean(1, keepdim=True)
    rounding = rows.detach().abs().amax(1, keepdim=True) * rows.shape[1]
    varies = deviations.abs().amax(1, keepdim=True) > rounding * torch.finfo(rows.dtype).eps
    return F.normalize(deviations * varies)


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two feature maps, the student's after its adapter (FitNets: Romero
    et al. 2015, https://arxiv.org/abs/1412.6550), trained with the rest, not in a stage before."""
    return F.mse_loss(*_same_size(student, teacher))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps: mean squares over the channels, as a vector of
    length 1 over the pixels (Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928)."""

    def attention(maps: Tensor) -> Tensor:
        return F.normalize(maps.square().mean(1).flatten(1))

    student, teacher = _same_size(student, teacher)
    return F.mse_loss(attention(student), attention(teacher))


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of one stride; the larger is averaged down if odd sides were rounded apart."""
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """25 · distance + 50 · angle, the paper's weights for classification (Park et al. 2019,
    https://arxiv.org/abs/1904.05068), on globally average-pooled maps, as the classifier reads
    them. Both are smooth L1: of the distances between all photos of the batch, divided by their
    mean, and of the cosines of the angles of all triples, 0 where two photos coincide."""

    def relations(maps: Tensor) -> tuple[Tensor, Tensor]:
        points = maps.mean((2, 3))
        differences = points[:, None] - points
        squares = differences.square().sum(2, keepdim=True)
        # Pairs that are further apart than rounding errors, and far enough to divide by in float32.
        # The others, as on the diagonal, are set to 1: a square root has no finite gradient at 0.
        rounding = squares.detach().max() * torch.finfo(squares.dtype).eps ** 2
        apart = squares > rounding.clamp(min=1e-24)
        squares = torch.where(apart, squares, 1)
        lengths, directions = squares.sqrt() * apart, differences * apart * squares.rsqrt()
        distances = lengths * (apart.sum() / lengths.sum().clamp(min=1e-12))
        return distances, directions @ directions.transpose(1, 2)

    pairs = zip(relations(student), relations(teacher), strict=True)
    distance, angle = (F.smooth_l1_loss(s, t) for s, t in pairs)
    return 25 * distance + 50 * angle


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the similarities between the photos of the batch: for each photo,
    the dot products of its flattened map with those of all photos, as a vector scaled to length 1
    (Tung and Mori 2019, https://arxiv.org/abs/1907.09682)."""

    def similarities(maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        # A photo whose map is all zero has no direction, and must not get an infinite gradient.
        return F.normalize(flat @ flat.T, eps=1e-3)

    return F.mse_loss(similarities(student), similarities(teacher))
