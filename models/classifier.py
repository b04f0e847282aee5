"""A trained network from its checkpoint, which may come from anywhere."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import LARGEST, SMALLEST, UserError, network_name
from data.files import lacks_memory
from models.checkpoint import load_checkpoint
from models.factory import create_model, names, source_digest

MOST_CLASSES = 100_000  # that a file may claim


def load_classifier(path: Path, network: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """A trained network in eval mode, and its description: `arch`, `classes` in the order of the
    logits, `image_size` in pixels, `mean` and `std` of the normalisation, `split` (the hash of its
    split.csv), `photos` (the digest of the files), `seed` and `recipe`. Raises UserError as
    load_checkpoint does, and where a part is missing or cannot be right. `network` is the code of a
    network of one's own, FILE.py:FUNCTION."""
    content = load_checkpoint(path)
    weights, fits = content.pop("model"), False
    match content:
        case {
            "arch": str(arch),
            "classes": [str(), str(), *_] as classes,
            "image_size": int(side),
            "mean": [float(), float(), float()] as mean,
            "std": [float(), float(), float()] as std,
            "split": str(),
            "photos": str(),
            "recipe": dict(recipe),
        }:
            fits = SMALLEST <= side <= LARGEST and len(classes) <= MOST_CLASSES
            fits &= "." in arch or arch in names()
            fits &= all(isinstance(name, str) for name in classes)
            fits &= all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True))
            fits &= all(isinstance(key, str) for key in recipe)
            fits &= all(isinstance(value, str | int | float | None) for value in recipe.values())
    if not fits:
        raise UserError(f"{path}: its description is incomplete, or cannot be right")
    if network and network_name(network) != arch:
        raise UserError(f"{path} is of {arch}, not of {network_name(network)}")
    if own := "." in arch:  # its code comes from the command line, never from a checkpoint
        if not network:
            raise UserError(f"{path} is of {arch}, a network of your own: give FILE.py:FUNCTION")
        if source_digest(network) != content.get("source"):
            raise UserError(f"{path}: {network} has changed since this was trained")
    # On meta, it is no larger than the file; RegNets look at values while they are built.
    with nullcontext() if own or arch.startswith("regnet") else torch.device("meta"):
        model = create_model(network if own else arch, len(classes), side, seed=0)
    try:
        for name, made in model.state_dict().items():
            value = weights[name]
            if (value.shape, value.dtype) != (made.shape, made.dtype) or not value.isfinite().all():
                raise ValueError(f"another {name}")
        model.load_state_dict(weights, assign=True)
    except Exception as problem:  # tensors of all kinds raise errors of all kinds
        if lacks_memory(problem):
            raise
        what = f"{path}: its weights are not those of a {arch} with {len(classes)} classes"
        raise UserError(what) from problem
    return model.eval(), content
