"""Knowledge distillation losses: how far a student is from its teacher, as functions of tensors.

Three families: of the logits (kd, dkd, dist), of features (fitnet, attention), and of the relations
between the photos of a batch (rkd, sp). All are zero where student and teacher agree, average over
the batch to a scalar ≥ 0, and compute in float32, also under autocast (in float64 where they are
given it). `student` and `teacher` are logits (N, C), embeddings (N, D) or maps (N, C, H, W) of the
same photos; the teacher's may have another number of channels.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    kl_div,
    log_softmax,
    mse_loss,
    normalize,
    smooth_l1_loss,
)


def _full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a loss of tensors compute in float32 at least, whatever autocast is around it."""

    @functools.wraps(loss)
    def widened(student: Tensor, teacher: Tensor, *others: object, **settings: object) -> Tensor:
        student, teacher = (
            x if x.dtype == torch.float64 else x.float() for x in (student, teacher)
        )
        with torch.autocast(student.device.type, enabled=False):
            return loss(student, teacher, *others, **settings)

    return widened


@_full_precision
def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(p(t, T) ‖ p(s, T)) of logits (N, C), p(z, T) = softmax(z / T), T > 0: summed over the
    classes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    T² keeps the gradient's scale, which falls by 1/T², beside that of the cross-entropy.
    """
    log_s, log_t = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    return temperature**2 * kl_div(log_s, log_t, reduction="batchmean", log_target=True)


@_full_precision
def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float
) -> Tensor:
    """T² · (TCKD + β · NCKD), decoupled distillation (Zhao et al. 2022,
    https://arxiv.org/abs/2203.08679) with the paper's α = 1.

    TCKD is the KL between the binary distributions (label, any other class), NCKD the KL between
    the distributions over the other classes. kd_loss is TCKD + (1 − p_t) · NCKD, where p_t, the
    teacher's probability of the label, suppresses NCKD exactly where the teacher is confident.

    Of logits (N, C) and labels (N,); ValueError for mixed labels, and for two classes, which leave
    nothing for NCKD.
    """
    classes = student.shape[1]
    if labels.ndim != 1:
        raise ValueError("dkd needs one class for each photo, not a mixture")
    if classes < 3:
        raise ValueError("dkd needs three classes or more")
    log_s, log_t = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    # All class numbers but the label's, by arithmetic: a mask would have to be counted on the host.
    others = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None]).long()

    def label_or_not(log_p: Tensor) -> Tensor:
        rest = log_p.gather(1, others).logsumexp(1)
        return torch.stack([log_p.gather(1, labels[:, None])[:, 0], rest], 1)

    def among_others(log_p: Tensor) -> Tensor:
        return log_softmax(log_p.gather(1, others), 1)

    target, non_target = (
        kl_div(of(log_s), of(log_t), reduction="batchmean", log_target=True)
        for of in (label_or_not, among_others)
    )
    return temperature**2 * (target + beta * non_target)


@_full_precision
def dist_loss(student: Tensor, teacher: Tensor, temperature: float, beta: float) -> Tensor:
    """T² · β · (inter + intra) of logits (N, C), distillation from a stronger teacher (Huang et al.
    2022, https://arxiv.org/abs/2205.10536) with one weight for both, as in the paper.

    inter is 1 − Pearson's correlation of the two distributions of a photo, intra the same of a
    class over the photos of the batch: the student has to rank as the teacher does, not to be as
    confident. Where the teacher ranks nothing, 1 − correlation counts as 0: in a batch of one
    photo, intra is 0.
    """
    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * beta * (_disagreement(p_s, p_t) + _disagreement(p_s.T, p_t.T))


def _disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the rows of 1 − Pearson's correlation; a row counts 0 where the teacher's is
    constant, and 1, without a gradient, where only the student's is."""
    student, teacher = _deviations(student), _deviations(teacher)
    return (teacher.square() - student * teacher).sum(1).mean()


def _deviations(rows: Tensor) -> Tensor:
    """How each row differs from its mean, as a vector of length 1; 0 for rounding errors alone."""
    deviations = rows - rows.mean(1, keepdim=True)
    rounding = rows.detach().abs().amax(1, keepdim=True) * rows.shape[1]
    varies = deviations.abs().amax(1, keepdim=True) > rounding * torch.finfo(rows.dtype).eps
    return normalize(deviations * varies, dim=1)


@_full_precision
def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two feature maps (FitNets: Romero et al. 2015,
    https://arxiv.org/abs/1412.6550), trained along with the rest and not in a stage before it.
    The student's map (N, C, H, W) has passed the adapter.
    """
    return mse_loss(*_same_size(student, teacher))


@_full_precision
def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps (Zagoruyko and Komodakis 2017,
    https://arxiv.org/abs/1612.03928).

    A map's attention is its mean square over the channels, as a vector of length 1 over the pixels.
    """

    def attention(maps: Tensor) -> Tensor:
        return normalize(maps.square().mean(1).flatten(1))

    student, teacher = _same_size(student, teacher)
    return mse_loss(attention(student), attention(teacher))


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of one stride: where the networks round odd sides differently, the larger is
    averaged down to the smaller."""
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    return (
        adaptive_avg_pool2d(student, (height, width)),
        adaptive_avg_pool2d(teacher, (height, width)),
    )


@_full_precision
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of the distances between all photos of the batch, in units of their mean
    (RKD-D: Park et al. 2019, https://arxiv.org/abs/1904.05068).
    """
    return smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(points: Tensor) -> Tensor:
    """(N, N) Euclidean distances over their mean; 0, and without a gradient, for equal points.

    The square root has no finite gradient at zero, where every point is from itself.
    """
    squares = (points[:, None] - points).square().sum(2)
    apart = squares > _tiny(squares)
    distances = torch.where(apart, squares, 1).sqrt() * apart
    return distances * (apart.sum() / distances.sum().clamp(min=1e-12))


@_full_precision
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of the cosines of the angles that all triples of photos form
    (RKD-A: Park et al. 2019, https://arxiv.org/abs/1904.05068).
    """
    return smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(points: Tensor) -> Tensor:
    """(N, N, N) cosines of the angle at point i between j and k; 0 where two of them coincide."""
    differences = points[:, None] - points
    squares = differences.square().sum(2, keepdim=True)
    apart = squares > _tiny(squares)
    directions = differences * apart * torch.where(apart, squares, 1).rsqrt()
    return directions @ directions.transpose(1, 2)


def _tiny(squares: Tensor) -> Tensor:
    """The squared distance below which two points differ by rounding errors only, and not below
    what float32 can still divide by."""
    rounding = squares.detach().max() * torch.finfo(squares.dtype).eps ** 2
    return rounding.clamp(min=1e-24)


@_full_precision
def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """25 · distance + 50 · angle, the paper's weights for classification. A photo's embedding is
    what the classifier reads, each channel's mean.
    """
    student, teacher = student.mean((2, 3)), teacher.mean((2, 3))
    return 25 * rkd_distance_loss(student, teacher) + 50 * rkd_angle_loss(student, teacher)


@_full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the similarities between the photos of the batch (Tung and Mori
    2019, https://arxiv.org/abs/1907.09682).

    The similarities of a photo to all photos of the batch are the products of their flattened
    maps, as a vector of length 1.
    """

    def similarities(maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        # A photo whose map is all zero has no direction, and must not get an infinite gradient.
        return normalize(flat @ flat.T, eps=1e-3)

    return mse_loss(similarities(student), similarities(teacher))
