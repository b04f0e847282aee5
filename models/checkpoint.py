"""Checkpoints: plain dicts of tensors and simple values, whole or not there at all."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from config import UserError

# Raised whenever a reader of older files would misread newer ones.
FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, and lists and dicts of them) to `path`.

    The file appears under its name only when it is complete, so a run that is killed here leaves
    the earlier checkpoint as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    # Through memory, because torch hides a full disk's OSError behind an error of its own.
    packed = io.BytesIO()
    torch.save({"format": FORMAT} | content, packed)
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

    Raises UserError for a file that is missing, broken, no checkpoint of this repo, or written by
    a newer version of it.
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
    return content
