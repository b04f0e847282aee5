"""The training loop on toy problems, compared with plain PyTorch written out."""

import contextlib
import gc
import itertools
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from config import Config, UserError
from utils.engine import (
    CrossEntropy,
    Hardware,
    Training,
    fit,
    is_best,
    learning_rate,
    make_optimizer,
    predict,
    set_rate,
)
from utils.graphs import keep_rates_on_device

CPU = Hardware(torch.device("cpu"), bf16=False)
CLASSES = 3


class Toy:
    """Batches of a toy split; training batches depend on the epoch, as the real ones do."""

    def __init__(self, photos: int, batch: int, spoil: bool = False) -> None:
        draw = torch.Generator().manual_seed(photos)
        self.labels = torch.randint(CLASSES, (photos,), generator=draw)
        self.images = torch.randn(photos, 3, 8, 8, generator=draw)
        self.images[torch.arange(photos), self.labels] += 1
        if spoil:
            self.images[0] = math.inf
        self.batch, self.photos = batch, photos

    def __len__(self) -> int:
        return self.photos // self.batch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self.photos, generator=torch.Generator().manual_seed(number))
        for which in order[: len(self) * self.batch].split(self.batch):
            yield self.images[which], self.labels[which]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True)


def small_model(
    seed: int = 0, dropout: float = 0.5, order: torch.memory_format = torch.contiguous_format
) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(4, CLASSES),
    )  # fmt: skip
    return model.to(memory_format=order)


def start(config: Config, model: nn.Module | None = None) -> Training:
    model = model or small_model()
    objective = CrossEntropy(config.label_smoothing)
    return Training(model, objective, make_optimizer(model, objective.own, config))


def run(training: Training, config: Config, train: Toy, val: Toy, stop_after: int = 99) -> None:
    class Stop(Exception):
        pass

    def after_epoch(training: Training) -> None:
        if len(training.history) == stop_after:
            raise Stop

    with contextlib.suppress(Stop):
        fit(training, train, val, config, CPU, seed=0, after_epoch=after_epoch)


@pytest.fixture
def toys() -> tuple[Toy, Toy]:
    return Toy(46, 8), Toy(21, 8)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_an_epoch_is_what_plain_pytorch_computes(toys, order):
    train, val = toys
    config = Config(epochs=2, optimizer="sgd", lr=0.1, weight_decay=0.01, warmup_epochs=0.5)
    training = start(config, small_model(dropout=0, order=order))
    run(training, config, train, val)

    model = small_model(dropout=0)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    step = 0
    for epoch in (1, 2):
        losses, hits = [], 0
        for images, labels in train.epoch(epoch):
            # Two warm-up steps of five an epoch, then half a cosine wave over the other eight.
            rate = (
                0.1 * (step + 1) / 2
                if step < 2
                else 0.05 * (1 + math.cos(math.pi * (step - 2) / 8))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = model(images)
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            hits += (logits.argmax(1) == labels).sum().item()
            step += 1
        row = training.history[epoch - 1]
        assert row["loss/train"] == pytest.approx(sum(losses) / 5, rel=1e-5)
        assert row["accuracy/train"] == pytest.approx(hits / 40)
    model.eval()
    val_logits = model(val.images)
    assert training.history[-1]["loss/val"] == pytest.approx(
        cross_entropy(val_logits, val.labels).item(), rel=1e-4
    )
    assert training.history[-1]["accuracy/val"] == pytest.approx(
        (val_logits.argmax(1) == val.labels).float().mean().item()
    )
    torch.testing.assert_close(training.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_resumed_from_its_saved_state_a_run_ends_with_the_same_bits(toys, order):
    train, val = toys
    config = Config(epochs=5, mixup=0.2, label_smoothing=0.1)
    whole = start(config, small_model(order=order))
    run(whole, config, train, val)

    first = start(config, small_model(order=order))
    run(first, config, train, val, stop_after=2)
    state = first.state()
    second = start(config, small_model(seed=9, order=order))
    second.load_state(state)
    run(second, config, train, val)

    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    curves = [
        [(r["loss/train"], r["loss/val"], r["lr"]) for r in t.history] for t in (whole, second)
    ]
    assert curves[0] == curves[1]


def test_the_model_trains_in_train_mode_and_is_measured_in_eval_mode(toys):
    modes = []

    class Watching(CrossEntropy):
        def __call__(self, model, images, labels):
            modes.append(model.training)
            return super().__call__(model, images, labels)

    config = Config(epochs=2)
    plain = start(config)
    training = Training(plain.model, Watching(), plain.optimizer)
    run(training, config, *toys)
    # Five steps and three batches of validation, twice: train mode comes back.
    assert modes == ([True] * 5 + [False] * 3) * 2
    for row in training.history:
        assert row["ce/val"] == pytest.approx(row["loss/val"], rel=1e-5)

    model = small_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, labels = predict(model, toys[1], CPU)
    again, _ = predict(model, toys[1], CPU)
    assert model.training
    assert torch.equal(first, again)  # no dropout
    assert torch.equal(labels, toys[1].labels)
    assert first.shape == (21, CLASSES)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # BatchNorm rests
    assert not predict(model.eval(), toys[1], CPU)[0].requires_grad
    assert not model.training


def test_photos_that_were_not_evaluated_are_noticed(toys):
    val = toys[1]
    val.photos += 1
    with pytest.raises(RuntimeError, match="21 photos were evaluated instead of 22"):
        predict(small_model(), val, CPU)


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(toys):
    config = Config(epochs=3)
    training = start(config)
    with pytest.raises(UserError, match="no longer finite"):
        fit(
            training, Toy(46, 8, spoil=True), toys[1], config, CPU, seed=0,
            after_epoch=lambda _: pytest.fail("saved"),
        )  # fmt: skip
    assert training.history == []


def test_adamw_moves_kernels_in_whatever_order_they_are_stored(toys):
    """As PyTorch's loop over single tensors does, which knows no fused kernel."""
    config = Config(epochs=2, weight_decay=0.1, clip_norm=0.5)
    ours = start(config, small_model(dropout=0, order=torch.channels_last))
    plain = start(config, small_model(dropout=0))
    plain.optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in plain.model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in plain.model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=config.lr, betas=(0.9, 0.99), foreach=False,
    )  # fmt: skip
    for training in (ours, plain):
        run(training, config, *toys)
    first, second = (
        # Before BatchNorm a bias has no gradient but rounding errors, which AdamW makes large.
        {key: value for key, value in of.model.state_dict().items() if key.endswith("weight")}
        for of in (ours, plain)
    )
    torch.testing.assert_close(first, second)
    before = small_model(dropout=0).state_dict()["0.weight"]
    assert (first["0.weight"] - before).abs().mean() > config.lr


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_decay_reaches_kernels_and_never_biases_or_norms(order):
    config = Config(optimizer="sgd", lr=0.1, weight_decay=0.5)
    training = start(config, small_model(order=order))
    before = {k: p.detach().clone() for k, p in training.model.named_parameters()}
    for parameter in training.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    for name, parameter in training.model.named_parameters():
        ratio = 1.0 if parameter.ndim == 1 else (1 - 0.1 * 0.5 * 1.9)  # nesterov adds momentum once
        torch.testing.assert_close(parameter.detach(), before[name] * ratio)


def test_the_objectives_own_parameters_are_trained_clipped_and_saved(toys):
    class WithAdapter(CrossEntropy):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.ModuleDict({"adapter": nn.Linear(CLASSES, CLASSES)})

        def __call__(self, model, images, labels):
            logits = self.own["adapter"](model(images))
            loss = 1e4 * cross_entropy(logits, labels)
            return loss, logits, {"adapted": loss.detach()}

    config = Config(epochs=1, optimizer="sgd", lr=1.0, weight_decay=0.0, clip_norm=0.01,
                    schedule="constant", warmup_epochs=0)  # fmt: skip
    model, objective = small_model(), WithAdapter()
    before = objective.own.state_dict()["adapter.weight"].clone()
    training = Training(model, objective, make_optimizer(model, objective.own, config))
    run(training, config, *toys)
    moved = (objective.own.state_dict()["adapter.weight"] - before).norm()
    # Five clipped steps of length 0.01 at rate 1; Nesterov momentum 0.9 stretches them.
    assert 0 < moved < 0.01 * sum(1 + 0.9 * sum(0.9**k for k in range(i + 1)) for i in range(5))
    assert "adapter.weight" in training.state()["objective"]
    assert not any("adapter" in key for key in training.state()["model"])
    assert "adapted/train" in training.history[0]


def test_label_smoothing_is_in_the_loss_and_not_in_the_part_that_compares_with_validation():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    labels = torch.tensor([0, 2])
    loss, _, parts = CrossEntropy(0.1)(nn.Identity(), logits, labels)
    log_p = logits.log_softmax(1)
    plain = -(log_p[0, 0] + log_p[1, 2]) / 2
    torch.testing.assert_close(parts["ce"], plain)
    torch.testing.assert_close(loss, 0.9 * plain - 0.1 * log_p.mean())
    hard = torch.eye(3)[labels]
    torch.testing.assert_close(CrossEntropy()(nn.Identity(), logits, hard)[0], plain)


def test_the_schedule_warms_up_and_falls_to_zero():
    config = Config(epochs=10, lr=0.4, warmup_epochs=1)
    rates = [learning_rate(step, 20, config) for step in range(200)]
    assert rates[:20] == pytest.approx([0.4 * (i + 1) / 20 for i in range(20)])
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[20] == pytest.approx(0.4)
    assert rates[20 + 90] == pytest.approx(0.2)
    assert rates[-1] < 0.4 * 1e-3
    constant = replace(config, schedule="constant", warmup_epochs=0.0)
    assert {learning_rate(step, 20, constant) for step in range(200)} == {0.4}
    all_warm = replace(config, warmup_epochs=10.0)
    assert learning_rate(199, 20, all_warm) == pytest.approx(0.4)


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_and_ties_go_to_the_first():
    def rows(*pairs):
        return [{"accuracy/val": a, "loss/val": loss} for a, loss in pairs]

    assert is_best(rows((0.5, 1.0)))
    assert is_best(rows((0.5, 1.0), (0.6, 2.0)))
    assert not is_best(rows((0.5, 1.0), (0.4, 0.1)))
    assert is_best(rows((0.5, 1.0), (0.5, 0.9)))
    assert not is_best(rows((0.5, 1.0), (0.5, 1.0)))


def test_bfloat16_computes_logits_close_to_float32_and_returns_float32(toys):
    model = small_model()
    exact, _ = predict(model, toys[1], CPU)
    rough, _ = predict(model, toys[1], Hardware(torch.device("cpu"), bf16=True))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


def test_recorded_steps_of_one_optimizer_read_their_rate_in_one_place():
    """A recorded step goes on reading the tensor that was there when it was recorded."""
    training = start(Config())
    groups = training.optimizer.param_groups
    keep_rates_on_device(training.optimizer)
    places = [group["lr"] for group in groups]
    set_rate(training.optimizer, 0.25)
    keep_rates_on_device(training.optimizer)  # for a second step
    assert all(group["lr"] is place for group, place in zip(groups, places, strict=True))
    assert [place.item() for place in places] == [0.25] * len(places)


def test_a_finished_run_goes_without_the_garbage_collector(toys):
    """A circle of references would keep a recorded step, and its memory, on the GPU."""
    config = Config(epochs=1)
    training = start(config)
    run(training, config, *toys)
    model = weakref.ref(training.model)
    gc.disable()
    try:
        del training
        assert model() is None
    finally:
        gc.enable()
