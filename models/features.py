"""The feature maps that a network computes on its way to the logits, by their stride.

    logits, (early, late) = forward_with_features(model, "resnet18", (8, 32), images)

A map at stride 8 has an eighth of the image's height and width.
"""

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model

# The modules whose outputs are the last maps, after a ReLU, at strides 4, 8, 16 and 32.
# DenseNet's norm5 is followed by a ReLU in place, which leaves its output activated, too.
_RESNET = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
_DENSENET = {4: "transition1.relu", 8: "transition2.relu", 16: "transition3.relu", 32: "norm5"}
FEATURES: dict[str, dict[int, str]] = {
    "densenet169": {stride: f"features.{name}" for stride, name in _DENSENET.items()},
    "resnet50": _RESNET,
    "resnet18": _RESNET,
}


def forward_with_features(
    model: nn.Module, arch: str, strides: Sequence[int], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, classes) of images (N, 3, S, S), and the feature maps (N, channels, H, W) at
    `strides`, in their order. By hooks, so that the network stays as it is."""
    maps: dict[int, Tensor] = {}

    def keep(stride: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        maps[stride] = output

    hooks = [
        model.get_submodule(FEATURES[arch][stride]).register_forward_hook(partial(keep, stride))
        for stride in strides
    ]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [maps[stride] for stride in strides]


@cache
def feature_channels(arch: str, stride: int) -> int:
    """The number of channels of a network's maps at a stride; nothing is computed for it."""
    with torch.device("meta"):
        model = get_model(arch, weights=None).eval()
        _, (features,) = forward_with_features(model, arch, (stride,), torch.empty(1, 3, 64, 64))
    return features.shape[1]
