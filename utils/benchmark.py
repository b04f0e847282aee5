"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --data PHOTOS                       every model, both experiments
    python -m utils.benchmark --models resnet18 --image-size 64   [any flag of train.py]
    python -m utils.benchmark --distil --experiment experiment_2  [any flag of
                                                                   knowledge_distillation.py]

For each model, and each teacher with its student, rounds of three loops alternate:
(a) the real training loop, augmentation, loss and metrics included;
(b) the bare step on one fixed batch, as fast as (a) could be: forward (and the teacher's),
    cross-entropy, backward, optimizer;
(c) what one writes first, in a process of its own: ImageFolder, Pillow in DataLoader workers,
    float32, the same objective.
Prints images per second of each as medians over the rounds and medians of the rounds' ratios; then
how long a command takes to its first step, without and with decoded photos, and how fast photos
are decoded by one thread.
"""

import ctypes
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from config import EXPERIMENTS, METHODS, MODELS, ROOT, Config, pair, parse
from data.cache import read_square
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
from utils.setup import Setup, describe, prepare

ROUNDS = 5
# A round's; what an epoch costs once is to weigh as little as it does in a real one.
STEPS = {"cpu": 16, "cuda": 80}
STARTS = 3  # with decoded photos
DECODED = 200

ROW = "| {:38} | {:>14} | {:>14} | {:>5} | {:>15} | {:>6} | {:>11} |"
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
    flags = {"--distil", "--first-step"} & set(arguments)
    words = [word for word in arguments if word not in flags]
    config = parse(words, __doc__, distils="--distil" in flags)
    setup = prepare(config)
    if "--first-step" in flags:
        model, objective, _ = contenders(setup, config, "--distil" in flags)[0][1]()
        training = Training(model, objective, make_optimizer(model, objective.own, config))
        train_epoch(
            training,
            setup.train_batches(config, 0, steps=1),
            config,
            setup.hardware,
            seed=0,
            epoch=1,
        )
        return
    describe(setup)
    print(ROW.format(*HEAD))
    print("|---|---:|---:|---:|---:|---:|---:|")
    distils = "--distil" in flags
    for number, (name, make) in enumerate(contenders(setup, config, distils)):
        with plain_loop(words, distils, number, steps_of(setup)) as plain_speed:
            print(compare(setup, f"{name}, {setup.image_size} px", make, plain_speed))
    print(f"\nto the first step: {first_step(arguments)}")
    print(f"decoding, one thread: {decoding(setup)}")


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
                partial(new_pupil, setup, teacher, student, method),
            )
            for method in config.method
        ]
    return made


def new_baseline(setup: Setup, name: str) -> Made:
    return new_model(setup, name), CrossEntropy(setup.config.label_smoothing), None


def new_model(setup: Setup, name: str) -> nn.Module:
    model = create_model(name, len(setup.classes), pretrained=False, seed=0)
    return to_device(model, setup.hardware.device)


def new_pupil(setup: Setup, teacher: str, student: str, method: str) -> Made:
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


def steps_of(setup: Setup) -> int:
    """Of a round."""
    return STEPS[setup.hardware.device.type]


def compare(
    setup: Setup, name: str, make: Callable[[], Made], plain_speed: Callable[[], float]
) -> str:
    """One row of the table."""
    config, hardware = setup.config, setup.hardware
    steps = steps_of(setup)
    model, objective, teacher = make()
    training = Training(model, objective, make_optimizer(model, objective.own, config))
    batches = setup.train_batches(config, seed=0, steps=steps)
    fixed = next(iter(batches.epoch(1)))

    def real() -> float:
        row = train_epoch(training, batches, config, hardware, seed=0, epoch=1)
        return row["images_per_second"]

    gc.collect()
    forget_peak(hardware.device)
    real()
    peak = peak_memory(hardware.device)
    bare_speed(training, fixed, hardware, teacher, steps)
    rounds = [
        (real(), bare_speed(training, fixed, hardware, teacher, steps), plain_speed())
        for _ in range(ROUNDS)
    ]
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
        f"{peak:.0f} MB",
    )


def bare_speed(
    training: Training, batch: Batch, hardware: Hardware, teacher: nn.Module | None, steps: int
) -> float:
    """Images per second of nothing but forward, backward and optimizer on one batch, after the
    forward of the teacher if there is one; as a CUDA graph with --cuda-graphs."""
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
    for _ in range(WARM_UP + 1 if hardware.graphs else 0):
        quick(images, labels)
    started = time.perf_counter()
    for _ in range(steps):
        loss = quick(images, labels)["loss"]
    loss.item()
    return steps * len(images) / (time.perf_counter() - started)


@contextmanager
def plain_loop(
    words: Sequence[str], distils: bool, number: int, steps: int
) -> Iterator[Callable[[], float]]:
    """A plain loop of the contender of that number, waiting in another process, whose memory is
    managed as usual; each call gives the speed of one round of it."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_rounds, args=(words, distils, number, steps, there))
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


def serve_rounds(
    words: Sequence[str], distils: bool, number: int, steps: int, asked: Connection
) -> None:
    """The other process: says that it is ready, and then the speed of a round for each word that
    comes, until no more can come."""
    config = replace(parse(words, "", distils=distils), photos_on="host")  # it opens the files
    with redirect_stdout(None):
        setup = prepare(config)
    model, objective, _ = contenders(setup, config, distils)[number][1]()
    loop = PlainLoop(setup, model, objective)
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        asked.send("ready")
        while asked.recv():
            asked.send(loop.speed(steps))


class Listed(ImageFolder):
    """Of the classes that are given: without hidden folders, which would shift the labels."""

    def __init__(self, classes: Sequence[str], *arguments: Any, **more: Any) -> None:
        self.numbers = {name: label for label, name in enumerate(classes)}
        super().__init__(*arguments, **more)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        return list(self.numbers), self.numbers


class PlainLoop:
    """The loop that one writes first: nothing in it is slow on purpose, and nothing made fast."""

    def __init__(self, setup: Setup, model: nn.Module, objective: Objective) -> None:
        config, photos = setup.config, setup.decoded.photos
        size = setup.train_batches(config, seed=0).size_in(1)
        chosen = {str(photos.root / photos.paths[i]) for i in setup.split.indices("train")}
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
            Listed(
                photos.classes,
                str(photos.root),
                augment,
                is_valid_file=chosen.__contains__,
                allow_empty=True,
            ),
            config.batch_size,
            shuffle=True,
            num_workers=os.cpu_count() or 1,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )
        self.model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.objective = objective
        parameters = [*model.parameters(), *objective.own.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr)

    def speed(self, steps: int) -> float:
        """Images per second, once the workers have started and what they made ahead is used up."""
        batches = iter(self.loader)
        ahead = 1 + self.loader.num_workers * (self.loader.prefetch_factor or 0)
        self.model.train()
        self.train(islice(batches, ahead))
        started = time.perf_counter()
        return self.train(islice(batches, steps)) / (time.perf_counter() - started)

    def train(self, batches: Iterable[Batch]) -> int:
        """Train on these batches; returns the number of photos in them."""
        photos, losses = 0, 0.0
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device)
            loss, _, _ = self.objective(self.model, images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses += loss.item()
            photos += len(images)
        return photos


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from here; where the system cannot, it counts from the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists("/proc/self/clear_refs"):
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what the model before has left, and this process keeps
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory(device: torch.device) -> float:
    """MB that the GPU's tensors, or on the CPU the whole process, needed at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def first_step(arguments: Sequence[str]) -> str:
    """Seconds from the start of a command to the end of its first training step and its exit, with
    an empty cache and, as a median, with the photos decoded."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(1 + STARTS):
            started = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "utils.benchmark", "--first-step"),
                    *arguments,
                    *("--cache", cache),
                ],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds.append(time.perf_counter() - started)
    cold, *warm = seconds
    return (
        f"{cold:.1f} s with the photos to be decoded, {statistics.median(warm):.1f} s from then on"
    )


def decoding(setup: Setup) -> str:
    """Photos per second of our decoder and of Pillow's open, convert and resize; their ratio."""
    photos, side = setup.decoded.photos, setup.decoded.pixels.shape[1]
    every = max(1, len(photos) // DECODED)
    paths = [photos.root / path for path in photos.paths[::every]]

    def plainly(path: Path) -> None:
        with suppress(OSError):  # ours is more patient with files that miss their end
            Image.open(path).convert("RGB").resize((side, side))

    def speed(decode: Callable[[Path], object]) -> float:
        started = time.perf_counter()
        for path in paths:
            decode(path)
        return len(paths) / (time.perf_counter() - started)

    rounds = [(speed(lambda path: read_square(path, side)), speed(plainly)) for _ in range(ROUNDS)]
    ours, plain = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    return f"{ours:.0f} photos/s, Pillow's open and resize {plain:.0f}, ratio {ratio:.2f}"


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
