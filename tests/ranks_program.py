"""What test_ranks.py runs in one process and in two: the same training, step and numbers.

    python -m tests.ranks_program FOLDER
    torchrun --nproc-per-node=2 -m tests.ranks_program FOLDER

Each rank writes what it has into FOLDER/rank<n>of<count>.pt. BatchNorm is frozen, since the
statistics of half a batch are others.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from config import METHODS, Config
from data.batches import EvalBatches, Normalise, TrainBatches
from models.factory import create_model
from utils import ranks
from utils.distillation import Distillation, Lesson
from utils.engine import CrossEntropy, Hardware, Objective, Training, fit, make_optimizer

CPU = torch.device("cpu")
CLASSES, SIDE, BATCH = 5, 32, 8
CONFIG = Config(epochs=2, batch_size=BATCH, optimizer="sgd", lr=0.01, clip_norm=1.0, mixup=0.4)


def frozen(module: nn.Module) -> nn.Module:
    """The same network with BatchNorm that only scales."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            frozen(child)
    return module


def new_objective(method: str) -> Objective:
    if method == "none":
        return CrossEntropy()
    teacher = create_model("resnet18", CLASSES, pretrained=False, seed=1)
    lesson = Lesson(method, 0.7, 4.0, METHODS[method])
    return Distillation(
        lesson, "resnet18", "resnet18", teacher, label_smoothing=0.0, seed=0, device=CPU
    )


def new_training(method: str) -> Training:
    model = frozen(create_model("resnet18", CLASSES, pretrained=False, seed=0))
    objective = new_objective(method)
    return Training(model, objective, make_optimizer(model, objective.own, CONFIG))


def gradients(method: str) -> dict[str, torch.Tensor]:
    """Of one batch, by the names of the learner's parameters."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=draw)
    labels = torch.randint(CLASSES, (BATCH,), generator=draw)
    training = new_training(method)
    training.model.train()
    mine = ranks.share(BATCH)
    loss, _, _ = training.learner(images[mine], labels[mine])
    loss.backward()
    return {
        f"{of}.{name}": parameter.grad
        for of, module in (("model", training.model), ("own", training.objective.own))
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def trained() -> dict[str, Any]:
    """Weights and history after two epochs on photos whose numbers two do not divide."""
    draw = np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(0, 256, (43, SIDE, SIDE, 3), dtype=np.uint8))
    labels = draw.integers(0, CLASSES, 43)
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, CPU)
    train = TrainBatches(
        pixels, np.arange(26), labels[:26], classes=CLASSES, size_in=lambda _: SIDE,
        batch_size=BATCH, seed=0, crop_scale=0.35, mixup=CONFIG.mixup, normalise=normalise,
        device=CPU, share=ranks.share(BATCH),
    )  # fmt: skip
    mine = ranks.share(17)
    val = EvalBatches(
        pixels, np.arange(26, 43)[mine], labels[26:][mine], size=SIDE, batch_size=4,
        normalise=normalise, device=CPU,
    )  # fmt: skip
    training = new_training("fitnet")
    saved: list[int] = []
    fit(
        training, train, val, CONFIG, Hardware(CPU, bf16=False), seed=0,
        after_epoch=lambda training: saved.append(len(training.history)),
    )  # fmt: skip
    weights = training.model.state_dict() | training.objective.own.state_dict()
    return {"weights": weights, "history": training.history, "saved": saved}


def main(folder: Path) -> None:
    with ranks.joined():
        content = {method: gradients(method) for method in ("none", *METHODS)}
        torch.save(
            {"gradients": content, **trained()},
            folder / f"rank{ranks.rank()}of{ranks.count()}.pt",
        )
        print("written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
