"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --models resnet18 --image-size 64 [any flag of train.py]
    python -m utils.benchmark --distil --experiment experiment_2 [any flag of
                                                                 knowledge_distillation.py]

For each model, or for each method of distillation, it alternates rounds of (a) the real training
loop, augmentation, loss and metrics included, and (b) the bare step of the same model on one fixed
batch: forward, cross-entropy, backward and optimizer, and with a teacher its forward, too. Prints
images per second of both as medians over the rounds, and the median of a/b.
"""

import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import METHODS, model_names, pair, parse
from data.batches import TrainBatches
from models.factory import create_model, to_device
from utils.distillation import Distillation, Lesson
from utils.engine import Batch, CrossEntropy, Hardware, Training, make_optimizer, train_epoch
from utils.script import run_script
from utils.setup import Setup, describe, prepare

ROUNDS = 7
STEPS = 8


def main(arguments: Sequence[str]) -> None:
    """Measure every model, or every method, of the settings on the photos of the settings."""
    distils = "--distil" in arguments
    config = parse([word for word in arguments if word != "--distil"], __doc__, distils=distils)
    setup = prepare(config)
    describe(setup)
    if not distils:
        for name in model_names(config):
            compare(setup, name, new_model(setup, name), CrossEntropy(config.label_smoothing), None)
        return
    teacher, student = pair(config)
    for method in config.method:
        lesson = Lesson(method, config.alpha[0], config.temperature[0], METHODS[method])
        objective = Distillation(
            lesson,
            student,
            teacher,
            new_model(setup, teacher),
            label_smoothing=config.label_smoothing,
            seed=0,
            device=setup.hardware.device,
        )
        name = f"{teacher} teaches {student} by {method}"
        compare(setup, name, new_model(setup, student), objective, objective.teacher_model)


def new_model(setup: Setup, name: str) -> nn.Module:
    model = create_model(name, len(setup.classes), pretrained=False, seed=0)
    return to_device(model, setup.hardware.device)


def compare(
    setup: Setup,
    name: str,
    model: nn.Module,
    objective: CrossEntropy | Distillation,
    teacher: nn.Module | None,
) -> None:
    """Print the speed of the real loop beside that of the bare step."""
    config = setup.config
    training = Training(model, objective, make_optimizer(model, objective.own, config))
    batches = setup.train_batches(config, seed=0, steps=STEPS)
    rounds = [one_round(training, batches, setup, teacher) for _ in range(ROUNDS + 1)][1:]
    real, bare = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(
        f"{name} at {setup.image_size} px, batch {config.batch_size}: real loop {real:.1f}, "
        f"bare step {bare:.1f} images/s, ratio {ratio:.3f} (median of {ROUNDS} rounds)"
    )


def one_round(
    training: Training, batches: TrainBatches, setup: Setup, teacher: nn.Module | None
) -> tuple[float, float]:
    """Images per second of the real loop and of the bare step, one right after the other."""
    row = train_epoch(training, batches, setup.config, setup.hardware, seed=0, epoch=1)
    batch = next(iter(batches.epoch(1)))
    return row["images_per_second"], bare_speed(training, batch, setup.hardware, teacher)


def bare_speed(
    training: Training, batch: Batch, hardware: Hardware, teacher: nn.Module | None
) -> float:
    """Images per second of nothing but forward, backward and optimizer on one batch, after the
    forward of the teacher if there is one."""
    images, labels = batch
    started = time.perf_counter()
    for _ in range(STEPS):
        with hardware.autocast():
            if teacher:
                with torch.no_grad():
                    teacher(images)
            loss = cross_entropy(training.model(images).float(), labels)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
    loss.item()
    return STEPS * len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
