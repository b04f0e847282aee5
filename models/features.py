"""What a network computes on its way to the logits: feature maps at named stages.

    logits, (early, late) = forward_with_features(model, "resnet18", (8, 32), images)

Stages of different networks are matched by their stride, that is by their resolution.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models import get_model

# The module at whose output a network's maps have shrunk by 4, 8, 16 and 32, after its ReLU.
# DenseNet's norm5 is followed by a ReLU in place, which leaves its output activated, too.
_RESNET = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
_DENSENET = {4: "transition1.relu", 8: "transition2.relu", 16: "transition3.relu", 32: "norm5"}
STAGES: dict[str, dict[int, str]] = {
    "densenet169": {stride: f"features.{name}" for stride, name in _DENSENET.items()},
    "resnet50": _RESNET,
    "resnet18": _RESNET,
}


def forward_with_features(
    model: nn.Module, arch: str, strides: Sequence[int], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, classes) and the feature maps (N, channels, H, W) at `strides`, in their order.

    Hooks rather than a traced copy of the network: its forward stays the one that is called, so
    modes, state_dict and whatever wraps the model stay what they are.
    """
    maps: dict[int, Tensor] = {}

    def keep(stride: int, output: Tensor) -> None:
        maps[stride] = output

    stages = {stride: model.get_submodule(STAGES[arch][stride]) for stride in strides}
    hooks = [
        stage.register_forward_hook(
            lambda _module, _inputs, output, stride=stride: keep(stride, output)
        )
        for stride, stage in stages.items()
    ]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [maps[stride] for stride in strides]


@cache
def feature_channels(arch: str, stride: int) -> int:
    """How many channels a network's maps have at a stride; found without computing anything."""
    with torch.device("meta"):
        model = get_model(arch, weights=None).eval()
        _, (stage,) = forward_with_features(model, arch, (stride,), torch.empty(1, 3, 224, 224))
    return stage.shape[1]
