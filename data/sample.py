"""Draws the sample: eleven classes of weather, so that every command runs without a download. They
share skies, hills and trees, and light varies: the mean colour says little, shapes say more."""

from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from data.archives import made_once

VERSION = 4  # counted up whenever a drawing changes, so that older samples are drawn again
CLASSES = ("dew", "fogsmog", "frost", "glaze", "hail", "lightning", "rain", "rainbow", "rime",
           "sandstorm", "snow")  # fmt: skip


def draw_sample(cache: Path, seed: int = 0, per_class: int = 48, size: int = 96) -> Path:
    """Draws `per_class` photos of every class as <class>/<number>.jpg, RGB of size × size pixels,
    once; returns their folder. The same bytes for the same arguments."""

    def draw(folder: Path) -> None:
        for name, number in product(CLASSES, range(per_class)):
            (folder / name).mkdir(exist_ok=True)
            photo = draw_photo(name, number, seed, size)
            photo.save(folder / name / f"{number:04d}.jpg", quality=92)

    return made_once(cache / "sample", draw, f"sample {VERSION} {seed} {per_class} {size}\n")


def draw_photo(name: str, number: int, seed: int = 0, size: int = 96) -> Image.Image:
    """Draws an RGB image of size × size pixels, which depends on these arguments alone."""
    rng = np.random.default_rng([VERSION, seed, CLASSES.index(name), number])
    canvas = Canvas(rng, 2 * size)  # drawn twice as large and reduced, for smooth edges
    getattr(canvas, name)()
    picture = np.asarray(canvas.image.reduce(2)) / 255
    picture *= np.sqrt(rng.uniform(0.3, 0.6) / picture.mean())  # exposure
    mean = picture.mean((0, 1))
    picture = mean + rng.uniform(0.4, 1) * (picture - mean)  # haze
    picture += rng.normal(0, 0.04, (size, size, 1))  # grain
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))


class Canvas:
    """An image of n × n pixels that starts as a sky, and a method for each scene. Places are x + iy
    with y downwards, in fractions of n as all lengths; colours are grey or RGB, from 0 to 1."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.uniform, self.n = rng, rng.uniform, n
        self.image = Image.new("RGB", (n, n))
        self.pen = ImageDraw.Draw(self.image)
        self.cover(self.uniform(0.3, 0.9, 3))
        self.cover(self.uniform(0.3, 0.9, 3), np.linspace(0, 1, 8)[:, None])
        self.cover(rng.choice([0.25, 0.95]), self.uniform(-0.4, 0.8, (9, 3)))  # clouds

    def ink(self, colour: ArrayLike) -> tuple[int, ...]:
        return tuple((255 * np.clip(np.broadcast_to(colour, 3), 0, 1)).astype(int).tolist())

    def cover(self, colour: ArrayLike, share: ArrayLike = 1.0) -> None:
        """Lays a colour over the image, by shares of 0 to 1 that are blurred to its size."""
        mask = Image.fromarray((255 * np.clip(np.atleast_2d(share), 0, 1)).astype(np.uint8))
        self.image.paste(self.ink(colour), (0, 0), mask.resize(self.image.size))

    def hills(self, base: float, colour: ArrayLike) -> None:
        """Fills all below hills that rise up to 0.2 above y = `base`."""
        tops = np.column_stack([np.linspace(0, 1, 12), base - self.uniform(0, 0.2, 12)])
        self.pen.polygon([*(self.n * tops).ravel(), self.n, self.n, 0, self.n], self.ink(colour))

    def balls(self, count: int, radius: float, colour: ArrayLike, top: float = 0.0) -> None:
        """Balls of about this radius, lit from the upper left, below y = `top`; lower is nearer."""
        spots = self.n * self.uniform((0, top, 0.5 * radius), (1, 1, 1.5 * radius), (count, 3))
        for x, y, r in spots[spots[:, 1].argsort()]:
            for part, light in ((1, 0.4), (0.8, 0.7), (0.6, 1), (0.2, 1.3)):
                centre = x - 0.5 * (1 - part) * r, y - 0.5 * (1 - part) * r
                self.pen.circle(centre, part * r, self.ink(light * np.asarray(colour)))

    def lines(self, starts: np.ndarray, ends: np.ndarray, width: float, colour: float) -> None:
        for line in (self.n * np.column_stack([starts, ends])).view(np.float64).tolist():
            self.pen.line(line, self.ink(colour), max(1, round(self.n * width)))

    # The scenes: each paints the weather of its name on the sky.
    def dew(self) -> None:
        leaf = self.uniform((0.2, 0.4, 0.1), (0.6, 0.9, 0.5))
        self.cover(leaf, self.uniform(0.7, 1.2, (24, 12)))
        self.balls(30, self.uniform(0.04, 0.08), 1.3 * leaf)

    def fogsmog(self) -> None:
        fog = self.uniform(0.6, 0.8, 3)
        for depth in range(5):  # the farther away, the paler
            self.hills(0.5 + 0.1 * depth, fog * (1 - 0.15 * depth))
            self.cover(fog, self.uniform(0, 1, (3, 1)))

    def frost(self) -> None:
        self.cover(0, 0.5)
        for turn in np.exp(1j * self.uniform(0, 2 * np.pi, 7)):  # ferns, their tips at the centre
            spine = 0.5 + 0.5j + turn * np.linspace(0.2, 0.7, 20)
            for needle in np.exp([0, 1j, -1j]):
                self.lines(spine, spine + turn * needle * np.linspace(0, 0.25, 20), 0.01, 1)

    def glaze(self) -> None:
        for y in self.uniform(0, 0.8, 5):
            twig = np.linspace(0, 1, 25) + 1j * (y + np.cumsum(self.rng.normal(0, 0.01, 25)))
            self.lines(twig, twig + 1j * self.uniform(0, 0.2, 25), 0.015, 0.9)  # icicles
            self.lines(twig[:-1], twig[1:], 0.03, 0.9)
            self.lines(twig[:-1], twig[1:], 0.012, 0.2)

    def hail(self) -> None:
        self.cover(self.uniform((0.2, 0.2, 0.1), (0.6, 0.6, 0.4)))
        self.balls(100, self.uniform(0.02, 0.05), 0.9)

    def lightning(self) -> None:
        self.cover(0, self.uniform(0.2, 0.8, (4, 2)))
        for _ in range(self.rng.integers(2, 6)):  # strokes from one cloud
            stroke = 0.5 + np.cumsum(self.rng.normal(0, 0.06, 20)) + 1j * np.linspace(0, 0.9, 20)
            self.lines(stroke[:-1], stroke[1:], 0.015, 1)
        self.hills(self.uniform(0.8, 1), 0.1)

    def rain(self) -> None:
        self.hills(self.uniform(0.6, 0.9), self.uniform(0.1, 0.4, 3))
        drops = self.uniform(0, 1, 250) + 1j * self.uniform(0, 1, 250)
        fall = self.uniform(0.05, 0.15, 250) * (1j + self.uniform(-0.5, 0.5))
        self.lines(drops, drops + fall, 0.006, 0.8)

    def rainbow(self) -> None:
        x, y, radius = self.n * self.uniform((0, 0.9, 0.5), (1, 1, 0.9))
        for hue in range(0, 240, 5):  # from red at the outside to blue
            radius -= 0.0025 * self.n
            self.pen.circle((x, y), radius, outline=f"hsl({hue}, 90%, 50%)", width=3)
        self.hills(self.uniform(0.8, 1), self.uniform(0.1, (0.5, 0.6, 0.3)))

    def rime(self) -> None:
        self.hills(self.uniform(0.8, 1), 0.9)
        for x in self.uniform(0.1, 0.9, self.rng.integers(1, 4)):
            starts, stems = np.array([x + 0.95j]), np.array([self.uniform(-0.28, -0.13) * 1j])
            for level in range(7):  # trees, from a dark trunk to white twigs
                self.lines(starts, starts + stems, 0.03 / (level + 1), 0.2 if level < 4 else 1)
                starts, stems = np.repeat([starts + stems, 0.75 * stems], 3, axis=1)
                stems = stems * np.exp(1j * self.rng.normal(0, 0.5, len(stems)))

    def sandstorm(self) -> None:
        dust = self.uniform((0.7, 0.5, 0.3), (1, 0.7, 0.5))
        self.balls(120, 0.1, dust, top=self.uniform(0.1, 0.4))
        self.cover(dust, self.uniform(0, 0.9, (12, 3)))

    def snow(self) -> None:
        self.hills(self.uniform(0.6, 0.8), 0.9)
        self.balls(150, 0.015, 1)
