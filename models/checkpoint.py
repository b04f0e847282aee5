"""Checkpoints: plain dicts of tensors and simple values, complete or absent."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import UserError
from data.files import atomic_write, lacks_memory, open_regular

FORMAT = 5  # raised whenever a reader of older files would misread newer ones


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, and lists and dicts of them) to `path`; killed
    here, a run leaves the earlier checkpoint as it was."""
    # Through memory, because torch hides a full disk's OSError behind an error of its own.
    packed = io.BytesIO()
    torch.save({"format": FORMAT} | content, packed)
    atomic_write(path, packed.getbuffer())


def read_tensors(path: Path) -> Any:
    """What torch has saved in a file, without running code in it; raises errors of any kind."""
    with open_regular(path) as file:
        if file.read(2) == b"PK":  # a zip, as since torch 1.6
            with zipfile.ZipFile(file) as packed:
                # Compressed, it could unpack to any size; and torch does not look at the sums.
                unpacked = sum(entry.file_size for entry in packed.infolist())
                if unpacked > os.fstat(file.fileno()).st_size or packed.testzip():
                    raise ValueError("bytes that have changed")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; code hidden in a file is never run.
    Raises UserError for a file that is missing, damaged, or no checkpoint of this version."""
    try:
        content = read_tensors(path)
        if content["format"] != FORMAT or "model" not in content:
            raise ValueError("another format")
    except FileNotFoundError as problem:
        raise UserError(f"{path}: there is no such checkpoint") from problem
    except Exception as problem:  # torch raises errors of any kind on bytes that are not its own
        if isinstance(problem, OSError) or lacks_memory(problem):
            raise
        raise UserError(
            f"{path}: cut off, damaged, or not a checkpoint of this version of train.py or "
            "knowledge_distillation.py; use another copy, or train it again"
        ) from problem
    return dict(content)


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for exactly these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
