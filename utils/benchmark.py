"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --models resnet18 --image-size 64 [any flag of train.py]

For each model it alternates rounds of (a) the real training loop, augmentation and metrics
included, and (b) the bare step of the same model, forward, backward and optimizer, on one fixed
batch; prints images per second of both as medians over the rounds, and the median of a/b.
"""

import statistics
import sys
import time
from collections.abc import Sequence

from torch.nn.functional import cross_entropy

from config import model_names, parse
from data.batches import TrainBatches
from models.factory import create_model, to_device
from utils.engine import Batch, CrossEntropy, Hardware, Training, make_optimizer, train_epoch
from utils.script import run_script
from utils.setup import Setup, describe, prepare

ROUNDS = 7
STEPS = 8


def main(arguments: Sequence[str]) -> None:
    """Measure every model of the settings on the photos of the settings."""
    config = parse(arguments, __doc__)
    setup = prepare(config)
    describe(setup)
    for name in model_names(config):
        model = create_model(name, len(setup.classes), pretrained=False, seed=0)
        model = to_device(model, setup.hardware.device)
        objective = CrossEntropy(config.label_smoothing)
        training = Training(model, objective, make_optimizer(model, objective.own, config))
        batches = setup.train_batches(seed=0, steps=STEPS)
        rounds = [one_round(training, batches, setup) for _ in range(ROUNDS + 1)][1:]
        real, bare = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        print(
            f"{name} at {setup.image_size} px, batch {config.batch_size}: real loop {real:.1f}, "
            f"bare step {bare:.1f} images/s, ratio {ratio:.3f} (median of {ROUNDS} rounds)"
        )


def one_round(training: Training, batches: TrainBatches, setup: Setup) -> tuple[float, float]:
    """Images per second of the real loop and of the bare step, one right after the other."""
    row = train_epoch(training, batches, setup.config, setup.hardware, seed=0, epoch=1)
    batch = next(iter(batches.epoch(1)))
    return row["images_per_second"], bare_speed(training, batch, setup.hardware)


def bare_speed(training: Training, batch: Batch, hardware: Hardware) -> float:
    """Images per second of nothing but forward, backward and optimizer on one batch."""
    images, labels = batch
    started = time.perf_counter()
    for _ in range(STEPS):
        with hardware.autocast():
            loss = cross_entropy(training.model(images).float(), labels)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
    loss.item()
    return STEPS * len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
