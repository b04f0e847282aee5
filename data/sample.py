"""Draws the sample: textures named after eleven kinds of weather, so that every command runs
without a download. Colours say little of the class, shapes do."""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import build_once

VERSION = 5  # counted up whenever a drawing changes, so that older samples are drawn again
PER_CLASS, SIZE = 48, 96
# Per class: wavelength in pixels, how much longer than wide the shapes are, their direction in
# degrees, and the share of a photo that is bright.
TEXTURES = {
    "dew": (12, 1, 0, 0.5),
    "fogsmog": (20, 2, 90, 0.5),
    "frost": (7, 4, 45, 0.5),
    "glaze": (14, 6, 90, 0.8),
    "hail": (16, 1, 0, 0.1),
    "lightning": (15, 8, 90, 0.1),
    "rain": (6, 8, 75, 0.3),
    "rainbow": (18, 8, 45, 0.5),
    "rime": (12, 1, 0, 0.86),
    "sandstorm": (14, 5, 0, 0.5),
    "snow": (8, 1, 0, 0.12),
}


def draw_sample(cache: Path) -> Path:
    """Draws the photos of every class as <class>/<number>.jpg, once; returns their folder."""

    def draw(folder: Path) -> None:
        for name, number in product(TEXTURES, range(PER_CLASS)):
            (folder / name).mkdir(exist_ok=True)
            draw_photo(name, number).save(folder / name / f"{number:04d}.jpg", quality=92)

    return build_once(cache / "sample", draw, f"sample {VERSION}\n")


def draw_photo(name: str, number: int) -> Image.Image:
    """Draws an RGB image of SIZE × SIZE pixels, which depends on these arguments alone."""
    rng = np.random.default_rng([VERSION, 0, [*TEXTURES].index(name), number])
    length, stretch, degrees, bright = TEXTURES[name]
    # Noise of which one band of waves is left, wider along the texture's direction.
    angle, wave = np.radians(degrees + rng.normal(0, 5)), length * rng.uniform(0.85, 1.2)
    x, y = np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE))
    turned = wave * (x + 1j * y) * np.exp(-1j * angle)
    radius = np.hypot(stretch * turned.real, turned.imag)
    waves = np.fft.fft2(rng.normal(size=(SIZE, SIZE))) * np.exp(-4 * (radius - 1) ** 2)
    field = np.fft.ifft2(waves).real
    field = (field - np.quantile(field, 1 - bright * rng.uniform(0.8, 1.1))) / field.std()
    mask = 1 / (1 + np.exp(-4 * field[..., None]))
    hue = 2 * np.pi * ([*TEXTURES].index(name) / len(TEXTURES) + np.arange(3) / 3)
    dark = rng.uniform(0, 0.4, 3) + 0.1 + 0.1 * np.cos(hue)
    picture = dark + mask * rng.uniform(0.2, 0.5) + rng.normal(0, 0.05, (SIZE, SIZE, 1))
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))
