"""Folders of synthetic photos, and whole commands run on them, as a user would."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PROCESS: dict[str, Any] = {"cwd": ROOT, "stdout": -1, "stderr": -1, "text": True}  # -1 is a pipe
CLASSES = ("fog", "hail", "rain", "snow")


def make_photos(folder: Path, per_class: int = 14, side: int = 48) -> Path:
    """`per_class` different photos for each of four classes, learnable from colour and stripes."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.uniform(0, 150, (6, 6, 3)).repeat(side // 6, 0).repeat(side // 6, 1)
            pixels[:, :, label % 3] += 80
            pixels[:: 2 + label] += 25
            photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            photo.save(folder / name / f"{number}.jpg", quality=92)
    return folder


def training(photos: Path, folder: Path, *more: object) -> list[str]:
    """Arguments for a short training run that writes all its files to the folder."""
    words = ["--data", photos, "--output", folder / "output", "--cache", folder / "cache"]
    words += ["--image-size", 32, "--batch-size", 8, "--epochs", 1]
    return [str(word) for word in (*words, *more)]  # the last of repeated flags wins


def python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and return the completed process."""
    return subprocess.run([sys.executable, *map(str, words)], **PROCESS | options)


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Start Python with these arguments in the background."""
    return subprocess.Popen([sys.executable, *map(str, words)], **PROCESS | options)


def encoded(image, name="JPEG", **options):
    """The image as a file of the format that Pillow knows by this name."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()
