"""Many tiny photos, all different but for the near duplicates that are planted among them."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.photo_folders import encoded

CLASSES = 11
COPIED = 10  # one photo in ten is a copy of another
WIDTH, HEIGHT, WAVES = 40, 32, 16


def make_many(folder: Path, count: int) -> dict[str, str]:
    """`count` JPEGs in 11 class folders; returns each planted copy and what it is a copy of."""
    draw = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label:02}").mkdir(parents=True)
    planted = {}
    originals = count - count // COPIED
    copies = count // COPIED
    for start in range(0, originals, 1000):
        for number, pixels in enumerate(clouds(draw, min(1000, originals - start)), start):
            image = Image.fromarray(pixels)
            name = f"class{number % CLASSES:02}/{number:06}.jpg"
            data = encoded(image, quality=92)
            (folder / name).write_bytes(data)
            if number < copies:
                twin = name.replace(".jpg", "-again.jpg")
                (folder / twin).write_bytes(again(image, data, number // CLASSES))
                planted[twin] = name
    return planted


def clouds(draw: np.random.Generator, count: int) -> np.ndarray:
    """(count, 32, 40, 3) uint8: coloured clouds with detail at all scales, as photos have."""
    down, across = (
        np.cos(np.pi * np.arange(WAVES)[:, None] * (np.arange(side) + 0.5) / side)
        for side in (HEIGHT, WIDTH)
    )
    waves = draw.normal(size=(count, 3, WAVES, WAVES)).astype(np.float32)
    waves[:, 1:] = 0.8 * waves[:, :1] + 0.6 * waves[:, 1:]
    waves /= np.maximum(1, np.hypot(*np.ogrid[:WAVES, :WAVES])).astype(np.float32) ** 1.25
    levels = 128 + 40 * down.T.astype(np.float32) @ waves @ across.astype(np.float32)
    return levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def again(image: Image.Image, data: bytes, kind: int) -> bytes:
    """A photo as it comes back from the web: copied, encoded anew, larger, or with a border cut."""
    if kind % 4 == 0:
        return data
    if kind % 4 == 1:
        return encoded(image, quality=60)
    if kind % 4 == 2:
        return encoded(image.resize((60, 48), Image.Resampling.BICUBIC), quality=85)
    return encoded(image.crop((0, 0, WIDTH, HEIGHT - 3)), quality=85)
