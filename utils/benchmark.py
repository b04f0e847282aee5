"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --models resnet18 --data PHOTOS     [any flag of train.py]
    python -m utils.benchmark --distil --experiment experiment_2  [any flag of
                                                                   knowledge_distillation.py]

For each model, or each method, rounds of two loops alternate, in one process and precision:
(a) the real training loop, augmentation, loss and metrics included;
(b) the bare step on one fixed batch, as fast as (a) could be: forward (and the teacher's),
    cross-entropy, backward, optimizer.
Prints images per second of both as medians over the rounds, and the median of the rounds' ratios.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from config import UserError, parse
from models.factory import channels_last, create_model
from utils.distillation import METHODS, Distillation
from utils.engine import CrossEntropy, Objective, Training, train_epoch
from utils.graphs import WARM_UP, GraphedStep
from utils.runs import Run, prepare
from utils.script import describe, run_script

ROUNDS = 5
SECONDS = 1.5  # of one loop in one round; no longer than an epoch
COLUMNS = "| {:38} | {:>13} | {:>13} | {:>5} | {:>11} |"
HEAD = "(a) real loop", "(b) bare step", "a/b", "peak memory"


def main(arguments: Sequence[str]) -> None:
    """Measure what the settings name on the photos of the settings."""
    words = [word for word in arguments if word != "--distil"]
    configs = parse(words, __doc__, METHODS if len(words) < len(arguments) else None)
    if configs[0].kd and configs[0].kd.teacher_checkpoint:
        raise UserError("--teacher-checkpoint: weights do not change the speed; give --teacher")
    runs = prepare([c for c in configs if (c.seed, c.fold) == (configs[0].seed, configs[0].fold)])
    describe(runs)
    print(COLUMNS.format("images per second", *HEAD))
    print("|---|---:|---:|---:|---:|")
    for run in runs:
        print(compare(run), flush=True)


def untrained(run: Run) -> tuple[nn.Module, Objective]:
    """An untrained model and its objective, with an untrained teacher if it has one."""
    config, device = run.config, run.device.device

    def new(name: str) -> nn.Module:
        model = create_model(name, len(run.data.classes), pretrained=False, seed=0)
        return channels_last(model, device)

    if config.kd is None:
        return new(config.model), CrossEntropy(config.label_smoothing)
    teacher = str(config.kd.teacher)
    return new(config.model), Distillation(config, teacher, new(teacher), device)


def compare(run: Run) -> str:
    """One row of the table."""
    config, device = run.config, run.device
    device.reset_peak_memory()
    training = Training(*untrained(run), config, device)
    epoch = run.train_batches()
    bare = bare_step(training)
    fixed = next(epoch.epoch(1))

    def real_speed(steps: int) -> float:
        batches = run.train_batches(steps * config.batch_size)
        return train_epoch(training, batches, epoch=1)["images_per_second"]

    def bare_speed(steps: int) -> float:
        training.model.train()
        started = time.perf_counter()
        for _ in range(steps):
            loss = bare(*fixed)["loss"]
        loss.item()
        return steps * config.batch_size / (time.perf_counter() - started)

    warm_up = min(WARM_UP + 1, len(epoch))
    real_speed(warm_up), bare_speed(warm_up)
    memory = device.peak_memory()
    # In a whole epoch, what it costs once weighs as much as it does in training.
    steps = max(1, min(round(SECONDS * bare_speed(1) / config.batch_size), len(epoch)))
    rounds = [(real_speed(steps), bare_speed(steps)) for _ in range(ROUNDS)]
    kd = config.kd
    name = f"{kd.teacher} teaches {config.model}, {kd.method}" if kd else config.model
    speeds = (f"{median(values):.1f}" for values in zip(*rounds, strict=True))
    ratio = median(one / other for one, other in rounds)
    gigabytes = f"{memory / 1e9:.2f} GB" if memory else ""
    return COLUMNS.format(f"{name}, {config.image_size} px", *speeds, f"{ratio:.3f}", gigabytes)


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


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
