"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --models resnet18 --data PHOTOS     [any flag of train.py]
    python -m utils.benchmark --distil --experiment experiment_2  [any flag of
                                                                   knowledge_distillation.py]

For each model, or each method, rounds of three loops alternate:
(a) the real training loop, augmentation, loss and metrics included;
(b) the bare step on one fixed batch, as fast as (a) could be: forward (and the teacher's),
    cross-entropy, backward, optimizer, in the same process and precision;
(c) what one writes first, in a process of its own: Pillow in DataLoader workers, float32, AdamW,
    the same objective.
Prints images per second of each as medians over the rounds, and medians of the rounds' ratios.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms

from config import Config, UserError, parse
from data.batches import MEAN, STD, growing_side
from models.factory import channels_last, create_model
from utils.distillation import METHODS, Distillation
from utils.engine import CrossEntropy, Objective, Training, train_epoch
from utils.graphs import WARM_UP, GraphedStep
from utils.runs import Run, prepare
from utils.script import describe, run_script

ROUNDS = 5
SECONDS = 1.5  # of one loop in one round; no longer than an epoch
COLUMNS = "| {:38} | {:>13} | {:>13} | {:>5} | {:>14} | {:>5} | {:>11} |"
HEAD = "(a) real loop", "(b) bare step", "a/b", "(c) plain loop", "a/c", "peak memory"
Files = tuple[tuple[Path, int], ...]


def main(arguments: Sequence[str]) -> None:
    """Measure what the settings name on the photos of the settings."""
    words = [word for word in arguments if word != "--distil"]
    configs = parse(words, __doc__, METHODS if len(words) < len(arguments) else None)
    if configs[0].kd and configs[0].kd.teacher_checkpoint:
        raise UserError("--teacher-checkpoint: weights do not change the speed; give --teacher")
    runs = prepare([c for c in configs if (c.seed, c.fold) == (configs[0].seed, configs[0].fold)])
    describe(runs)
    print(COLUMNS.format("images per second", *HEAD))
    print("|---|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        print(compare(run), flush=True)


def make(config: Config, classes: int, device: torch.device) -> tuple[nn.Module, Objective]:
    """An untrained model and its objective, with an untrained teacher if it has one."""

    def new(name: str) -> nn.Module:
        return channels_last(create_model(name, classes, pretrained=False, seed=0), device)

    if config.kd is None:
        return new(config.model), CrossEntropy(config.label_smoothing)
    teacher = str(config.kd.teacher)
    return new(config.model), Distillation(config, teacher, new(teacher), device)


def compare(run: Run) -> str:
    """One row of the table."""
    config, data, device = run.config, run.data, run.device
    device.reset_peak_memory()
    training = Training(*make(config, len(data.classes), device.device), config, device)
    epoch = run.train_batches()
    bare = bare_step(training)
    fixed = next(epoch.epoch(1))
    photos, chosen = data.decoded.photos, data.split.indices("train")
    files = tuple((Path(photos.root, photos.paths[i]), int(photos.labels[i])) for i in chosen)

    def real_speed(steps: int) -> float:
        return train_epoch(training, run.train_batches(steps), epoch=1)["images_per_second"]

    def bare_speed(steps: int) -> float:
        training.model.train()
        started = time.perf_counter()
        for _ in range(steps):
            loss = bare(*fixed)["loss"]
        loss.item()
        return steps * config.batch_size / (time.perf_counter() - started)

    # This process keeps the memory that it frees; the plain loop's is managed as usual.
    with ProcessPoolExecutor(1, get_context("spawn")) as other:

        def plain_speed(seconds: float) -> float:
            settings = config, files, len(data.classes), device.device
            return other.submit(plain_round, seconds, *settings).result()

        warm_up = min(WARM_UP + 1, len(epoch))
        real_speed(warm_up), bare_speed(warm_up), plain_speed(0)
        memory = device.peak_memory()
        # In a whole epoch, what it costs once weighs as much as it does in training.
        steps = max(1, min(round(SECONDS * bare_speed(1) / config.batch_size), len(epoch)))
        rounds = [
            (real_speed(steps), bare_speed(steps), plain_speed(SECONDS)) for _ in range(ROUNDS)
        ]
    kd = config.kd
    name = f"{kd.teacher} teaches {config.model}, {kd.method}" if kd else config.model
    a, b, c = (f"{median(speeds):.1f}" for speeds in zip(*rounds, strict=True))
    of_bare, of_plain = (median(r[0] / r[other] for r in rounds) for other in (1, 2))
    gigabytes = f"{memory / 1e9:.2f} GB" if memory else ""
    cells = a, b, f"{of_bare:.3f}", c, f"{of_plain:.2f}", gigabytes
    return COLUMNS.format(f"{name}, {config.image_size} px", *cells)


def bare_step(training: Training) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Nothing but forward, backward and optimizer, after the forward of the teacher if there is
    one; as a CUDA graph where the training loop's step is one."""
    teacher = getattr(training.objective, "teacher_model", None)

    def step(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with training.device.autocast():
            if teacher:
                with torch.no_grad():
                    teacher(images)
            loss = cross_entropy(training.model(images).float(), labels)
        training.module.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
        return {"loss": loss.detach()}

    return GraphedStep(step, training.optimizer) if training.device.graphs else step


def plain_round(
    seconds: float, config: Config, files: Files, classes: int, device: torch.device
) -> float:
    """Images per second of the loop that one writes first, over about so many seconds, one step at
    least and an epoch at most."""
    loader, model, objective, optimizer = plain_training(config, files, classes, device)
    batches = iter(loader)
    # The clock starts when the workers have started and what they made ahead is used up.
    ahead = 1 + loader.num_workers * (loader.prefetch_factor or 0)
    for _ in range(min(ahead, len(loader) - 1)):
        next(batches)
    photos, losses, started = 0, 0.0, time.perf_counter()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        loss, _, _ = objective(model, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item()
        photos += len(images)
        elapsed = time.perf_counter() - started  # ending the workers takes time, too
        if elapsed > seconds:
            break
    return photos / elapsed


@cache
def plain_training(config: Config, files: Files, classes: int, device: torch.device) -> Any:
    """What the plain loop needs: nothing in it slow on purpose, and nothing made fast."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(growing_side(1, config), scale=(config.crop_scale, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader: DataLoader[Any] = DataLoader(
        files,  # type: ignore[arg-type]
        config.batch_size,
        shuffle=True,
        num_workers=min(os.cpu_count() or 1, 16),
        collate_fn=partial(open_photos, augment),
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    model, objective = make(config, classes, device)
    model = model.to(memory_format=torch.contiguous_format).train()
    parameters = [*model.parameters(), *objective.adapters.parameters()]
    return loader, model, objective, torch.optim.AdamW(parameters, lr=config.lr)


def open_photos(augment: Callable[[Image.Image], Tensor], files: Files) -> Any:
    """A batch of images and labels, in a worker."""
    batch = []
    for path, label in files:
        with Image.open(path) as image:
            batch.append((augment(image.convert("RGB")), label))
    return default_collate(batch)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
