"""What only a GPU can show: captured steps, photos on the device, whole commands."""

import io
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, KDConfig
from data.batches import MEAN, STD, EvalBatches, TrainBatches, to_device
from data.files import read_json
from models.factory import channels_last, create_model
from tests.photo_folders import make_photos, python, training
from utils.device import Device
from utils.distillation import METHODS, Distillation
from utils.engine import CrossEntropy, Training, evaluate, fit, train_epoch
from utils.graphs import keep_rates_on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
PHOTOS, SIDE, CLASSES = 53, 64, 4
UNLABELLED = ("--labels-per-class", 0.5, "--mixup", 0.2)
# SGD, since Adam amplifies rounding errors, and a low learning rate, since they grow with steps.
CONFIG = Config(
    image_size=SIDE, epochs=3, batch_size=8, optimizer="sgd", lr=0.002, clip_norm=1.0,
    label_smoothing=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch):
    """The same kernels each time, in all of float32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def photos(count: int = PHOTOS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, rows and labels of photos of coarse blocks, whose colour tells the class."""
    draw, labels = np.random.default_rng(0), np.arange(count) * 7 % CLASSES
    blocks = draw.integers(0, 200, (count, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    blocks[np.arange(count), :, :, labels % 3] += 55
    return blocks.astype(np.uint8), np.arange(count), labels


def train_batches(config: Config, device: torch.device, on: Any = None) -> TrainBatches:
    pixels, rows, labels = photos()
    return TrainBatches(to_device(pixels, on or device), rows, labels, CLASSES, config, device)


def val_batches(count: int, device: torch.device) -> EvalBatches:
    pixels, rows, labels = photos(count)
    return EvalBatches(to_device(pixels, device), rows, labels, SIDE, device)


def network(seed: int, device: torch.device = GPU) -> nn.Module:
    return channels_last(create_model("resnet18", CLASSES, 64, seed=seed), device)


def start(method: str, device: Device, config: Config = CONFIG, model: Any = None) -> Training:
    """A student of this method or, for "none", a baseline."""
    objective = CrossEntropy(config.label_smoothing)
    if method != "none":
        kd = KDConfig(teacher="resnet18", method=method, weight=METHODS[method].weight)
        objective = Distillation(replace(config, kd=kd), network(7), GPU)
    return Training(model or network(1), objective, config, device)


def train(training: Training, after_epoch=lambda: None) -> Training:
    """Run the training and check that its step was captured if and only if graphs are on."""
    keep_rates_on_device(training.optimizer)  # in float32, as in a captured step
    fit(training, train_batches(training.config, GPU), val_batches(PHOTOS, GPU), after_epoch)
    assert (getattr(training.step, "captured", None) is not None) == training.device.graphs
    return training


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_alike(first: Training, second: Training) -> None:
    """The weights took the same path. A change in the last bit of the rate moves them by 2 % of its
    length at most, in bfloat16; a rate frozen at its value when captured moves them by 21 %."""
    moved = (weights(first.model) - weights(network(1))).norm()
    assert moved > 0
    assert (weights(first.model) - weights(second.model)).norm() < 0.05 * moved
    assert len(first.history) == len(second.history) == CONFIG.epochs
    for one, other in zip(first.history, second.history, strict=True):
        for name in ("loss/train", "ce/train", "loss/val"):
            assert one[name] == pytest.approx(other[name], rel=0.05), name


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("method", ["none", *METHODS])
def test_replayed_steps_train_as_single_kernels_do(method, bf16):
    eager = train(start(method, Device(GPU, bf16)))
    replayed = train(start(method, Device(GPU, bf16, graphs=True)))
    assert eager.history[-1]["loss/train"] < eager.history[0]["loss/train"]
    assert_alike(eager, replayed)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_continues_as_the_whole_one(optimizer):
    config = replace(CONFIG, optimizer=optimizer, lr=0.001, clip_norm=0.0)
    device, file = Device(GPU, graphs=True), io.BytesIO()
    whole = start("fitnet", device, config)
    train(whole, lambda: torch.save(whole.state(), file) if len(whole.history) == 1 else None)
    file.seek(0)
    again = start("fitnet", device, config, network(9))
    again.load_state(torch.load(file, map_location="cpu", weights_only=True))
    assert len(again.history) == 1
    assert_alike(whole, train(again))


def test_an_epoch_keeps_up_with_its_steps():
    config, count = replace(CONFIG, image_size=224, batch_size=32), 2048
    training = start("none", Device(GPU, bf16=True, graphs=True), config)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), np.uint8)
    rows, labels = np.arange(count), np.arange(count) % CLASSES
    batches = TrainBatches(to_device(pixels, GPU), rows, labels, CLASSES, config, GPU)
    for epoch in (1, 2):  # the step is captured in the first one
        speed = train_epoch(training, batches, epoch)["images_per_second"]
    images, truth = next(batches.epoch(1))
    assert training.step
    started = time.perf_counter()
    for _ in range(len(batches)):
        loss = training.step(images, truth)["loss"]
    loss.item()
    assert speed > 0.8 * count / (time.perf_counter() - started)


def test_a_finished_run_leaves_the_gpu_to_the_next():
    def memory_after_a_run() -> int:
        train(start("kd", Device(GPU, graphs=True)))
        return torch.cuda.memory_allocated()

    # Weights of student and teacher, and momenta, are 134 MB.
    assert memory_after_a_run() + 64e6 > memory_after_a_run()


class Reading(nn.Sequential):
    """A network that cannot be captured."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        return logits if logits.mean().item() < 1e9 else -logits


def test_a_step_that_reads_a_value_back_is_refused_and_runs_eagerly():
    """In a process of its own: after a failed capture PyTorch is in no usable state."""
    for graphs in (True, False):
        code = f"train(start('none', Device(GPU, graphs={graphs}), model=Reading(network(1))))"
        run = python("-c", f"from tests.test_gpu import *; {code}")
        assert ("--eager trains without" in run.stderr) == graphs
        assert (run.returncode == 0) != graphs


def test_validation_counts_an_odd_last_batch():
    logits, labels, _ = evaluate(network(1), CrossEntropy(), val_batches(200, GPU), Device(GPU))
    expected, _, _ = evaluate(network(1, CPU), CrossEntropy(), val_batches(200, CPU), Device(CPU))
    assert labels.tolist() == photos(200)[2].tolist()
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)


def grey_levels(device: torch.device, on: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """All images of an epoch before they were normalised, and the labels, on the CPU."""
    pairs = list(train_batches(replace(CONFIG, mixup=0.3), device, on).epoch(1))
    assert all(tensor.device.type == device.type for pair in pairs for tensor in pair)
    images, labels = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images * std + mean) * 255, labels


def test_batches_are_those_of_the_cpu_wherever_the_photos_are():
    """The CPU's way rounds to grey levels twice, the GPU's does not at all."""
    images, labels = grey_levels(GPU)
    for on in (GPU, CPU):
        same_images, same_labels = grey_levels(GPU, on)
        assert torch.equal(same_images, images)
        assert torch.equal(same_labels, labels)
    expected, expected_labels = grey_levels(CPU)
    torch.testing.assert_close(images, expected, atol=1.01, rtol=0)
    torch.testing.assert_close(labels, expected_labels)


@pytest.mark.parametrize("flags", [(), ("--eager",), UNLABELLED], ids=["graphs", "eager", "few"])
def test_a_whole_command_trains_on_the_gpu(tmp_path, flags):
    more = ("--epochs", 2, "--teacher", "resnet18", "--student", "resnet18", *flags)
    words = training(make_photos(tmp_path / "weather"), tmp_path, *more)
    run = python("knowledge_distillation.py", *words)
    assert (run.returncode, run.stderr) == (0, "")
    results = [read_json(path) for path in tmp_path.glob("output/results/*/result.json")]
    assert len(results) == 2
    assert all(result["environment"]["device"].startswith("cuda:0, ") for result in results)
