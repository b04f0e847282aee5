"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --data PHOTOS                       every model, both experiments
    python -m utils.benchmark --models resnet18 --image-size 64   [any flag of train.py]
    python -m utils.benchmark --distil --experiment experiment_2  [any flag of
                                                                   knowledge_distillation.py]

For each model, and each teacher with its student, rounds of three loops alternate for about a
minute:
(a) the real training loop, augmentation, loss and metrics included;
(b) the bare step on one fixed batch, as fast as (a) could be: forward (and the teacher's),
    cross-entropy, backward, optimizer, in the same process and precision;
(c) what one writes first, in a process of its own: Pillow in DataLoader workers, float32, the same
    objective.
Prints images per second of each as medians over the rounds, and medians of the rounds' ratios.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from config import EXPERIMENTS, METHODS, MODELS, Config, pair, parse
from models.factory import MEAN, STD, create_model, to_device
from utils.distillation import Distillation, Lesson
from utils.engine import (
    Batch,
    CrossEntropy,
    Hardware,
    Objective,
    Training,
    make_optimizer,
    train_epoch,
)
from utils.graphs import WARM_UP, GraphedStep
from utils.script import run_script
from utils.setup import Setup, describe, forget_peak_memory, peak_memory, prepare

ROUNDS = 5
SECONDS = 1.5  # of one loop in one round; no longer than an epoch

ROW = "| {:38} | {:>13} | {:>13} | {:>5} | {:>14} | {:>5} | {:>11} |"
HEAD = (
    "images per second",
    "(a) real loop",
    "(b) bare step",
    "a/b",
    "(c) plain loop",
    "a/c",
    "peak memory",
)


def main(arguments: Sequence[str]) -> None:
    """Measure what the settings name on the photos of the settings."""
    distils = "--distil" in arguments
    words = [word for word in arguments if word != "--distil"]
    config = parse(words, __doc__, distils=distils)
    setup = prepare(config)[0]
    describe([setup])
    print(ROW.format(*HEAD))
    print("|---|---:|---:|---:|---:|---:|---:|")
    for number, (name, make) in enumerate(contenders(setup, config, distils)):
        with plain_loop(words, distils, number) as plain_speed:
            print(compare(setup, f"{name}, {setup.image_size} px", make, plain_speed), flush=True)


Made = tuple[nn.Module, Objective, nn.Module | None]


def contenders(
    setup: Setup, config: Config, distils: bool = False
) -> list[tuple[str, Callable[[], Made]]]:
    """Names of what is to be measured, and how to make its model, objective and teacher."""
    experiments = [config]
    made: list[tuple[str, Callable[[], Made]]] = []
    if not distils:
        names = config.models or MODELS
        made = [(name, partial(new_baseline, setup, name)) for name in names]
        others = [] if config.models else EXPERIMENTS
        experiments = [replace(config, experiment=name) for name in others]
    for teacher, student in map(pair, experiments):
        made += [
            (
                f"{teacher} teaches {student}, {method}",
                partial(new_student, setup, teacher, student, method),
            )
            for method in config.method
        ]
    return made


def new_baseline(setup: Setup, name: str) -> Made:
    return new_model(setup, name), CrossEntropy(setup.config.label_smoothing), None


def new_model(setup: Setup, name: str) -> nn.Module:
    model = create_model(name, len(setup.classes), pretrained=False, seed=0)
    return to_device(model, setup.hardware.device)


def new_student(setup: Setup, teacher: str, student: str, method: str) -> Made:
    config = setup.config
    objective = Distillation(
        Lesson(method, config.alpha[0], config.temperature[0], METHODS[method]),
        student,
        teacher,
        new_model(setup, teacher),
        label_smoothing=config.label_smoothing,
        seed=0,
        device=setup.hardware.device,
    )
    return new_model(setup, student), objective, objective.teacher_model


def compare(
    setup: Setup, name: str, make: Callable[[], Made], plain_speed: Callable[[], float]
) -> str:
    """One row of the table."""
    config, hardware = setup.config, setup.hardware
    forget_peak_memory(hardware.device)
    model, objective, teacher = make()
    training = Training(model, objective, make_optimizer(model, objective.own, config))
    epoch = len(setup.train_batches(config, seed=0))
    warm_up = WARM_UP + 1 if hardware.graphs else 1

    def real_speed(steps: int) -> float:
        batches = setup.train_batches(config, 0, steps=min(steps, epoch))
        row = train_epoch(training, batches, config, hardware, seed=0, epoch=1)
        return row["images_per_second"]

    real_speed(warm_up)
    memory = peak_memory(hardware.device)
    fixed = next(iter(setup.train_batches(config, seed=0).epoch(1)))
    bare_speed = bare_loop(training, fixed, hardware, teacher)
    bare_speed(warm_up)
    steps = steps_of_a_round(bare_speed(1) / config.batch_size, epoch)
    rounds = [(real_speed(steps), bare_speed(steps), plain_speed()) for _ in range(ROUNDS)]
    a, b, c = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
    of_bare = statistics.median(a / b for a, b, _ in rounds)
    of_plain = statistics.median(a / c for a, _, c in rounds)
    return ROW.format(
        name,
        f"{a:.1f}",
        f"{b:.1f}",
        f"{of_bare:.3f}",
        f"{c:.1f}",
        f"{of_plain:.2f}",
        f"{memory / 1e9:.2f} GB" if memory else "",
    )


def steps_of_a_round(a_second: float, epoch: int) -> int:
    """As many as take SECONDS, one at least and an epoch's at most: in a whole epoch, what it costs
    once weighs as much as it does in training."""
    return max(1, min(round(SECONDS * a_second), epoch))


def bare_loop(
    training: Training, batch: Batch, hardware: Hardware, teacher: nn.Module | None
) -> Callable[[int], float]:
    """Of so many steps the images per second of nothing but forward, backward and optimizer on one
    batch, after the forward of the teacher if there is one; as a CUDA graph where (a) is one."""
    images, labels = batch

    def step(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with hardware.autocast():
            if teacher:
                with torch.no_grad():
                    teacher(images)
            loss = cross_entropy(training.model(images).float(), labels)
        training.learner.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
        return {"loss": loss.detach()}

    quick = GraphedStep(step, training.optimizer) if hardware.graphs else step

    def speed(steps: int) -> float:
        training.model.train()
        started = time.perf_counter()
        for _ in range(steps):
            loss = quick(images, labels)["loss"]
        loss.item()
        return steps * len(images) / (time.perf_counter() - started)

    return speed


@contextmanager
def plain_loop(words: Sequence[str], distils: bool, number: int) -> Iterator[Callable[[], float]]:
    """A plain loop of the contender of that number, waiting in another process, whose memory is
    managed as usual; each call gives the speed of one round of it."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_rounds, args=(words, distils, number, there))
    process.start()
    there.close()

    def speed() -> float:
        here.send("go")
        measured: float = here.recv()
        return measured

    try:
        here.recv()  # it has started, which would have taken time from our rounds
        yield speed
    finally:
        here.close()
        process.join()


def serve_rounds(words: Sequence[str], distils: bool, number: int, asked: Connection) -> None:
    """The other process: says that it is ready, and then the speed of a round for each word that
    comes, until no more can come."""
    config = replace(parse(words, "", distils=distils), photos_on="host")  # it opens the files
    with redirect_stdout(None):
        setup = prepare(config)[0]
    model, objective, _ = contenders(setup, config, distils)[number][1]()
    loop = PlainLoop(setup, model, objective)
    loop.speed(0)  # warms up
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        asked.send("ready")
        while asked.recv():
            asked.send(loop.speed(SECONDS))


class PhotoFiles(Dataset[tuple[Tensor, int]]):
    """The training photos, read from their files each time."""

    def __init__(self, setup: Setup, transform: Callable[[Image.Image], Tensor]) -> None:
        photos, chosen = setup.decoded.photos, setup.split.indices("train")
        self.files: list[tuple[Path, int]] = [
            (photos.root / photos.paths[i], int(photos.labels[i])) for i in chosen
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        path, label = self.files[place]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


class PlainLoop:
    """The loop that one writes first: nothing in it is slow on purpose, and nothing made fast."""

    def __init__(self, setup: Setup, model: nn.Module, objective: Objective) -> None:
        config = setup.config
        size = setup.train_batches(config, seed=0).size_in(1)
        augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(config.crop_scale, 1)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        self.device = setup.hardware.device
        self.loader: DataLoader[Any] = DataLoader(
            PhotoFiles(setup, augment),
            config.batch_size,
            shuffle=True,
            num_workers=min(os.cpu_count() or 1, 16),
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        self.model = model.to(memory_format=torch.contiguous_format)
        self.objective = objective
        parameters = [*model.parameters(), *objective.own.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr)

    def speed(self, seconds: float) -> float:
        """Images per second over about so many seconds, one step at least and an epoch at most,
        once the workers have started and what they made ahead is used up."""
        batches = iter(self.loader)
        for _ in range(min(self.ahead(), len(self.loader) - 1)):
            next(batches)
        self.model.train()
        photos, losses, started = 0, 0.0, time.perf_counter()
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            loss, _, _ = self.objective(self.model, images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses += loss.item()
            photos += len(images)
            elapsed = time.perf_counter() - started  # ending the workers takes time, too
            if elapsed > seconds:
                break
        return photos / elapsed

    def ahead(self) -> int:
        """How many batches the workers make while none is asked for."""
        return 1 + self.loader.num_workers * (self.loader.prefetch_factor or 0)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
