"""Draws the sample: textures named after eleven kinds of weather, so that every command runs
without a download. Colours are drawn at random: only shapes tell the classes apart."""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from data.archives import made_once

VERSION = 5  # counted up whenever a drawing changes, so that older samples are drawn again
# Of each class: its waves' length in pixels, how much longer than wide its shapes are, their
# direction in degrees, and the share of a photo that is bright.
TEXTURES = {
    "dew": (9, 1, 0, 0.3),
    "fogsmog": (26, 2, 0, 0.5),
    "frost": (7, 4, 40, 0.4),
    "glaze": (14, 6, 150, 0.3),
    "hail": (9, 1, 0, 0.12),
    "lightning": (18, 6, 80, 0.12),
    "rain": (5, 8, 75, 0.3),
    "rainbow": (18, 8, 30, 0.5),
    "rime": (16, 1, 0, 0.5),
    "sandstorm": (16, 4, 0, 0.5),
    "snow": (5, 1, 0, 0.12),
}


def draw_sample(cache: Path, seed: int = 0, per_class: int = 48, size: int = 96) -> Path:
    """Draws `per_class` photos of every class as <class>/<number>.jpg, RGB of size × size pixels,
    once; returns their folder. The same bytes for the same arguments."""

    def draw(folder: Path) -> None:
        for name, number in product(TEXTURES, range(per_class)):
            (folder / name).mkdir(exist_ok=True)
            photo = draw_photo(name, number, seed, size)
            photo.save(folder / name / f"{number:04d}.jpg", quality=92)

    return made_once(cache / "sample", draw, f"sample {VERSION} {seed} {per_class} {size}\n")


def draw_photo(name: str, number: int, seed: int = 0, size: int = 96) -> Image.Image:
    """Draws an RGB image of size × size pixels, which depends on these arguments alone."""
    rng = np.random.default_rng([VERSION, seed, [*TEXTURES].index(name), number])
    length, stretch, degrees, bright = TEXTURES[name]
    # Noise of which one band of waves is left, wider along the texture's direction.
    angle, length = np.radians(degrees + rng.normal(0, 8)), length * rng.uniform(0.75, 1.3)
    x, y = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))
    turned = length * (x + 1j * y) * np.exp(-1j * angle)
    radius = np.hypot(stretch * turned.real, turned.imag)
    waves = np.fft.fft2(rng.normal(size=(size, size))) * np.exp(-4 * (radius - 1) ** 2)
    field = np.fft.ifft2(waves).real
    field = (field - np.quantile(field, 1 - bright * rng.uniform(0.7, 1.4))) / field.std()
    mask = 1 / (1 + np.exp(-4 * field[..., None]))
    dark, light = rng.uniform(0, 0.6, 3), rng.uniform(0.4, 1, 3)
    top, bottom = rng.uniform(0.6, 1.2, 2)
    sky = np.linspace(top, bottom, size)[:, None, None]
    picture = sky * (dark + mask * (light - dark)) + rng.normal(0, 0.08, (size, size, 1))
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))
