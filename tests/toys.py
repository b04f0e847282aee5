"""Small photos in memory, as batches: what trains in a moment and can be learnt from colour."""

import numpy as np
import torch
from torch import Tensor

from config import Config
from data.batches import EvalBatches, TrainBatches

CPU = torch.device("cpu")
CLASSES = 5


def photos(count: int, side: int = 20) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Pixels, rows and labels of photos of noise, whose brightness tells their class."""
    draw = np.random.default_rng(count)
    labels = draw.integers(0, CLASSES, count)
    pixels = draw.integers(0, 150, (count, side, side, 3)) + 20 * labels[:, None, None, None]
    return torch.from_numpy(pixels.astype(np.uint8)), np.arange(count), labels


def train_batches(config: Config, count: int = 46, shard: slice = slice(None)) -> TrainBatches:
    return TrainBatches(*photos(count), CLASSES, config, CPU, shard)


def val_batches(config: Config, count: int = 200, shard: slice = slice(None)) -> EvalBatches:
    """By default two batches, the last of another size."""
    pixels, rows, labels = photos(count)
    return EvalBatches(pixels, rows[shard], labels[shard], config.image_size, CPU)
