"""How much of the hardware's speed the training loop delivers.

    python -m utils.benchmark --models resnet18 --data PHOTOS     [any flag of train.py]

For each model, rounds of two loops alternate, in one process and precision:
(a) the real training loop, augmentation, loss and metrics included;
(b) the bare step on one fixed batch, as fast as (a) could be: forward, cross-entropy, backward,
    optimizer.
Prints images per second of both as medians over the rounds, and the median of the rounds' ratios.
"""

import sys
import time
from collections.abc import Sequence
from statistics import median

from torch import Tensor
from torch.nn.functional import cross_entropy

from config import parse
from models.factory import channels_last, create_model
from utils.engine import CrossEntropy, Step, Training, train_epoch
from utils.graphs import WARM_UP, GraphedStep
from utils.runs import Run, prepare
from utils.script import describe, run_script

ROUNDS = 5
SECONDS = 1.5  # of one loop in one round; no longer than an epoch


def main(arguments: Sequence[str]) -> None:
    """Measure the settings' models on the settings' photos."""
    runs = prepare(parse(arguments, __doc__))
    describe(runs)
    print("| images per second | (a) real loop | (b) bare step | a/b |\n|---|---:|---:|---:|")
    for run in runs:
        print(compare(run), flush=True)


def compare(run: Run) -> str:
    """One row of the table, of an untrained model."""
    config, device = run.config, run.device
    model = create_model(config.model, len(run.data.classes), pretrained=False, seed=0)
    training = Training(channels_last(model, device.device), CrossEntropy(), config, device)
    epoch = run.train_batches()
    fixed = next(epoch.epoch(1))

    def bare_step(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with device.autocast():
            loss = cross_entropy(model(images).float(), labels)
        training.module.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
        return {"loss": loss.detach()}

    step: Step = GraphedStep(bare_step, training.optimizer) if device.graphs else bare_step

    def real_speed(steps: int) -> float:
        batches = run.train_batches(steps * config.batch_size)
        return train_epoch(training, batches, epoch=1)["images_per_second"]

    def bare_speed(steps: int) -> float:
        model.train()
        started = time.perf_counter()
        for _ in range(steps):
            loss = step(*fixed)["loss"]
        loss.item()
        return steps * config.batch_size / (time.perf_counter() - started)

    warm_up = min(WARM_UP + 1, len(epoch))
    real_speed(warm_up), bare_speed(warm_up)
    # In a whole epoch, what it costs once weighs as much as it does in training.
    steps = max(1, min(round(SECONDS * bare_speed(1) / config.batch_size), len(epoch)))
    rounds = [(real_speed(steps), bare_speed(steps)) for _ in range(ROUNDS)]
    real, bare = (median(speeds) for speeds in zip(*rounds, strict=True))
    ratio = median(one / other for one, other in rounds)
    return f"| {config.model}, {config.image_size} px | {real:.1f} | {bare:.1f} | {ratio:.3f} |"


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
