"""Folders of made photos for tests that run whole commands."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("fog", "hail", "rain", "snow")


def make_photos(folder: Path, per_class: int = 14, side: int = 48) -> Path:
    """`per_class` different photos for each of four classes, learnable from colour and stripes."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            blocks = draw.uniform(0, 150, (6, 6, 3))
            pixels = np.kron(blocks, np.ones((side // 6, side // 6, 1)))
            pixels[:, :, label % 3] += 80
            pixels[:: 2 + label] += 25
            photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            photo.save(folder / name / f"{number}.jpg", quality=92)
    return folder


def encoded(image, name="JPEG", **options):
    """The image as a file of the format that Pillow knows by this name."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()
