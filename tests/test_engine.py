"""The training loop on toy photos, compared with plain PyTorch written out."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import Config, UserError
from data.batches import TrainBatches
from tests.toys import CLASSES, CPU, photos, tensors, train, train_batches, val_batches
from utils import engine
from utils.device import Device
from utils.engine import CrossEntropy, Training, evaluate, learning_rate, set_rate
from utils.graphs import keep_rates_on_device

CONFIG = Config(image_size=8, batch_size=8, epochs=2)  # five steps an epoch


def small_model(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(4, CLASSES),
    )  # fmt: skip


class WithAdapter(CrossEntropy):
    """The baseline's objective with a layer more, which is not the model's."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.adapters["16"] = nn.Linear(CLASSES, CLASSES)

    def __call__(self, model, images, labels):
        return super().__call__(nn.Sequential(model, self.adapters["16"]), images, labels)


def start(config: Config, model: nn.Module) -> Training:
    return Training(model, WithAdapter(config.label_smoothing), config, Device(CPU))


SGD = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), foreach=False)  # a loop, not fused


@pytest.mark.parametrize(
    ("plain_optimizer", "changed"),
    [
        (SGD, {"optimizer": "sgd", "lr": 0.1, "warmup_epochs": 0.4}),
        (ADAMW, {"lr": 0.01, "clip_norm": 0.05, "label_smoothing": 0.2, "mixup": 0.4}),
    ],
)
def test_training_is_what_plain_pytorch_computes(plain_optimizer, changed):
    config = replace(CONFIG, weight_decay=0.1, **changed)
    training = train(start(config, small_model().to(memory_format=torch.channels_last).eval()))

    model = nn.Sequential(small_model(), WithAdapter().adapters["16"])
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    optimizer, step = plain_optimizer(groups, weight_decay=config.weight_decay), 0
    for row in training.history:
        losses, plain_losses, hits = [], [], 0
        for images, labels in train_batches(config).epoch(int(row["epoch"])):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, 5, config)
            logits = model(images)
            loss = cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if most := config.clip_norm:
                assert nn.utils.clip_grad_norm_(model.parameters(), most) > most
            optimizer.step()
            losses.append(loss.item())
            plain_losses.append(cross_entropy(logits, labels).item())
            truth = labels.argmax(1) if config.mixup else labels
            hits += (logits.argmax(1) == truth).sum().item()
            step += 1
        assert row["loss/train"] == pytest.approx(sum(losses) / 5, rel=1e-5)
        assert row["ce/train"] == pytest.approx(sum(plain_losses) / 5, rel=1e-5)
        assert row["accuracy/train"] == pytest.approx(hits / 40)
        assert row["lr"] == pytest.approx(learning_rate(step - 1, 5, config))
    state = training.state()["model"] | training.state()["adapters"]
    for value, other in zip(state.values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other)
    images, labels = (torch.cat(column) for column in zip(*val_batches(config), strict=True))
    logits = model.eval()(images)
    row = training.history[-1]
    assert row["loss/val"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-4)
    assert row["ce/val"] == pytest.approx(row["loss/val"], rel=1e-5)
    assert row["accuracy/val"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    weights = nn.ParameterList([torch.ones(2, 2, dtype=torch.cfloat)])  # no fused kernel takes them
    weights[0].grad = torch.ones_like(weights[0])
    start(config, weights).optimizer.step()
    assert weights[0].real.max() < 1


class Sure(CrossEntropy):
    """Right where a batch of every other label has the larger part of a labelled photo, only."""

    def __call__(self, model, images, labels):
        larger = 2 * labels.sum(1) > labels.sum(1).min() + labels.sum(1).max()
        loss, _, parts = super().__call__(model, images, labels)
        return loss, torch.where(larger[:, None], labels, -labels), parts


def test_the_accuracy_is_over_the_photos_of_which_the_larger_part_has_a_label():
    config, (pixels, rows, labels) = replace(CONFIG, mixup=0.5), photos(64)
    labels[::2] = -1
    batches = TrainBatches(torch.from_numpy(pixels), rows, labels, CLASSES, config, CPU)
    training = Training(small_model(), Sure(), config, Device(CPU))
    assert engine.train_epoch(training, batches, 1)["accuracy/train"] == 1


def test_a_resumed_run_ends_with_the_same_bits():
    config = replace(CONFIG, epochs=5, mixup=0.2, label_smoothing=0.1)
    states: list[Any] = []
    whole = start(config, small_model(dropout=0.5).to(memory_format=torch.channels_last))
    train(whole, lambda: states.append(copy.deepcopy(whole.state())))
    again = start(config, small_model(9, dropout=0.5).to(memory_format=torch.channels_last))
    again.load_state(states[1])
    assert len(again.history) == 2
    train(again)
    assert all(map(torch.equal, tensors(whole.state()), tensors(again.state())))
    for row, other in zip(whole.history, again.history, strict=True):
        differing = {key for key in row if row[key] != other[key]}
        assert differing <= {"seconds", "wall_time", "images_per_second"}


def test_measuring_leaves_the_weights_as_they_were_and_bfloat16_is_close_to_float32():
    model = small_model(dropout=0.5)
    before = copy.deepcopy(model.state_dict())
    exact, labels, _ = evaluate(model, CrossEntropy(), val_batches(CONFIG), Device(CPU))
    rough, _, _ = evaluate(model, CrossEntropy(), val_batches(CONFIG), Device(CPU, bf16=True))
    assert not model.training
    assert not exact.requires_grad
    assert labels.tolist() == photos(200)[2].tolist()
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("count", "part"), [(46, "training"), (8, "validation")])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(count, part):
    """The first step ruins the weights; the next step or, without one, validation detects it."""
    training = start(replace(CONFIG, optimizer="sgd", lr=1e38, warmup_epochs=0), small_model())
    with pytest.raises(UserError, match=f"epoch 1: the {part} loss is no longer finite"):
        train(training, lambda: pytest.fail("saved"), count)
    assert training.history == []


@pytest.mark.parametrize(
    ("changed", "step", "share"),
    [
        ({}, 0, 1 / 20), ({}, 19, 1), ({}, 20, 1), ({}, 20 + 60, 0.75),
        ({}, 199, (1 + math.cos(math.pi * 179 / 180)) / 2), ({"warmup_epochs": 0.5}, 4, 0.5),
        ({"warmup_epochs": 10.0}, 199, 1), ({"warmup_epochs": 0.0}, 0, 1),
        ({"schedule": "constant"}, 199, 1),
    ],
)  # fmt: skip
def test_the_rate_rises_linearly_and_falls_to_zero_as_a_cosine(changed, step, share):
    config = replace(CONFIG, epochs=10, lr=0.4, warmup_epochs=1.0)
    assert learning_rate(step, 20, replace(config, **changed)) == pytest.approx(0.4 * share)


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss():
    pairs = [(0.5, 0.1), (0.6, 2.0), (0.6, 1.9), (0.4, 0.0)]
    rows = [{"accuracy/val": accuracy, "loss/val": loss} for accuracy, loss in pairs]
    assert max(rows, key=engine.validation_rank) is rows[2]


def test_captured_steps_of_one_optimizer_read_their_rate_in_one_place():
    """A captured step continues to read the tensor that was there when it was captured."""
    optimizer = start(CONFIG, small_model()).optimizer
    keep_rates_on_device(optimizer)
    places = [group["lr"] for group in optimizer.param_groups]
    keep_rates_on_device(optimizer)  # for a second step
    set_rate(optimizer, 0.25)
    assert [place.item() for place in places] == [0.25, 0.25]
