"""What test_ranks.py runs in one process and in two: the same steps, the same training.

    python -m tests.ranks_program FOLDER
    torchrun --nproc-per-node=2 -m tests.ranks_program FOLDER

Each rank writes its results to FOLDER/rank<n>of<count>.pt. BatchNorm is frozen, since half a batch
has different statistics; losses that compare photos within a batch are left out for that reason.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from config import Config, KDConfig, UserError
from models.factory import create_model
from tests.toys import CLASSES, CPU, train_batches, val_batches
from utils import ranks
from utils.device import Device
from utils.distillation import METHODS, Distillation
from utils.engine import Training, fit

# Without a limit of the gradient's norm, which would hide its scale.
CONFIG = Config(image_size=32, epochs=2, batch_size=8, optimizer="sgd", lr=0.01, mixup=0.4)


def frozen(module: nn.Module) -> nn.Module:
    """The same network with BatchNorm that only scales."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            frozen(child)
    return module


def trained() -> dict[str, Any]:
    """A student with an adapter: weights and history after two epochs on odd numbers of photos."""
    models = [frozen(create_model("resnet18", CLASSES, 64, seed=seed)).double() for seed in (0, 1)]
    for model in models:  # in float32, the rounding of half a batch would be amplified
        model.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    kd = KDConfig(teacher="resnet18", method="fitnet", weight=METHODS["fitnet"].weight)
    objective = Distillation(replace(CONFIG, kd=kd), models[1], CPU)
    training, saved = Training(models[0], objective, CONFIG, Device(CPU)), list[int]()
    train = train_batches(CONFIG, 27, ranks.shard(CONFIG.batch_size))
    fit(training, train, val_batches(CONFIG, 17), lambda: saved.append(len(training.history)))
    weights = training.model.state_dict() | training.objective.adapters.state_dict()
    return {"weights": weights, "history": training.history, "saved": saved}


def main(folder: Path) -> None:
    content = trained()
    ranks.check_same("the same flags")
    try:
        ranks.check_same(f"flags of rank {ranks.shard(ranks.count()).start}")
    except UserError as problem:
        content["said"] = str(problem)
    torch.save(content, folder / f"rank{ranks.shard(ranks.count()).start}of{ranks.count()}.pt")
    print("written")


if __name__ == "__main__":
    with ranks.init_distributed():
        main(Path(sys.argv[1]))
