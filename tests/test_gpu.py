"""What only a GPU can show: recorded steps, photos on the device, whole commands."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import data.batches
from config import METHODS, Config
from data.batches import (
    EvalBatches,
    Normalise,
    TrainBatches,
    crops_as_products,
    growing_side,
    place,
)
from models.factory import create_model, to_device
from tests.photo_folders import make_photos
from utils.distillation import Distillation, Lesson
from utils.engine import (
    CrossEntropy,
    Hardware,
    Objective,
    Training,
    fit,
    make_optimizer,
    predict,
    set_rate,
)
from utils.graphs import GraphedStep, keep_rates_on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROOT = Path(__file__).parents[1]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
PHOTOS, SIDE, CLASSES = 53, 64, 4
LABELS = np.arange(PHOTOS) * 7 % CLASSES
EPOCHS = 3
# SGD, since Adam makes rounding errors as large as gradients, and slow, since they grow with steps.
CONFIG = Config(epochs=EPOCHS, batch_size=8, optimizer="sgd", lr=0.002, clip_norm=1.0)


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch):
    """The same kernels each time, in all of float32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def pixels() -> np.ndarray:
    """Photos of coarse blocks, whose colour tells the class."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 200, (PHOTOS, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    blocks[np.arange(PHOTOS), :, :, LABELS % 3] += 55
    return blocks.astype(np.uint8)


def train_batches(
    device: torch.device, where: str = "auto", first: float = 1.0, mixup: float = 0.0
) -> TrainBatches:
    return TrainBatches(
        place(pixels(), device, where), np.arange(PHOTOS), LABELS, classes=CLASSES,
        size_in=partial(growing_side, epochs=EPOCHS, side=SIDE, first=first), batch_size=8, seed=0,
        crop_scale=0.35, mixup=mixup, normalise=Normalise((0.5,) * 3, (0.25,) * 3, device),
        device=device,
    )  # fmt: skip


def val_batches(device: torch.device, where: str = "auto") -> EvalBatches:
    """Seven batches, the last of five photos."""
    return EvalBatches(
        place(pixels(), device, where), np.arange(PHOTOS), LABELS, size=SIDE, batch_size=8,
        normalise=Normalise((0.5,) * 3, (0.25,) * 3, device), device=device,
    )  # fmt: skip


def network(seed: int, device: torch.device = GPU) -> nn.Module:
    return to_device(create_model("resnet18", CLASSES, pretrained=False, seed=seed), device)


def start(method: str, config: Config = CONFIG, model: nn.Module | None = None) -> Training:
    """A student of this method, or for "none" a baseline."""
    objective: Objective = CrossEntropy(0.1)
    if method != "none":
        objective = Distillation(
            Lesson(method, 0.7, 2.0, METHODS[method]), "resnet18", "resnet18", network(7),
            label_smoothing=0.1, seed=0, device=GPU,
        )  # fmt: skip
    model = model or network(1)
    return Training(model, objective, make_optimizer(model, objective.own, config))


def train(
    training: Training, graphs: bool, bf16: bool = False, config: Config = CONFIG, first: float = 1
) -> Training:
    """The training run at its end; its step was recorded if it was to be."""
    hardware = Hardware(GPU, bf16, graphs)
    keep_rates_on_device(training.optimizer)  # in float32, as in a recorded step
    fit(
        training, train_batches(GPU, first=first), val_batches(GPU), config, hardware, seed=0,
        after_epoch=lambda _: None,
    )  # fmt: skip
    assert (getattr(training.step, "recorded", None) is not None) == graphs
    return training


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_alike(first: Training, second: Training) -> None:
    """The weights moved along one path. What a last bit of the rate changes is 2 % of its length at
    most, in bfloat16; a rate that stays what it was when the step was recorded changes 21 %."""
    moved = (weights(first.model) - weights(network(1))).norm()
    assert moved > 0
    assert (weights(first.model) - weights(second.model)).norm() < 0.05 * moved
    assert len(first.history) == len(second.history) == EPOCHS
    for one, other in zip(first.history, second.history, strict=True):
        for name in ("loss/train", "ce/train", "loss/val"):
            assert one[name] == pytest.approx(other[name], rel=0.05), name


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("method", ["none", *METHODS])
def test_replayed_steps_train_as_single_kernels_do(method, bf16):
    eager, replayed = (train(start(method), graphs, bf16) for graphs in (False, True))
    assert eager.history[-1]["loss/train"] < eager.history[0]["loss/train"]
    assert_alike(eager, replayed)


def test_images_that_grow_are_recorded_anew():
    eager, replayed = (train(start("none"), graphs, first=0.5) for graphs in (False, True))
    assert_alike(eager, replayed)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_goes_on_as_the_whole_one(optimizer):
    config = Config(epochs=EPOCHS, batch_size=8, optimizer=optimizer, lr=0.001)
    file = io.BytesIO()
    whole = start("fitnet", config)
    hardware = Hardware(GPU, bf16=False, graphs=True)
    fit(
        whole, train_batches(GPU), val_batches(GPU), config, hardware, seed=0,
        after_epoch=lambda now: torch.save(now.state(), file) if len(now.history) == 1 else None,
    )  # fmt: skip
    file.seek(0)
    again = start("fitnet", config, network(9))
    again.load_state(torch.load(file, map_location="cpu", weights_only=True))
    assert len(again.history) == 1
    assert_alike(whole, train(again, graphs=True, config=config))


def test_a_finished_run_leaves_the_gpu_to_the_next():
    def memory_after_a_run() -> int:
        training = start("kd")
        train(training, graphs=True)
        del training
        return torch.cuda.memory_allocated()

    # Weights of student and teacher, and momenta, are 134 MB.
    assert memory_after_a_run() + 64e6 > memory_after_a_run()


def test_two_recorded_steps_of_one_optimizer_alternate():
    """Each reads the learning rate where the other does."""
    images = torch.rand(8, 3, SIDE, SIDE, device=GPU).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8, device=GPU) % CLASSES
    ends = []
    for graphs in (False, True):
        model = network(3)
        optimizer = make_optimizer(model, nn.ModuleDict(), CONFIG)
        keep_rates_on_device(optimizer)

        def step(
            images: Tensor, labels: Tensor, scale: float, model: nn.Module, optimizer: Any
        ) -> dict[str, Tensor]:
            loss = scale * cross_entropy(model(images), labels)
            model.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return {"loss": loss.detach()}

        steps: list[Any]
        steps = [partial(step, scale=s, model=model, optimizer=optimizer) for s in (1.0, 0.5)]
        if graphs:
            steps = [GraphedStep(one, optimizer) for one in steps]
        for number in range(16):
            set_rate(optimizer, 0.01 / (1 + number))
            loss = steps[number % 2](images, labels)["loss"]
            assert loss.isfinite()
        ends.append(model.state_dict()["fc.weight"])
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


class Reading(nn.Module):
    """A network that cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits if logits.mean().item() < 1e9 else -logits


def test_a_step_that_reads_a_value_back_runs_eagerly_and_says_so(capsys):
    plain = train(start("none"), graphs=False)
    training = start("none", model=Reading())
    hardware = Hardware(GPU, bf16=False, graphs=True)
    fit(
        training, train_batches(GPU), val_batches(GPU), CONFIG, hardware, seed=0,
        after_epoch=lambda _: None,
    )  # fmt: skip
    assert capsys.readouterr().out.count("runs eagerly") == 1
    assert_alike(plain, training)


def test_validation_counts_an_odd_last_batch():
    logits, labels = predict(network(1), val_batches(GPU), Hardware(GPU, bf16=False))
    expected, _ = predict(network(1, CPU), val_batches(CPU), Hardware(CPU, bf16=False))
    assert labels.tolist() == LABELS.tolist()
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)


def levels(batches: TrainBatches) -> tuple[Tensor, Tensor]:
    """All images of an epoch as grey levels, and the labels, on the CPU."""
    pairs = list(batches.epoch(1))
    assert all(tensor.device.type == batches.device.type for pair in pairs for tensor in pair)
    images, labels = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
    return (images * 0.25 + 0.5) * 255, labels


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_batches_are_those_of_the_cpu(where, monkeypatch):
    """The CPU's way rounds to grey levels twice, the GPU's does not at all."""
    images, labels = levels(train_batches(GPU, where, mixup=0.3))
    expected, same_labels = levels(train_batches(CPU, mixup=0.3))
    torch.testing.assert_close(images, expected, atol=1.01, rtol=0)
    torch.testing.assert_close(labels, same_labels)
    monkeypatch.setattr(data.batches, "crops_one_by_one", crops_as_products)
    exact, _ = levels(train_batches(CPU, mixup=0.3))
    torch.testing.assert_close(images, exact, atol=0.3, rtol=0)


def test_photos_on_the_host_give_the_very_batches_of_those_on_the_device():
    for device, host in zip(
        train_batches(GPU, "device").epoch(2), train_batches(GPU, "host").epoch(2), strict=True
    ):
        assert torch.equal(device[0], host[0])
        assert torch.equal(device[1], host[1])


@pytest.mark.parametrize("flags", [(), ("--eager",)], ids=["graphs", "eager"])
def test_a_whole_command_states_its_peak_memory(tmp_path, flags):
    words = (
        "knowledge_distillation.py", "--data", make_photos(tmp_path / "weather"),
        "--teacher", "resnet18", "--student", "resnet18", "--image-size", "32",
        "--batch-size", "8", "--epochs", "2", "--output", tmp_path, "--cache", tmp_path / "cache",
    )  # fmt: skip
    run = subprocess.run(
        [sys.executable, *map(str, words), *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    results = [
        json.loads(path.read_text("utf-8")) for path in (tmp_path / "results").glob("*/result.json")
    ]
    assert len(results) == 2
    for result in results:
        assert result["environment"]["device"].startswith("cuda:0, ")
        # ResNet18's weights, their gradients and averages: 45 MB each.
        assert 100e6 < result["environment"]["peak_gpu_memory"] < 2e9
    assert run.stdout.count(" GB of GPU memory\n") == 2
