"""Checkpoints: plain dicts of tensors and simple values, complete or absent."""

import hashlib
import io
import os
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import LARGEST, SMALLEST, UserError, network_name
from data.files import atomic_write, explained, open_regular
from models.factory import create_model, names, source_digest

FORMAT = 6  # raised whenever a reader of older files would misread newer ones


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, and lists and dicts of them) to `path`; if the
    run is killed meanwhile, the earlier checkpoint stays intact."""
    # Through memory, because torch hides a full disk's OSError behind an error of its own.
    packed = io.BytesIO()
    torch.save({"format": FORMAT} | content, packed)
    atomic_write(path, packed.getbuffer())


def read_tensors(path: Path) -> Any:
    """Load what `torch.save` wrote, without running code in the file; can raise any Exception."""
    with open_regular(path) as file:
        if file.read(2) == b"PK":  # a zip, as since torch 1.6
            with zipfile.ZipFile(file) as packed:
                # Compressed, it could unpack to any size; and torch does not look at the sums.
                unpacked = sum(entry.file_size for entry in packed.infolist())
                if unpacked > os.fstat(file.fileno()).st_size or packed.testzip():
                    raise ValueError("compressed, or its checksums do not match")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; code hidden in a file is never run.
    Raises UserError for a file that is missing, damaged, or no checkpoint of this version."""
    why = "truncated, damaged, or not a checkpoint of this version of the scripts"
    try:
        with explained(f"{path}: {why}; use another copy, or --overwrite its run"):
            content = read_tensors(path)
            if content["format"] != FORMAT or "model" not in content:
                raise ValueError("another format")
    except FileNotFoundError as problem:
        hint = "--resume its run if unfinished, or repeat it with --overwrite"
        raise UserError(f"{path}: no such checkpoint: {hint}") from problem
    return dict(content)


def load_classifier(path: Path, network: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """A trained network in eval mode, and its description: `arch`, `classes` in the order of the
    logits, `image_size` in pixels, `mean` and `std` of the normalisation, `split` (the hash of its
    split.csv), `photos` (the digest of the files), `recipe`, and more. Raises UserError as
    load_checkpoint does, or if one of these is missing. `network` is a custom FILE.py:FUNCTION."""
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
            fits = SMALLEST <= side <= LARGEST and len(classes) <= 100_000
            fits &= "." in arch or arch in names()
            fits &= all(isinstance(name, str) for name in (*classes, *recipe))
            fits &= all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True))
            fits &= all(isinstance(value, str | int | float | None) for value in recipe.values())
    if not fits:
        raise UserError(f"{path}: its description is incomplete or invalid")
    if own := "." in arch:  # its code comes from the command line, never from a checkpoint
        if network_name(network) != arch or ":" not in network:
            raise UserError(f"{path} is for {arch}, a network of your own: give FILE.py:FUNCTION")
        if source_digest(network) != content.get("source"):
            raise UserError(f"{path}: {network} has changed since this was trained")
    # On meta, it is no larger than the file; RegNets look at values while they are built.
    with nullcontext() if own or arch.startswith("regnet") else torch.device("meta"):
        model = create_model(network if own else arch, len(classes), side, seed=0)
    with explained(f"{path}: its weights are not those of a {arch} with {len(classes)} classes"):
        for name, made in model.state_dict().items():
            value = weights[name]
            if (value.shape, value.dtype) != (made.shape, made.dtype) or not value.isfinite().all():
                raise ValueError(f"another {name}")
        model.load_state_dict(weights, assign=not own)  # which would untie tied weights
    return model.eval(), content


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for exactly these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
