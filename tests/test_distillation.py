"""Each loss against its formula written out, the objective against plain PyTorch, and the mistakes
that a distillation survives without a word: a teacher in train mode, a lost T², half precision."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from config import METHODS, MODELS, Config
from data.batches import EvalBatches, Normalise, TrainBatches
from models.factory import MEAN, STD, create_model
from models.stages import forward_with_stages, stage_channels
from utils.distillation import (
    Distillation,
    Lesson,
    attention_loss,
    dist_loss,
    dkd_loss,
    fitnet_loss,
    kd_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    sp_loss,
)
from utils.engine import (
    CrossEntropy,
    Hardware,
    Objective,
    Training,
    evaluate,
    fit,
    make_optimizer,
    training_step,
)

CPU = torch.device("cpu")
FLOAT32, BF16 = Hardware(CPU, bf16=False), Hardware(CPU, bf16=True)
CLASSES = 5
TERMS = ("fitnet", "attention", "rkd", "sp")  # methods that add a term to kd
each_method = pytest.mark.parametrize("method", METHODS)

# Six photos, for each loss the shapes of what it compares. The widths of maps and embeddings
# differ, as those of teacher and student do.
LABELS = torch.tensor([2, 0, 1, 4, 3, 0])
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, tuple[int, ...], tuple[int, ...]]] = {
    "kd": (lambda s, t: kd_loss(s, t, 4.0), (6, 5), (6, 5)),
    "dkd": (lambda s, t: dkd_loss(s, t, LABELS, 4.0, 8.0), (6, 5), (6, 5)),
    "dist": (lambda s, t: dist_loss(s, t, 4.0, 2.0), (6, 5), (6, 5)),
    "fitnet": (fitnet_loss, (6, 4, 3, 3), (6, 4, 3, 3)),
    "attention": (attention_loss, (6, 4, 3, 3), (6, 7, 3, 3)),
    "rkd_distance": (rkd_distance_loss, (6, 4), (6, 7)),
    "rkd_angle": (rkd_angle_loss, (6, 4), (6, 7)),
    "rkd": (rkd_loss, (6, 4), (6, 7)),
    "sp": (sp_loss, (6, 4, 3, 3), (6, 7, 2, 2)),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_rkd = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss, rkd_loss])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def example(name: str, seed: int = 0) -> tuple[Loss, Tensor, Tensor]:
    loss, student, teacher = LOSSES[name]
    return loss, 2 * draw(*student, seed=2 * seed), 2 * draw(*teacher, seed=2 * seed + 1)


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def log_shares(logits: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax(logits / T) of each row."""
    soft = logits / temperature - (logits / temperature).max(1, keepdims=True)
    return soft - np.log(np.exp(soft).sum(1, keepdims=True))


# Teacher 3 : 1 and student 1 : 1, so KL = 3/4 log(3/2) + 1/4 log(1/2); the other way round it
# would be 1/2 log(2/3) + 1/2 log(2) = 0.1438.
APART = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "expected"),
    [
        ([[0, 0]], [[math.log(3), 0]], 1, APART),
        ([[0, 0]], [[2 * math.log(3), 0]], 2, 4 * APART),
        ([[7, 7], [1, 0]], [[math.log(3) - 2, -2], [1, 0]], 1, APART / 2),
        # 1/2, 1/3, 1/6 against 1/3 each, at T = 3
        (
            [[0, 0, 0]], [[3 * math.log(3), 3 * math.log(2), 0]], 3,
            9 * (math.log(1.5) / 2 + math.log(0.5) / 6),
        ),
    ],
    ids=["two classes", "T = 2", "two photos", "three classes"],
)  # fmt: skip
def test_kd_of_logits_worked_out_by_hand(student, teacher, temperature, expected):
    student, teacher = (torch.tensor(x, dtype=torch.float64) for x in (student, teacher))
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)


@st.composite
def answers(draw, classes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, in eighths so that equal ones are common, and labels."""
    photos, classes = draw(st.integers(1, 5)), draw(st.integers(classes, 6))
    eighths = st.integers(-80, 80).map(lambda n: n / 8)
    rows = st.lists(
        st.lists(eighths, min_size=classes, max_size=classes), min_size=photos, max_size=photos
    )
    labels = st.lists(st.integers(0, classes - 1), min_size=photos, max_size=photos)
    student, teacher = (torch.tensor(draw(rows), dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.tensor(draw(labels))


TEMPERATURES = st.sampled_from([0.5, 1.0, 4.0, 20.0])


@settings(max_examples=50)
@given(answers(), TEMPERATURES)
def test_kd_is_its_formula(drawn, temperature):
    student, teacher, _ = drawn
    log_s, log_t = (log_shares(x.numpy(), temperature) for x in (student, teacher))
    expected = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(log_s)
    value = kd_loss(student, teacher, temperature).item()
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12 * temperature**2)
    assert value >= -1e-14 * temperature**2


@settings(max_examples=50)
@given(answers(classes=3), TEMPERATURES, st.sampled_from([0.0, 1.0, 8.0]))
def test_dkd_is_its_formula(drawn, temperature, beta):
    student, teacher, labels = drawn
    log_s, log_t = (log_shares(x.numpy(), temperature) for x in (student, teacher))
    terms = []
    for of_s, of_t, label in zip(log_s, log_t, labels.tolist(), strict=True):
        rest_s, rest_t = (np.delete(row, label) for row in (of_s, of_t))
        sum_s, sum_t = (np.log(np.exp(row).sum()) for row in (rest_s, rest_t))
        target = np.exp(of_t[label]) * (of_t[label] - of_s[label])
        target += np.exp(sum_t) * (sum_t - sum_s)
        others = (np.exp(rest_t - sum_t) * (rest_t - sum_t - rest_s + sum_s)).sum()
        terms.append(target + beta * others)
    expected = temperature**2 * np.mean(terms)
    value = dkd_loss(student, teacher, labels, temperature, beta).item()
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-11 * temperature**2)
    assert value >= -1e-13 * temperature**2


@settings(max_examples=50)
@given(answers(classes=3), TEMPERATURES)
def test_dkds_two_parts_add_up_to_kd_photo_by_photo(drawn, temperature):
    for s, t, label in zip(*(x.split(1) for x in drawn), strict=True):
        target = dkd_loss(s, t, label, temperature, 0)
        others = dkd_loss(s, t, label, temperature, 1) - target
        sure = (t / temperature).softmax(1)[0, label.item()]
        torch.testing.assert_close(
            target + (1 - sure) * others, kd_loss(s, t, temperature), rtol=1e-9, atol=1e-9
        )


def test_dkd_refuses_labels_and_classes_that_it_cannot_part():
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    shares = torch.eye(5)[LABELS]
    with pytest.raises(ValueError, match="one class for each photo, not shares of several"):
        dkd_loss(student, teacher, shares, 4.0, 8.0)
    with pytest.raises(ValueError, match="three classes or more"):
        dkd_loss(student[:, :2], teacher[:, :2], LABELS.clamp(max=1), 4.0, 8.0)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(3, 8), st.integers(3, 7), TEMPERATURES)
def test_dist_is_one_minus_numpys_correlations(seed, photos, classes, temperature):
    student, teacher = draw(photos, classes, seed=seed), draw(photos, classes, seed=seed + 1000)
    p_s, p_t = (np.exp(log_shares(x.numpy(), temperature)) for x in (student, teacher))
    inter = np.mean([1 - np.corrcoef(p_s[i], p_t[i])[0, 1] for i in range(photos)])
    intra = np.mean([1 - np.corrcoef(p_s[:, c], p_t[:, c])[0, 1] for c in range(classes)])
    value = dist_loss(student, teacher, temperature, 2.0).item()
    assert value == pytest.approx(temperature**2 * 2 * (inter + intra), rel=1e-7)


def test_dist_lets_a_student_be_less_sure_than_its_teacher():
    teacher = 3 * draw(6, 5)
    half_as_sure = ((teacher / 4).softmax(1) / 2 + 0.1).log() * 4
    assert dist_loss(half_as_sure, teacher, 4.0, 2.0).item() == pytest.approx(0, abs=1e-10)
    assert kd_loss(half_as_sure, teacher, 4.0) > 0.1
    # Another share of doubt for each photo leaves the ranking of its classes, not that of photos.
    share = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)[:, None]
    unevenly_sure = ((teacher / 4).softmax(1) * share + (1 - share) / 5).log() * 4
    assert dist_loss(unevenly_sure, teacher, 4.0, 2.0) > 0.1


@pytest.mark.parametrize(
    "logits",
    [torch.full((6, 5), 0.3), draw(5).float().repeat(6, 1)],
    ids=["for all classes", "for all photos"],
)
def test_dist_does_not_magnify_the_rounding_errors_of_answers_that_are_all_alike(logits):
    teacher = draw(6, 5).float()
    assert gradient(lambda s, t: dist_loss(s, t, 4.0, 2.0), logits, teacher).abs().max() < 100


def test_dist_learns_nothing_where_the_teacher_ranks_nothing():
    photo = draw(1, 5)
    assert dist_loss(photo, photo, 4.0, 2.0).item() == pytest.approx(0, abs=1e-12)
    other = dist_loss(photo, draw(1, 5, seed=1), 1.0, 1.0).item()
    p, q = (np.exp(log_shares(x.numpy(), 1.0))[0] for x in (photo, draw(1, 5, seed=1)))
    assert other == pytest.approx(1 - np.corrcoef(p, q)[0, 1])
    assert dist_loss(draw(6, 5), torch.zeros(6, 5).double(), 4.0, 2.0).item() == 0
    assert dist_loss(torch.zeros(6, 5).double(), draw(6, 5), 4.0, 1.0).item() == pytest.approx(32)


@settings(max_examples=30)
@given(answers(classes=3), st.integers(0, 999))
def test_a_constant_added_to_a_photos_logits_changes_nothing(drawn, seed):
    student, teacher, labels = drawn
    more, less = 10 * draw(len(labels), 1, seed=seed), 10 * draw(len(labels), 1, seed=seed + 1000)
    losses: list[Loss] = [
        lambda s, t: kd_loss(s, t, 4.0),
        lambda s, t: dkd_loss(s, t, labels, 4.0, 8.0),
    ]
    for loss in losses:
        moved = loss(student + more, teacher + less)
        torch.testing.assert_close(moved, loss(student, teacher), rtol=1e-9, atol=1e-9)
    # Correlations need answers that vary.
    student, teacher = draw(6, 5, seed=seed), draw(6, 5, seed=seed + 1000)
    more, less = 10 * draw(6, 1, seed=seed + 1), 10 * draw(6, 1, seed=seed + 2)
    torch.testing.assert_close(
        dist_loss(student + more, teacher + less, 4.0, 2.0), dist_loss(student, teacher, 4.0, 2.0)
    )


def test_a_mean_over_the_classes_too_is_a_smaller_alpha():
    """What docs/experiment_1 says of reduction="mean": with 11 classes, 0.7 becomes 0.175 and the
    whole loss 0.364 times as large, which Adam does not notice."""
    student, teacher, labels = 2 * draw(32, 11), 2 * draw(32, 11, seed=1), torch.arange(32) % 11
    hard, alpha, temperature = functional.cross_entropy(student, labels), 0.7, 2.0
    log_s, p_t = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    mean = temperature**2 * functional.kl_div(log_s, p_t, reduction="none").mean()
    other = 0.7 / 11 / (0.3 + 0.7 / 11)
    assert other == pytest.approx(0.175, abs=1e-4)
    ours = (1 - other) * hard + other * kd_loss(student, teacher, temperature)
    torch.testing.assert_close((1 - alpha) * hard + alpha * mean, (0.3 + 0.7 / 11) * ours)


def test_the_gradient_of_kd_keeps_its_scale_when_the_temperature_rises():
    student, teacher = 2 * draw(6, 5), 2 * draw(6, 5, seed=1)
    at_50 = gradient(lambda s, t: kd_loss(s, t, 50.0), student, teacher)
    at_500 = gradient(lambda s, t: kd_loss(s, t, 500.0), student, teacher)
    assert at_50.norm().item() == pytest.approx(at_500.norm().item(), rel=0.05)
    difference = student - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / (6 * 5)
    assert (at_500 - limit).norm() < 0.01 * limit.norm()
    assert (at_50 - limit).norm() < 0.1 * limit.norm()


@each_loss
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(name):
    loss, _, teacher = example(name)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert gradient(loss, teacher, teacher).abs().max() < 1e-6
    _, student, teacher = example(name)
    assert loss(student, teacher) > 1e-3


@each_loss
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_are_those_of_finite_differences(name, seed):
    loss, student, teacher = example(name, seed)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@each_loss
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_widened_before_anything_is_computed(name, autocast):
    loss, student, teacher = example(name)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    exact = loss(student.double(), teacher.double())
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = [
            loss(student, teacher),
            loss(student.float(), teacher),
            loss(student, teacher.float()),
            loss(student.float(), teacher.float()),
        ]
    for value in values:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=3e-6, atol=0)
        torch.testing.assert_close(value, values[-1], rtol=1e-6, atol=0)


def pool(maps: np.ndarray, side: int) -> np.ndarray:
    """Means over windows that cover the map: from 10 pixels to 9, windows of 2 that overlap."""
    old = maps.shape[2]
    windows = [slice(i * old // side, -(-(i + 1) * old // side)) for i in range(side)]
    rows = np.stack([maps[:, :, window].mean(2) for window in windows], 2)
    return np.stack([rows[:, :, :, window].mean(3) for window in windows], 3)


def squared_difference_of_attention(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for of_s, of_t in zip(student, teacher, strict=True):
        energy_s, energy_t = ((maps**2).mean(0).ravel() for maps in (of_s, of_t))
        energy_s /= math.sqrt((energy_s**2).sum())
        energy_t /= math.sqrt((energy_t**2).sum())
        total += ((energy_s - energy_t) ** 2).sum() / energy_s.size
    return total / len(student)


@pytest.mark.parametrize(("side", "other"), [(3, 3), (10, 9), (4, 5)])
def test_feature_losses_are_their_formulas_also_where_sides_differ_by_one(side, other):
    student, teacher = draw(3, 4, side, side), draw(3, 4, other, other, seed=1)
    wider = draw(3, 7, other, other, seed=2)
    least = min(side, other)
    of_s, of_t, of_w = (pool(x.numpy(), least) for x in (student, teacher, wider))
    assert fitnet_loss(student, teacher).item() == pytest.approx(np.square(of_s - of_t).mean())
    expected = squared_difference_of_attention(of_s, of_w)
    assert attention_loss(student, wider).item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_sp_is_its_formula(seed):
    _, student, teacher = example("sp", seed)
    similar = []
    for maps in (student.numpy(), teacher.numpy()):
        products = np.array([[(a * b).sum() for b in maps] for a in maps])
        similar.append([row / math.sqrt((row**2).sum()) for row in products])
    expected = np.square(np.array(similar[0]) - np.array(similar[1])).mean()
    assert sp_loss(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [attention_loss, sp_loss])
def test_a_photo_whose_map_is_zero_gets_no_endless_gradient(loss):
    student, teacher = draw(6, 4, 3, 3).float(), draw(6, 7, 3, 3, seed=1).float()
    student[2] = 0
    assert gradient(loss, student, teacher).abs().max() < 100


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def distances(points: np.ndarray) -> np.ndarray:
    apart = np.array([[math.dist(a, b) for b in points] for a in points])
    return apart / apart[apart > 0].mean()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return float(a @ b) / lengths if lengths else 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_rkd_is_its_formula_for_all_pairs_and_triples(seed):
    _, student, teacher = example("rkd", seed)
    student[0] *= 9  # far from all others, beyond the square part of the Huber loss
    student[4] = student[5]  # two photos that the student cannot tell apart
    s, t = student.numpy(), teacher.numpy()
    apart = (distances(s) - distances(t)).ravel().tolist()
    assert max(map(abs, apart)) > 1
    expected = sum(map(huber, apart)) / 6**2
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected)

    triples = list(itertools.product(range(6), repeat=3))
    turned = [
        cosine(s[j] - s[i], s[k] - s[i]) - cosine(t[j] - t[i], t[k] - t[i]) for i, j, k in triples
    ]
    assert max(map(abs, turned)) > 1
    angle = sum(map(huber, turned)) / 6**3
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(angle)
    assert rkd_loss(student, teacher).item() == pytest.approx(25 * expected + 50 * angle)


@each_rkd
def test_relations_do_not_depend_on_where_the_embeddings_lie_and_how_large_they_are(loss):
    _, student, teacher = example("rkd")
    rotation, _ = torch.linalg.qr(draw(4, 4, seed=5))
    moved = 30 * student @ rotation + draw(4, seed=6)
    torch.testing.assert_close(loss(moved, teacher), loss(student, teacher))
    torch.testing.assert_close(loss(student, teacher / 50 + 3), loss(student, teacher))
    assert loss(moved, student).item() == pytest.approx(0, abs=1e-12)


@each_rkd
@pytest.mark.parametrize(
    "alike",
    [
        lambda points: points[[0, 1, 2, 3, 4, 4]],
        lambda points: points[[0, 0, 0, 1, 1, 1]],
        lambda points: points[[0] * 6],
        lambda points: points[[0] * 6] + 1e-7 * points,
        lambda points: points * 1e-10,
        lambda points: points * 1e-14,
        lambda points: points * 1e-20,
        lambda points: points * 0,
        lambda points: points[:1],
    ],
    ids=["two", "threes", "all", "almost all", "tiny", "tinier", "tiniest", "zero", "one photo"],
)
def test_photos_that_the_student_cannot_tell_apart_leave_rkds_gradient_finite(loss, alike):
    student, teacher = alike(draw(6, 4).float()), draw(6, 7, seed=1).float()
    teacher = teacher[: len(student)]
    assert gradient(loss, student, teacher).isfinite().all()
    assert gradient(loss, teacher, student).isfinite().all()
    assert loss(student, teacher).isfinite()
    assert loss(student, student).item() == pytest.approx(0, abs=1e-6)


@each_rkd
def test_rkd_does_not_magnify_the_rounding_errors_of_photos_that_are_alike(loss):
    student, teacher = draw(6, 4).float(), draw(6, 7, seed=1).float()
    student[4] = student[5]
    student[4, 0] = student[5, 0].nextafter(torch.tensor(9.0))
    assert not torch.equal(student[4], student[5])
    assert gradient(loss, student, teacher).abs().max() < 100


def lesson(method: str, alpha: float = 0.7, temperature: float = 4.0) -> Lesson:
    return Lesson(method, alpha, temperature, METHODS[method])


def network(seed: int, arch: str = "resnet18") -> nn.Module:
    return create_model(arch, CLASSES, pretrained=False, seed=seed)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return network(2)


def distillation(
    how: Lesson,
    teacher_model: nn.Module,
    *,
    student: str = "resnet18",
    teacher: str = "resnet18",
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Distillation:
    return Distillation(
        how, student, teacher, teacher_model, label_smoothing=label_smoothing, seed=seed, device=CPU
    )


def photos(side: int = 32) -> Tensor:
    return draw(4, 3, side, side, seed=side).float()


TRUTH = torch.tensor([1, 0, 4, 2])
MIXED = 0.7 * torch.eye(CLASSES)[TRUTH] + 0.3 * torch.eye(CLASSES)[TRUTH.flip(0)]


def by_hand(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the four maps of a ResNet."""
    x = model.maxpool(model.bn1(model.conv1(images)).relu())
    maps = [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]
    return model.fc(x.mean((2, 3))), maps


def term_by_hand(method: str, maps: list[Tensor], others: list[Tensor], adapter: Any) -> Tensor:
    """Means of squares written out; RKD is compared with its formula above."""
    match method:
        case "fitnet":
            return (adapter(maps[2]) - others[2]).square().mean()
        case "attention":
            energies = [[(m**2).mean(1).flatten(1) for m in of] for of in (maps, others)]
            units = [[e / e.norm(dim=1, keepdim=True) for e in of] for of in energies]
            return sum((a - b).square().mean() for a, b in zip(*units, strict=True))
        case "rkd":
            return rkd_loss(maps[3].mean((2, 3)), others[3].mean((2, 3)))
    products = [torch.einsum("ichw,jchw->ij", m, m) for m in (maps[3], others[3])]
    a, b = (p / p.norm(dim=1, keepdim=True) for p in products)
    return (a - b).square().mean()


@each_method
def test_the_objective_is_the_formula_written_out_and_so_are_its_gradients(teacher, method):
    # 64 pixels, for a last map of more than one.
    images, student = photos(64), network(1).train()
    teacher.train()
    # At its default weight the term of rkd is too small a part of this loss to be seen.
    weight = 1.0 if method == "rkd" else METHODS[method]
    taught = Lesson(method, 0.6, 3.0, weight)
    objective = distillation(taught, teacher, label_smoothing=0.1)
    loss, logits, parts = objective(student, images, TRUTH)

    logits_by_hand, maps = by_hand(student, images)
    with torch.no_grad():
        teacher_logits, teacher_maps = by_hand(teacher.eval(), images)
    torch.testing.assert_close(logits, logits_by_hand)
    log_s = logits_by_hand.log_softmax(1)
    plain = -log_s[range(4), TRUTH].mean()
    smoothed = 0.9 * plain - 0.1 * log_s.mean()
    if method == "dkd":
        soft = dkd_loss(logits_by_hand, teacher_logits, TRUTH, 3.0, 8.0)
    elif method == "dist":
        soft = dist_loss(logits_by_hand, teacher_logits, 3.0, 2.0)
    else:
        log_s, log_t = ((x / 3).log_softmax(1) for x in (logits_by_hand, teacher_logits))
        soft = 9 * (log_t.exp() * (log_t - log_s)).sum() / 4
    expected = 0.4 * smoothed + 0.6 * soft
    own = list(objective.own.parameters())
    name = method if method in ("dkd", "dist") else "kd"
    named = {"ce": plain, name: soft}
    if method in TERMS:
        term = term_by_hand(method, maps, teacher_maps, objective.own["adapter"] if own else None)
        weighted = float(weight or 0) * term
        expected = expected + weighted
        named[method] = term
        assert weighted > 0.01 * expected
    same = [int(s.argmax() == t.argmax()) for s, t in zip(logits, teacher_logits, strict=True)]
    assert 0 < sum(same) < 4
    named["agreement"] = torch.tensor(sum(same) / 4)

    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert parts.keys() == named.keys()
    for key, value in named.items():
        assert not parts[key].requires_grad
        torch.testing.assert_close(parts[key], value.detach(), rtol=1e-4, atol=1e-5)
    trained = [*student.parameters(), *own]
    for gradient, other in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        assert (gradient - other).norm() <= 1e-3 * other.norm()


def batches(mixup: float = 0.0) -> tuple[TrainBatches, EvalBatches]:
    """Three batches of four photos, of noise."""
    noise = np.random.default_rng(0)
    pixels = torch.from_numpy(noise.integers(0, 256, (12, 20, 20, 3), dtype=np.uint8))
    rows, labels = np.arange(12), noise.integers(0, CLASSES, 12)
    normalise = Normalise(MEAN, STD, CPU)
    train = TrainBatches(
        pixels, rows, labels, classes=CLASSES, size_in=lambda _: 16, batch_size=4, seed=0,
        crop_scale=0.5, mixup=mixup, normalise=normalise, device=CPU,
    )  # fmt: skip
    return train, EvalBatches(
        pixels, rows, labels, size=16, batch_size=4, normalise=normalise, device=CPU
    )


def start(objective: Objective, config: Config, student: nn.Module | None = None) -> Training:
    student = student or network(1)
    return Training(student, objective, make_optimizer(student, objective.own, config))


def train(
    training: Training,
    config: Config,
    mixup: float = 0.0,
    after_epoch: Callable[[Training], None] = lambda _: None,
) -> None:
    fit(training, *batches(mixup), config, FLOAT32, seed=0, after_epoch=after_epoch)


@each_method
@pytest.mark.parametrize("hardware", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_a_student_that_is_its_teacher_agrees_with_it(teacher, method, hardware):
    objective = distillation(lesson(method), teacher)
    _, _, parts = evaluate(copy.deepcopy(teacher), objective, batches()[1], hardware)
    assert parts.pop("agreement") == 1
    assert parts.pop("ce") > 0.1
    if method == "fitnet":
        assert parts.pop("fitnet") > 0  # its adapter is no identity
    assert all(abs(value) < 1e-4 for value in parts.values())


@pytest.mark.parametrize("labels", [TRUTH, MIXED], ids=["classes", "mixed"])
def test_alpha_zero_is_the_baseline_to_the_bit(teacher, labels):
    taught, alone = network(1).train(), network(1).train()
    objective = distillation(lesson("kd", alpha=0), teacher, label_smoothing=0.1)
    loss, logits, parts = objective(taught, photos(), labels)
    baseline, baseline_logits, baseline_parts = CrossEntropy(0.1)(alone, photos(), labels)
    loss.backward()
    baseline.backward()
    assert torch.equal(loss, baseline)
    assert torch.equal(logits, baseline_logits)
    assert torch.equal(parts["ce"], baseline_parts["ce"])
    for parameter, other in zip(taught.parameters(), alone.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dkd"])
def test_alpha_one_needs_no_labels(teacher, method):
    objective = distillation(lesson(method, alpha=1), teacher, label_smoothing=0.1)
    student = network(1).train()
    found = []
    for labels in (TRUTH, TRUTH.flip(0), MIXED, torch.full((4, CLASSES), math.nan)):
        loss, _, _ = objective(student, photos(), labels)
        found.append([loss, *torch.autograd.grad(loss, list(student.parameters()))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert found[0][0].isfinite()


def test_label_smoothing_is_in_the_cross_entropy_alone(teacher):
    student = network(1).train()
    found = []
    for smoothing in (0.0, 0.2):
        objective = distillation(lesson("sp", alpha=0.5), teacher, label_smoothing=smoothing)
        found.append(objective(student, photos(), TRUTH))
    (plain, logits, parts), (smoothed, _, same_parts) = found
    assert all(torch.equal(parts[name], same_parts[name]) for name in parts)
    log_p = logits.log_softmax(1)
    difference = 0.2 * (log_p[range(4), TRUTH].mean() - log_p.mean())
    assert abs(difference) > 0.01
    torch.testing.assert_close(smoothed - plain, 0.5 * difference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["kd", "fitnet"])
def test_the_teacher_rests_while_its_student_learns(method):
    teacher = network(2).train()
    before = copy.deepcopy(teacher.state_dict())
    objective = distillation(lesson(method), teacher)
    config = Config(epochs=2, warmup_epochs=0)
    training = start(objective, config)
    training.model.train()
    objective.own.train()
    modes = []
    training.model.register_forward_hook(
        lambda model, *_: modes.append((model.training, torch.is_grad_enabled()))
    )
    teachers_modes = []
    teacher.register_forward_hook(
        lambda model, *_: teachers_modes.append(
            (any(layer.training for layer in model.modules()), torch.is_grad_enabled())
        )
    )
    train(training, config)
    # Three steps and three batches of validation an epoch.
    assert modes == ([(True, True)] * 3 + [(False, False)] * 3) * 2
    assert teachers_modes == [(False, False)] * 12
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@each_method
def test_no_gradient_reaches_a_teacher_even_if_its_weights_would_take_one(method):
    teacher, student = network(2), network(1).train()
    objective = distillation(lesson(method), teacher)
    teacher.requires_grad_(True)
    objective(student, photos(), TRUTH)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return [tensor for item in state for tensor in tensors(item)]
    return [state] if isinstance(state, Tensor) else []


def test_what_is_saved_holds_the_student_and_its_adapter_and_nothing_of_the_teacher():
    config = Config(epochs=1, warmup_epochs=0, weight_decay=0)
    states = {}
    for name in ("alone", "kd", "fitnet"):
        teacher = network(2)
        objective = CrossEntropy() if name == "alone" else distillation(lesson(name), teacher)
        training = start(objective, config)
        fresh = copy.deepcopy(objective.own.state_dict())
        train(training, config)
        states[name] = training.state()
        teachers = {value.data_ptr() for value in teacher.state_dict().values()}
        assert not teachers & {value.data_ptr() for value in tensors(states[name])}
    alone, kd, fitnet = states.values()
    assert kd.keys() == alone.keys() == fitnet.keys()
    assert kd["model"].keys() == alone["model"].keys() == fitnet["model"].keys()
    assert len(tensors(kd)) == len(tensors(alone))
    # A weight and a bias, for each of which AdamW keeps a step count and two averages.
    assert len(tensors(fitnet)) == len(tensors(alone)) + 2 * 4
    assert kd["objective"] == alone["objective"] == {}
    assert fitnet["objective"].keys() == {"adapter.weight", "adapter.bias"}
    for key, value in fitnet["objective"].items():
        assert not torch.equal(value, fresh[key])  # trained, as there is no weight decay


@pytest.mark.parametrize("method", ["kd", "sp"])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_teacher_and_student_see_the_very_same_pixels(method, mixup):
    teacher = network(2)
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    config = Config(epochs=2, mixup=mixup)
    training = start(distillation(lesson(method), teacher), config)
    for name, model in (("teacher", teacher), ("student", training.model)):
        model.register_forward_pre_hook(
            lambda _module, inputs, name=name: seen[name].append(inputs[0])
        )
    train(training, config, mixup)
    assert len(seen["student"]) == 12
    assert all(a is b for a, b in zip(seen["student"], seen["teacher"], strict=True))
    first = [(images, labels.ndim) for images, labels in batches(mixup)[0].epoch(1)]
    for images, (expected, dimensions) in zip(seen["teacher"][:3], first, strict=True):
        assert torch.equal(images, expected)
        assert dimensions == (2 if mixup else 1)


def test_an_adapters_first_weights_come_from_the_seed_alone():
    weights = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        teacher = network(noise)
        torch.manual_seed(noise)
        objective = distillation(lesson("fitnet"), teacher, seed=seed)
        weights.append(objective.own.state_dict()["adapter.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_drawing_an_adapter_leaves_all_other_random_numbers_alone(monkeypatch):
    teacher = network(2, "densenet169")
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)  # no GPU is needed
    torch.manual_seed(7)
    assert seeds == [7]
    stage_channels.cache_clear()
    state = torch.get_rng_state()
    objective = distillation(lesson("fitnet"), teacher, teacher="densenet169")
    assert torch.equal(torch.get_rng_state(), state)
    assert seeds == [7]
    assert objective.own.state_dict()["adapter.weight"].shape == (1280, 256, 1, 1)


@each_method
def test_a_run_that_was_interrupted_ends_with_the_same_bits(teacher, method):
    config = Config(epochs=2, warmup_epochs=0.5, label_smoothing=0.1)
    file = io.BytesIO()

    def save_the_first(training: Training) -> None:
        if len(training.history) == 1:
            torch.save(training.state(), file)

    whole = start(distillation(lesson(method), teacher), config)
    train(whole, config, after_epoch=save_the_first)
    file.seek(0)
    again = start(distillation(lesson(method), teacher, seed=5), config, network(9))
    again.load_state(torch.load(file, weights_only=True))
    assert len(again.history) == 1
    train(again, config)

    for ended, other in zip(tensors(whole.state()), tensors(again.state()), strict=True):
        assert torch.equal(ended, other)
    for row, other_row in zip(whole.history, again.history, strict=True):
        different = {key for key in row if row[key] != other_row[key]}
        assert different <= {"seconds", "wall_time", "images_per_second"}


@pytest.fixture(scope="module")
def cast() -> dict[str, tuple[nn.Module, nn.Module, dict[str, Tensor]]]:
    """Of each architecture a teacher, a student and the student's first weights."""
    students = {arch: network(1, arch) for arch in MODELS}
    return {
        arch: (network(2, arch), student, copy.deepcopy(student.state_dict()))
        for arch, student in students.items()
    }


# Each pair of architectures at least twice, each method with three, each precision with each.
PAIRS = list(itertools.product(MODELS, MODELS))
TAUGHT = [
    (method, *PAIRS[(3 * number + turn) % 9], (FLOAT32, BF16)[(number + turn) % 2])
    for number, method in enumerate(METHODS)
    for turn in range(3)
]


@pytest.mark.parametrize(("method", "teacher", "student", "hardware"), TAUGHT)
def test_every_architecture_teaches_every_other(cast, teacher, student, hardware, method):
    teacher_model, (_, model, first) = cast[teacher][0], cast[student]
    model.load_state_dict(first)
    model.train()
    objective = distillation(lesson(method), teacher_model, student=student, teacher=teacher)
    config = Config(optimizer="sgd", weight_decay=0)
    optimizer = make_optimizer(model, objective.own, config)
    for _ in range(2):
        with hardware.autocast():
            loss, logits, parts = objective(model, photos(), TRUTH)
        assert loss.dtype == logits.dtype == torch.float32
        assert all(value.isfinite() for value in (loss, *parts.values()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kernels = [name for name, weight in model.named_parameters() if weight.ndim > 1]
    moved = model.state_dict()
    for name in (kernels[0], kernels[-1]):
        assert moved[name].isfinite().all()
        assert not torch.equal(moved[name], first[name])


@pytest.mark.parametrize("side", [32, 75])
@pytest.mark.parametrize("teacher", MODELS)
@pytest.mark.parametrize("student", MODELS)
def test_matched_stages_have_maps_of_one_size_or_are_brought_to_it(cast, teacher, student, side):
    teacher_model, model = cast[teacher][0], cast[student][1]
    strides = (4, 8, 16, 32)
    with torch.no_grad():
        _, maps = forward_with_stages(model, student, strides, photos(side))
        _, others = forward_with_stages(teacher_model, teacher, strides, photos(side))
        differences = [a.shape[2] - b.shape[2] for a, b in zip(maps, others, strict=True)]
        mixed = (student == "densenet169") != (teacher == "densenet169")
        assert any(differences) == (side == 75 and mixed)
        assert max(map(abs, differences)) <= 1
        for method in TERMS:
            objective = distillation(
                lesson(method), teacher_model, student=student, teacher=teacher
            )
            which = [strides.index(stride) for stride in objective.strides]
            term = objective.term([maps[i] for i in which], [others[i] for i in which])
            assert term.isfinite()
            assert term > 0


@each_method
def test_no_step_reads_a_number_back_from_the_device(method):
    """A GPU would wait for it, and a recorded step could not be replayed. Tensors without values
    show it on any machine: whatever needs one raises an error."""
    model, teacher = network(1), network(2, "resnet50")
    objective = distillation(lesson(method), teacher, teacher="resnet50", label_smoothing=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in (m for top in (model, teacher, objective.own) for m in top.modules()):
            tensors: Any
            for tensors in (module._parameters, module._buffers):
                for name, value in tensors.items():
                    tensors[name] = value if value is None else fake.from_tensor(value)
        config = Config(clip_norm=1.0)
        training = Training(model, objective, make_optimizer(model, objective.own, config))
        step = training_step(training, config, BF16)
        for _ in range(2):
            results = step(torch.empty(4, 3, 64, 64), torch.empty(4, dtype=torch.long))
    assert {"loss", "accuracy", "ce", "agreement"} < results.keys()


def test_a_lesson_is_named_by_its_settings():
    assert str(Lesson("kd", 0.7, 4.0, None)) == "kd-a0.7-T4"
    assert str(Lesson("sp", 1.0, 2.5, 3000.0)) == "sp-a1-T2.5-w3000"
