"""Networks: torchvision's classifiers by name, or a function in your own file.

python -m models.factory     lists the names
"""

import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from config import UserError, file_digest, one_line, unchanged
from data.files import explained


def names() -> list[str]:
    """All classifiers of torchvision."""
    return models.list_models(module=models)


def create_model(network: str, classes: int, image_size: int, *, seed: int) -> nn.Module:
    """A classifier of normalised images (N, 3, S, S) that returns logits (N, classes), its initial
    weights drawn from `seed`: torchvision's of this name, or what the function of FILE.py:FUNCTION
    returns for the number of classes. Raises UserError for an unknown name or a file that fails."""
    torch.manual_seed(seed)
    file, _, function = network.rpartition(":")
    if file:
        path, before, paths = unchanged(Path(file)).absolute(), {*sys.modules}, [*sys.path]
        sys.path.append(str(path.parent))  # for what it imports
        try:
            made_by = runpy.run_path(str(path))[function]
            torch.manual_seed(seed)  # the file may have set another
            model = made_by(classes)
        except (Exception, SystemExit) as problem:  # user code can raise anything
            why = f"{type(problem).__name__}: {one_line(problem)}"
            raise UserError(f"{network}: {why}") from problem
        finally:  # a file in another folder may import other modules of the same names
            sys.path[:] = paths
            for name in {*sys.modules} - before:
                source = getattr(sys.modules[name], "__file__", None) or ""
                if path.parent in Path(source).parents and "site-packages" not in source:
                    del sys.modules[name]
        if not isinstance(model, nn.Module):
            raise UserError(f"{network} must return a torch.nn.Module, not {type(model).__name__}")
        return model
    if network not in names():
        raise UserError(f"{network}: no such network; `python -m models.factory` lists the names")
    sizes: Any = {"vit": {"image_size": image_size}, "maxvit": {"input_size": (image_size,) * 2}}
    options = sizes.get(network.partition("_")[0], {})
    try:
        return models.get_model(network, weights=None, num_classes=classes, **options)
    except (AssertionError, ValueError) as problem:  # transformers cut images into patches
        what = f"{network}: does not take images of {image_size} pixels ({one_line(problem)})"
        raise UserError(what) from problem


def initial_model(
    network: str, classes: int, image_size: int, *, seed: int, weights: Path | bool | None = None
) -> tuple[nn.Module, str]:
    """`create_model`, then load `weights`, if any; also returns a summary of what was loaded."""
    model = create_model(network, classes, image_size, seed=seed)
    if not weights:
        return model, ""
    from models.weights import load_weights  # which imports this module

    return model, load_weights(model, network, weights)[0]


def check_network(
    network: str, image_size: int, weights: Path | bool | None = None, *, trained: bool = True
) -> None:
    """Raise UserError for a network that cannot be used or, if `trained`, trained at this size."""
    classes = 61  # what a function that ignores its argument would hardly return
    model, _ = initial_model(network, classes, image_size, seed=0, weights=weights)
    if any(nn.parameter.is_lazy(value) for value in model.state_dict().values()):
        raise UserError(f"{network}: lazy layers cannot be initialised from a seed")
    hint = "another --image-size or network may help"
    with explained(f"{network} does not work on images of {image_size} pixels; {hint}"):
        images = torch.randn(2, 3, image_size, image_size).to(memory_format=torch.channels_last)
        copy, model = images.clone(), channels_last(model, images.device)  # as in training
        if trained:
            if not isinstance(logits := model.train()(images), torch.Tensor):
                raise UserError(f"{network} must return a tensor in training, not {type(logits)}")
            logits.sum().backward()
        for value in [p for p in model.parameters() if p.requires_grad and not p.any()]:
            nn.init.normal_(value, std=0.01)  # a head of zeros would hide what logits depend on
        loaded = create_model(network, classes, image_size, seed=1) if ":" in network else model
        loaded.load_state_dict(model.state_dict())
        with torch.inference_mode():
            logits, alone = model.eval()(images), loaded.eval()(copy[:1])
    values = [logits, *model.state_dict().values()]
    if not all(isinstance(v, torch.Tensor) for v in values) or logits.shape != (2, classes):
        found = getattr(logits, "shape", type(logits).__name__)
        raise UserError(f"{network}({classes}): 2 images give {found}, not logits (2, {classes})")
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 0.01:
        raise UserError(f"{network} returns probabilities, not logits: omit its last softmax")
    if wrong := [name for name, v in model.state_dict().items() if not v.isfinite().all()]:
        raise UserError(f"{network}: {wrong[0]} is not finite: register it with persistent=False")
    if not images.equal(copy):
        raise UserError(f"{network} modifies its input in place: clone it first")
    margin = 0.001 * logits.nan_to_num().abs().max().item()
    what = "in eval mode, logits are random, or depend on other images or more than the state_dict"
    with explained(f"{network}: {what}"):
        torch.testing.assert_close(alone, logits[:1], rtol=0, atol=margin, equal_nan=True)


@cache
def multiply_adds(network: str, classes: int, image_size: int) -> float:
    """Multiply-adds of a forward pass of one image, in eval mode."""
    model = create_model(network, classes, image_size, seed=0).eval()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention would count nothing
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as n:
        model(torch.zeros(1, 3, image_size, image_size).to(memory_format=torch.channels_last))
    torch.backends.mha.set_fastpath_enabled(True)
    return n.get_total_flops() / 2


def source_digest(network: str) -> str | None:
    """The digest of FILE.py for a network FILE.py:FUNCTION; None for torchvision's."""
    return file_digest(Path(file)) if (file := network.rpartition(":")[0]) else None


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, its kernels stored channels last, as the batches are."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


if __name__ == "__main__":
    print("\n".join(names()))
