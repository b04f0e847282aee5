"""Small photos in memory, as batches: what trains in a moment and can be learnt from colour."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from config import Config
from data.batches import EvalBatches, TrainBatches
from utils.engine import Training, fit

CPU = torch.device("cpu")
CLASSES = 5


def photos(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, rows and labels of photos of coarse blocks, whose colour tells their class."""
    draw = np.random.default_rng(count)
    labels = draw.integers(0, CLASSES, count)
    blocks = draw.integers(0, 200, (count, 4, 4, 3)).repeat(6, 1).repeat(6, 2)
    blocks[np.arange(count), :, :, labels % 3] += 55 - 110 * (labels[:, None, None] // 3)
    return blocks.clip(0, 255).astype(np.uint8), np.arange(count), labels


def train_batches(config: Config, count: int = 46, shard: slice = slice(None)) -> TrainBatches:
    pixels, rows, labels = photos(count)
    return TrainBatches(torch.from_numpy(pixels), rows, labels, CLASSES, config, CPU, shard)


def val_batches(config: Config, count: int = 200) -> EvalBatches:
    """By default two batches, the last of another size."""
    pixels, rows, labels = photos(count)
    return EvalBatches(torch.from_numpy(pixels), rows, labels, config.image_size, CPU)


def train(training: Training, after_epoch=lambda: None, count: int = 46) -> Training:
    """Run the training to its end on `count` photos."""
    config = training.config
    fit(training, train_batches(config, count), val_batches(config), after_epoch)
    return training


def resnet_by_hand(model: Any, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits of a ResNet, and its maps by stride."""
    x = model.maxpool(model.bn1(model.conv1(images)).relu())
    layers = {4: model.layer1, 8: model.layer2, 16: model.layer3, 32: model.layer4}
    maps = {stride: (x := layer(x)) for stride, layer in layers.items()}
    return model.fc(x.mean((2, 3))), maps


def tensors(state: object) -> list[Tensor]:
    """All tensors in nested dicts and lists."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
