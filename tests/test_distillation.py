"""The objective against plain PyTorch, and the mistakes that a distillation survives without a
word: a teacher in train mode, other pixels for teacher and student, a method that is another."""

import copy
import io
from dataclasses import replace
from functools import cache, partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from config import MODELS, Config, KDConfig, UserError
from models.factory import create_model
from models.features import feature_channels
from tests.toys import CLASSES, CPU, resnet_by_hand, tensors, train, train_batches
from utils import losses
from utils.device import Device
from utils.distillation import METHODS, Distillation, Method, check_method
from utils.engine import CrossEntropy, Training, train_epoch

each_method = pytest.mark.parametrize("method", METHODS)
FLOAT32, BF16 = Device(CPU), Device(CPU, bf16=True)
TRUTH = torch.tensor([1, 0, 4, 2])
CONFIG = Config(image_size=16, batch_size=4, epochs=2, label_smoothing=0.1)
PHOTOS = 12  # three steps an epoch

initial_network = cache(partial(create_model, classes=CLASSES, pretrained=False))


def network(seed: int, arch: str = "resnet18") -> nn.Module:
    """A copy in train mode."""
    return copy.deepcopy(initial_network(arch, seed=seed))


def with_kd(method: str, config: Config = CONFIG, **changed: Any) -> Config:
    kd = KDConfig(method=method, weight=METHODS[method].weight)
    return replace(config, kd=replace(kd, **changed))


def distillation(config: Config, arch: str = "resnet18") -> Distillation:
    return Distillation(config, arch, network(2, arch), CPU)


def images_of(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(64)
    return torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64).float()


@each_method
def test_the_objective_and_its_gradients_are_the_formula_written_out(method):
    """With the loss of the method's name or, of a new method, the one that its entry names."""
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
    kd: Any = losses.kd_loss(s, t, 3.0)
    own = {
        "kd": lambda *_: kd,
        "dkd": lambda *_: losses.dkd_loss(s, t, TRUTH, 3.0, weight),
        "dist": lambda *_: losses.dist_loss(s, t, 3.0, weight),
    }.get(method, entry.logits_loss)
    soft = own(s, t, TRUTH, 3.0, weight) if own else kd
    expected = 0.4 * smoothed + 0.6 * soft
    named = {"ce": plain, method if own else "kd": soft}
    if entry.feature_loss:
        term_of = getattr(losses, f"{method}_loss", entry.feature_loss)
        if entry.adapter:
            maps = {n: objective.adapters[str(n)](maps[n]) for n in entry.strides}
        term = sum(term_of(maps[n], teacher_maps[n]) for n in entry.strides)
        assert weight * term > 0.01 * expected
        expected, named[method] = expected + weight * term, term
    named["agreement"] = (s.argmax(1) == t.argmax(1)).float().mean()
    assert 0 < named["agreement"] < 1

    torch.testing.assert_close(logits, s)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert parts.keys() == named.keys()
    for key, value in named.items():
        assert not parts[key].requires_grad
        torch.testing.assert_close(parts[key], value.detach(), rtol=1e-4, atol=1e-5)
    trained = [*student.parameters(), *objective.adapters.parameters()]
    for gradient, other in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        assert (gradient - other).norm() <= 1e-3 * other.norm()


@pytest.mark.parametrize(
    "incomplete",
    [
        {}, {"logits_loss": losses.kd_loss, "feature_loss": losses.sp_loss, "strides": (8,)},
        {"feature_loss": losses.sp_loss}, {"logits_loss": losses.kd_loss, "strides": (8,)},
    ],
)  # fmt: skip
def test_an_entry_without_its_loss_and_an_unknown_method_raise(incomplete):
    with pytest.raises(ValueError, match="a paper: needs a logits_loss, or a feature_loss"):
        Method("a paper", **incomplete)
    with pytest.raises(KeyError, match="unknown"):
        distillation(replace(CONFIG, kd=KDConfig(method="unknown")))


def test_a_method_that_needs_one_class_of_three_or_more_says_so():
    mixed = replace(CONFIG, mixup=0.2)
    check_method(with_kd("dkd"), 3)
    check_method(with_kd("kd", mixed), 2)
    with pytest.raises(UserError, match="--method dkd separates"):
        check_method(with_kd("dkd", mixed), 3)
    with pytest.raises(UserError, match="--method dkd needs three classes or more"):
        check_method(with_kd("dkd"), 2)


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


@pytest.fixture(scope="module", params=METHODS)
def run(request) -> SimpleNamespace:
    """A student trained for two epochs, what its teacher and it were called with, and the file
    saved after the first epoch."""
    mixup = 0.0 if METHODS[request.param].hard_labels else 0.4
    config, file = with_kd(request.param, replace(CONFIG, mixup=mixup)), io.BytesIO()
    training = Training(network(1), distillation(config), config, FLOAT32)
    teacher = training.objective.teacher_model  # type: ignore[attr-defined]
    calls: dict[nn.Module, list[Any]] = {training.model: [], teacher: []}

    def note(model: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        modes = any(m.training for m in model.modules()), torch.is_grad_enabled()
        calls[model].append((inputs[0], modes))

    for model in calls:
        model.register_forward_hook(note)
    train(training, lambda now: None if file.tell() else torch.save(now.state(), file), PHOTOS)
    file.seek(0)
    return SimpleNamespace(training=training, teacher=teacher, calls=calls, file=file)


def test_a_teacher_sees_the_very_pixels_of_its_student_in_eval_mode(run):
    (images, modes), (pixels, of_teacher) = (
        zip(*run.calls[model], strict=True) for model in (run.training.model, run.teacher)
    )
    assert list(modes) == ([(True, True)] * 3 + [(False, False)] * 2) * 2
    assert set(of_teacher) == {(False, False)}
    assert all(s is t for s, t in zip(images, pixels, strict=True))
    first = [images for images, _ in train_batches(run.training.config, PHOTOS).epoch(1)]
    assert all(map(torch.equal, first, pixels[:3]))


def test_a_teacher_does_not_change_and_is_not_saved(run):
    ends, begins = (model.state_dict().values() for model in (run.teacher, network(2)))
    assert all(map(torch.equal, ends, begins))
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())
    state = run.training.state()
    assert state["model"].keys() == network(1).state_dict().keys()
    teachers = {value.data_ptr() for value in run.teacher.state_dict().values()}
    assert not teachers & {value.data_ptr() for value in tensors(state)}


def test_a_resumed_run_ends_with_the_same_bits(run):
    config = run.training.config
    again = Training(network(9), distillation(config), config, FLOAT32)
    again.load_state(torch.load(run.file, weights_only=True))
    train(again, count=PHOTOS)
    assert all(map(torch.equal, tensors(run.training.state()), tensors(again.state())))
    assert again.history[1]["loss/train"] == run.training.history[1]["loss/train"]


def test_an_adapter_is_drawn_from_the_seed_alone(monkeypatch):
    network(2, "resnet50")
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU was seeded"))
    drawn = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.default_generator.manual_seed(noise)
        feature_channels.cache_clear()
        rng = torch.get_rng_state()
        objective = distillation(with_kd("fitnet", replace(CONFIG, seed=seed)), "resnet50")
        assert torch.equal(torch.get_rng_state(), rng)
        drawn.append(objective.adapters.state_dict()["16.weight"])
    assert drawn[0].shape == (1024, 256, 1, 1)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("method", "models", "device"),
    # Every method twice and every pair, not each with each.
    [*zip([*METHODS] * 2, [*product(MODELS, MODELS)] * 2, [FLOAT32, BF16] * 99, strict=False)],
)
def test_every_architecture_teaches_every_other(method, models, device):
    """At 75 pixels, where some of DenseNet's maps are a pixel smaller than those of ResNets."""
    teacher, student = models
    config, model = with_kd(method, replace(CONFIG, model=student)), network(1, student)
    objective = distillation(config, teacher)
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
    """A GPU would wait for it, and a recorded step could not be replayed. Tensors without values
    show it on any machine: whatever needs one raises an error."""
    config, steps = replace(with_kd(method), clip_norm=1.0), []
    model, objective = network(1), distillation(config, "resnet50")
    trees = (model, objective.teacher_model, objective.adapters)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in (module for tree in trees for module in tree.modules()):
            held: Any
            for held in (module._parameters, module._buffers):
                held.update({k: v if v is None else fake.from_tensor(v) for k, v in held.items()})
        training = Training(model, objective, config, BF16)
        training.optimizer.register_step_post_hook(lambda *_: steps.append(1))
        batches: Any = Batches([(torch.empty(4, 3, 64, 64), torch.empty(4).long())] * 3)
        with pytest.raises(DataDependentOutputException):  # at the means of the epoch
            train_epoch(training, batches, 1)
    assert len(steps) == 3
