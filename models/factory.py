"""torchvision classifiers by name, from scratch or with ImageNet weights."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from config import UserError

# Both kinds of start see photos normalised as ImageNet weights expect them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def smallest_image(name: str) -> int:
    """The smallest image side, in pixels, that the model's layers can take (torchvision's word)."""
    return int(max(get_model_weights(name)["DEFAULT"].meta["min_size"]))


def create_model(name: str, classes: int, *, pretrained: bool, seed: int) -> nn.Module:
    """A torchvision classifier with `classes` outputs, its first weights drawn from `seed`.

    Takes (N, 3, S, S) float images normalised by MEAN and STD, returns (N, classes) logits. Its
    state_dict has torchvision's own keys and shapes. With `pretrained`, everything but the last
    layer starts from torchvision's default ImageNet weights, downloaded once; raises UserError
    when they cannot be had.
    """
    torch.manual_seed(seed)
    if not pretrained:
        return get_model(name, weights=None, num_classes=classes)
    model = _imagenet_model(name)
    head = [key for key, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    # Building the model drew random numbers; the head is to depend on the seed alone.
    torch.manual_seed(seed)
    features = model.state_dict()[f"{head}.weight"].shape[1]
    model.set_submodule(head, nn.Linear(features, classes))
    return model


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, its kernels stored channels last, as the batches are."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _imagenet_model(name: str) -> nn.Module:
    url = get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        return get_model(name, weights="DEFAULT")
    except OSError as problem:  # URLError and time-outs are OSErrors
        raise UserError(
            f"--pretrained: the weights of {name} did not download ({problem}). "
            f"Put {url} at {file} by hand, or omit --pretrained."
        ) from problem
    except Exception as problem:  # torch raises errors of any kind on bytes that are not its own
        raise UserError(
            f"--pretrained: {file} does not hold the weights of {name}. "
            "Delete the file, so that it is downloaded again, or omit --pretrained."
        ) from problem
