"""The objective against plain PyTorch, and mistakes that would otherwise go unnoticed: a teacher in
train mode, different pixels for teacher and student, the wrong method."""

import copy
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

from config import Config, KDConfig, UserError
from models.factory import create_model
from models.features import feature_layers
from tests.toys import CLASSES, CPU, resnet_by_hand, tensors, train, train_batches
from utils import losses
from utils.device import Device
from utils.distillation import METHODS, Distillation, Method, check_method
from utils.engine import CrossEntropy, Training, train_epoch

PAIRS = [*permutations(("resnet18", "mobilenet_v3_small"))]
PAIRS += permutations(("densenet121", "convnext_tiny"))
each_method = pytest.mark.parametrize("method", METHODS)
FLOAT32, BF16 = Device(CPU), Device(CPU, bf16=True)
TRUTH = torch.tensor([1, 0, 4, 2])
CONFIG = Config(image_size=32, batch_size=4, epochs=2, label_smoothing=0.1)
PHOTOS = 12  # three steps an epoch

initial_network = cache(partial(create_model, classes=CLASSES, image_size=64))


def network(seed: int, arch: str = "resnet18") -> nn.Module:
    """A copy in train mode."""
    return copy.deepcopy(initial_network(arch, seed=seed))


def with_kd(method: str, config: Config = CONFIG, **changed: Any) -> Config:
    kd = KDConfig(teacher="resnet18", method=method, weight=METHODS[method].weight)
    return replace(config, kd=replace(kd, **changed))


def distillation(config: Config, arch: str = "resnet18") -> Distillation:
    assert config.kd
    return Distillation(replace(config, kd=replace(config.kd, teacher=arch)), network(2, arch), CPU)


def images_of(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(64)
    return torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64).float()


@each_method
def test_the_objective_and_its_gradients_are_the_formula_written_out(method):
    entry, student = METHODS[method], network(1)
    # At its default weight the term of rkd is too small a part of this loss to be seen.
    weight = max(1.0, entry.weight or 0)
    objective = distillation(with_kd(method, alpha=0.6, temperature=3.0, weight=weight))
    images = images_of(64)  # for a last map of more than one pixel
    loss, logits, parts = objective(student, images, TRUTH)

    s, maps = resnet_by_hand(student, images)
    with torch.no_grad():
        t, teacher_maps = resnet_by_hand(network(2).eval(), images)
    plain = -s.log_softmax(1)[range(4), TRUTH].mean()
    smoothed = 0.9 * plain - 0.1 * s.log_softmax(1).mean()
    of_logits = {
        "dkd": losses.dkd_loss(s, t, TRUTH, 3.0, weight),
        "dist": losses.dist_loss(s, t, 3.0, weight),
    }
    soft = of_logits.get(method, losses.kd_loss(s, t, 3.0))
    expected: Any = 0.4 * smoothed + 0.6 * soft
    named = {"ce": plain, method if entry.logits_loss else "kd": soft}
    if entry.feature_loss:
        term_of = getattr(losses, f"{method}_loss")
        if entry.adapter:
            maps = {n: objective.adapters[str(n)](maps[n]) for n in entry.strides}
        term = sum(term_of(maps[n], teacher_maps[n]) for n in entry.strides)
        assert weight * term > 0.01 * expected
        expected, named[method] = expected + weight * term, term
    named["agreement"] = (s.argmax(1) == t.argmax(1)).float().mean()

    torch.testing.assert_close(logits, s)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert parts.keys() == named.keys()
    for key, value in named.items():
        assert not parts[key].requires_grad
        torch.testing.assert_close(parts[key], value.detach(), rtol=1e-4, atol=1e-5)
    trained = [*student.parameters(), *objective.adapters.parameters()]
    gradients = (torch.autograd.grad(each, trained) for each in (loss, expected))
    for gradient, other in zip(*gradients, strict=True):
        assert (gradient - other).norm() <= 1e-3 * other.norm()


def test_incomplete_entries_and_settings_that_a_method_does_not_support_raise():
    both = {"logits_loss": losses.kd_loss, "feature_loss": losses.sp_loss, "strides": (8,)}
    for incomplete in ({}, both, {"feature_loss": losses.sp_loss}):
        with pytest.raises(ValueError, match="has a logits_loss, or a feature_loss and strides"):
            Method(**incomplete)
    mixed = replace(CONFIG, mixup=0.2)
    check_method(with_kd("dkd"), 3, 0)
    check_method(with_kd("kd", mixed), 2, 1)
    with pytest.raises(UserError, match="--method dkd separates"):
        check_method(with_kd("dkd", mixed), 3, 0)
    with pytest.raises(UserError, match="--method dkd needs three classes or more"):
        check_method(with_kd("dkd"), 2, 0)
    with pytest.raises(UserError, match="--method dkd needs the label of each photo"):
        check_method(with_kd("dkd"), 3, 1)
    with pytest.raises(UserError, match="vit_b_16 has no feature maps of stride 32 at 32 px"):
        check_method(with_kd("sp", replace(CONFIG, model="vit_b_16")), 3, 0)


@each_method
def test_alpha_and_weight_zero_are_the_baseline_to_the_bit(method):
    mixed = torch.tensor([[0.7, 0, 0, 0.3, 0]]).repeat(4, 1)
    labels, found = TRUTH if METHODS[method].hard_labels else mixed, []
    for objective in (distillation(with_kd(method, alpha=0.0, weight=0.0)), CrossEntropy(0.1)):
        student = network(1)
        loss, logits, parts = objective(student, images_of(32), labels)
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        found.append([loss, logits, parts["ce"], *gradients])
    assert all(map(torch.equal, *found))


@each_method
def test_a_teacher_sees_the_pixels_of_its_student_and_neither_changes_nor_is_saved(method):
    mixup = 0.0 if METHODS[method].hard_labels else 0.4
    config = with_kd(method, replace(CONFIG, mixup=mixup))
    objective = distillation(config)
    training, teacher = Training(network(1), objective, config, FLOAT32), objective.teacher
    calls: dict[nn.Module, list[Any]] = {training.model: [], teacher: []}

    def note(model: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        modes = any(m.training for m in model.modules()), torch.is_grad_enabled()
        calls[model].append((inputs[0], modes))

    for model in calls:
        model.register_forward_hook(note)
    train(training, count=PHOTOS)
    (images, modes), (pixels, of_teacher) = (zip(*each, strict=True) for each in calls.values())
    assert list(modes) == ([(True, True)] * 3 + [(False, False)] * 2) * 2
    assert set(of_teacher) == {(False, False)}
    assert all(s is t for s, t in zip(images, pixels, strict=True))
    first = [images for images, _ in train_batches(config, PHOTOS).epoch(1)]
    assert all(map(torch.equal, first, pixels[:3]))

    assert all(map(torch.equal, tensors(teacher.state_dict()), tensors(network(2).state_dict())))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    saved = {value.data_ptr() for value in tensors(training.state())}
    assert not saved & {value.data_ptr() for value in teacher.state_dict().values()}


def test_an_adapter_is_drawn_from_the_seed_alone(monkeypatch):
    teacher, drawn = network(2, "resnet50"), []
    for name in ("resnet18", "resnet50"):
        feature_layers(name, CONFIG.image_size, (16,))  # as before any run
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU was seeded"))
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        rng = torch.default_generator.manual_seed(noise).get_state()
        config = with_kd("fitnet", replace(CONFIG, seed=seed), teacher="resnet50")
        drawn.append(Distillation(config, teacher, CPU).adapters.state_dict()["16.weight"])
        assert torch.equal(torch.get_rng_state(), rng)
    assert drawn[0].shape == (1024, 256, 1, 1)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("method", "models", "device"),
    [(m, *one) for m in METHODS for one in zip(PAIRS, 2 * [FLOAT32, BF16], strict=True)],
)
def test_networks_of_other_families_teach_in_float32(method, models, device, monkeypatch):
    """At 75 pixels, where some of DenseNet's maps are a pixel smaller than those of ResNets."""
    (teacher, student), entry = models, METHODS[method]
    kind = "logits_loss" if entry.logits_loss else "feature_loss"

    def checked(of_student, of_teacher, *others):
        assert of_student.dtype == of_teacher.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return getattr(entry, kind)(of_student, of_teacher, *others)

    changed: dict[str, Any] = {kind: checked}
    monkeypatch.setitem(METHODS, method, replace(entry, **changed))
    config, model = with_kd(method, replace(CONFIG, model=student)), network(1, student)
    objective = distillation(config, teacher)
    if device is FLOAT32:  # a network of one's own may compute in another format by itself
        model.bfloat16().register_forward_pre_hook(lambda _, images: (images[0].bfloat16(),))
    with device.autocast():
        loss, logits, parts = objective(model, images_of(75), TRUTH)
    assert loss.dtype == logits.dtype == torch.float32
    assert all(value.isfinite() for value in (loss, *parts.values()))
    loss.backward()
    for parameter in (*model.parameters(), *objective.adapters.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any() or parameter.ndim == 1


class Batches(list[Any]):
    def epoch(self, _number: int):
        return self


@each_method
def test_no_step_reads_a_number_back_from_the_device(method):
    """It would stall the GPU and prevent CUDA graphs. Reading a fake tensor's value raises."""
    config, steps = replace(with_kd(method), clip_norm=1.0), []
    real = network(1), distillation(config, "resnet50")
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        with fake_tensor.FakeCopyMode(fake):
            model, objective = copy.deepcopy(real)
        training = Training(model, objective, config, BF16)
        training.optimizer.register_step_post_hook(lambda *_: steps.append(1))
        batches: Any = Batches([(torch.empty(4, 3, 64, 64), torch.empty(4).long())] * 3)
        with pytest.raises(fake_tensor.DataDependentOutputException):  # at the epoch's means
            train_epoch(training, batches, 1)
    assert len(steps) == 3
