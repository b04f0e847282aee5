"""torchvision classifiers by name, from scratch or with ImageNet weights."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from config import UserError


def create_model(name: str, classes: int, *, pretrained: bool, seed: int) -> nn.Module:
    """A torchvision classifier of normalised images (N, 3, S, S) that returns logits (N, classes),
    its initial weights drawn from `seed`. With `pretrained`, all but the last layer starts from
    torchvision's ImageNet weights, downloaded once; raises UserError when they cannot be had.
    """
    torch.manual_seed(seed)
    if not pretrained:
        return get_model(name, weights=None, num_classes=classes)
    model = _imagenet_model(name)
    head, layer = [pair for pair in model.named_modules() if isinstance(pair[1], nn.Linear)][-1]
    torch.manual_seed(seed)  # building the model drew random numbers
    model.set_submodule(head, nn.Linear(layer.in_features, classes))
    return model


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, its kernels stored channels last, as the batches are."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _imagenet_model(name: str) -> nn.Module:
    url = get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        return get_model(name, weights="DEFAULT")
    except Exception as problem:  # of the network, the disk, or bytes that are no weights
        why = " ".join(str(problem).split())[:200]
        raise UserError(
            f"--pretrained: no weights of {name} ({why}). "
            f"Put {url} at {file} by hand, or omit --pretrained."
        ) from problem
