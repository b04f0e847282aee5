"""Checkpoints: plain dicts of tensors and simple values, complete or absent."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import MODELS, UserError
from data.files import atomic_write
from models.factory import create_model

FORMAT = 3  # raised whenever a reader of older files would misread newer ones


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, and lists and dicts of them) to `path`; killed
    here, a run leaves the earlier checkpoint as it was."""
    # Through memory, because torch hides a full disk's OSError behind an error of its own.
    packed = io.BytesIO()
    torch.save({"format": FORMAT} | content, packed)
    atomic_write(path, packed.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; code hidden in a file is never run.

    Raises UserError for a file that is missing, damaged, or no checkpoint of this version.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            damaged = packed.testzip()  # torch does not look at the sums in its own zip files
        content = torch.load(path, map_location="cpu", weights_only=True)
        if damaged or content["format"] != FORMAT or "model" not in content:
            raise ValueError("another format, or bytes that have changed")
    except FileNotFoundError as problem:
        raise UserError(f"{path}: there is no such checkpoint") from problem
    except Exception as problem:  # torch raises errors of any kind on bytes that are not its own
        raise UserError(
            f"{path}: cut off, damaged, or not a checkpoint of this version of train.py or "
            "knowledge_distillation.py; use another copy, or train it again"
        ) from problem
    return dict(content)


def load_classifier(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network in eval mode, and its description: `arch`, `classes` in the order of the
    logits, `image_size` in pixels, `mean` and `std` of the normalisation, `split` (the hash of its
    split.csv), `photos` (the digest of the files), `seed` and `recipe`.

    Raises UserError as load_checkpoint does, and where a part is missing or does not fit.
    """
    content = load_checkpoint(path)
    weights = content.pop("model")
    kinds = {"arch": str, "classes": list, "image_size": int, "mean": list, "std": list}
    kinds |= {"split": str, "photos": str, "recipe": dict}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: the checkpoint does not say its {name}; it cannot be used")
    arch, classes = content["arch"], len(content["classes"])
    if arch not in MODELS:
        raise UserError(f"{path}: {arch!r} is none of the models here: {', '.join(MODELS)}")
    model = create_model(arch, classes, pretrained=False, seed=0)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as problem:
        what = f"{path}: its weights are not those of a {arch} with {classes} classes"
        raise UserError(what) from problem
    return model.eval(), content


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for exactly these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
