"""Checkpoints: plain dicts of tensors and simple values, whole or not there at all."""

import hashlib
import io
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import MODELS, UserError
from models.factory import create_model

# Raised whenever a reader of older files would misread newer ones.
FORMAT = 2


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, and lists and dicts of them) to `path`.

    The file appears under its name only when it is complete, so a run that is killed here leaves
    the earlier checkpoint as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    # Through memory, because torch hides a full disk's OSError behind an error of its own.
    packed = io.BytesIO()
    content = {"format": FORMAT} | {k: v for k, v in content.items() if k != "checksum"}
    torch.save(content | {"checksum": _checksum(content)}, packed)
    try:
        with unfinished.open("wb") as file:
            file.write(packed.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; code hidden in a file is never run.

    Raises UserError for a file that is missing, broken, no checkpoint of this repo, written by a
    newer version of it, or changed since it was written, be it by a single bit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as problem:
        raise UserError(f"{path}: there is no such checkpoint") from problem
    except Exception as problem:  # torch raises errors of any kind on bytes that are not its own
        raise UserError(
            f"{path}: not a checkpoint that can be read safely; it may be cut off or come from "
            "elsewhere"
        ) from problem
    if not isinstance(content, dict) or "format" not in content or "model" not in content:
        raise UserError(f"{path}: not a checkpoint of train.py or knowledge_distillation.py")
    if not isinstance(content["format"], int) or content["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this repo; update to read it")
    # Checkpoints of earlier versions have none. torch does not look at the zip's own checksums.
    if content.pop("checksum", None) not in (None, _checksum(content)):
        raise UserError(
            f"{path}: some of it has changed since it was written, as on a failing disk or in a "
            "broken transfer; take another copy, or train it again"
        )
    return content


def load_classifier(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network as its checkpoint describes it, and that description.

    The description holds `arch`, `classes` in the order of the logits, `image_size` in pixels,
    `mean` and `std` of the normalisation, `split` (the hash of its split.csv), `seed` and `recipe`.
    Raises UserError where the file is none of ours, as in load_checkpoint, or is not complete.
    """
    content = load_checkpoint(path)
    weights = content.pop("model")
    kinds = {"arch": str, "classes": list, "image_size": int, "mean": list, "std": list}
    kinds |= {"split": str, "recipe": dict}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: the checkpoint does not say its {name}; it cannot be used")
    if content["arch"] not in MODELS:
        raise UserError(
            f"{path}: {content['arch']!r} is none of the models here: {', '.join(MODELS)}"
        )
    # Never with the student's number of classes: a head that does not fit would start anew.
    model = create_model(content["arch"], len(content["classes"]), pretrained=False, seed=0)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as problem:
        raise UserError(
            f"{path}: its weights are not those of a {content['arch']} with "
            f"{len(content['classes'])} classes"
        ) from problem
    return model.eval(), content


def _checksum(value: Any, so_far: int = 0) -> int:
    """A CRC-32 of tensors and plain values, in dicts and lists of any depth; a cryptographic digest
    would take three times as long, every epoch, and nobody has to be kept from making one."""
    match value:
        case torch.Tensor():
            so_far = _checksum(f"{value.dtype} {tuple(value.shape)}", so_far)
            flat = value.detach().cpu().contiguous().view(-1)
            return zlib.crc32(flat.view(torch.uint8).numpy().data, so_far)
        case dict() | list() | tuple():
            inner = [*value.items()] if isinstance(value, dict) else value
            so_far = _checksum(f"{len(inner)} in it", so_far)
            for item in inner:
                so_far = _checksum(item, so_far)
            return so_far
    return zlib.crc32(f"{type(value).__name__} {value!r};".encode("utf-8", "replace"), so_far)


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for exactly these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
