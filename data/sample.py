"""Draws the sample: eleven classes of weather, so that every command runs without a download. They
share skies, hills and trees, and light varies: the mean colour says little, shapes say more."""

from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from data.archives import made_once

VERSION = 3  # counted up whenever a drawing changes, so that older samples are drawn again

Forks = list[tuple[float, complex]]  # where along a stem, and by what scale and turn, it goes on
TREE: Forks = [(1, 0.75 * np.exp(1j * turn)) for turn in (-0.5, 0.1, 0.6)]
FERN: Forks = [(t / 10, (0.45 - t / 25) * np.exp(turn)) for t in range(10) for turn in (1j, -1j)]


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
    picture = canvas.picture.reshape(3, size, 2, size, 2).mean((2, 4))
    picture *= np.sqrt(rng.uniform(0.3, 0.6) / picture.mean())  # exposure
    mean = picture.mean((1, 2), keepdims=True)
    picture = mean + rng.uniform(0.4, 1) * (picture - mean)  # haze
    picture += rng.normal(0, 0.04, (size, size))  # grain
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


class Canvas:
    """A picture of n × n pixels that starts as a sky, and the painters that all scenes share. The
    picture is float32 (3, n, n) and a colour (3, 1, 1), from 0 to 1. A mask is (n, n), and counts
    as 0 below 0 and as 1 above 1. Places and lengths are fractions of n, and y points down."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.uniform, self.n = rng, rng.uniform, n
        self.x = np.arange(n, dtype=np.float32) / n
        self.y = self.x[:, None]
        self.picture = np.tile(self.colour(0.3, 0.6), (1, n, n))
        self.paint(self.colour(0.5, 0.9), self.y)
        self.paint(rng.choice([0.25, 0.95]), self.noise(3, 9) - self.uniform(0, 0.6))  # clouds

    def colour(self, low: ArrayLike, high: ArrayLike) -> np.ndarray:
        """A random colour between two values, or between red, green and blue of two colours."""
        return self.uniform(np.asarray(low), np.asarray(high), 3).astype(np.float32)[:, None, None]

    def paint(self, colour: np.ndarray | float, mask: np.ndarray | float) -> None:
        """Lays a colour, one for all pixels or one for each, over the picture."""
        self.picture += (colour - self.picture) * np.clip(mask, 0, 1, dtype=np.float32)

    def noise(self, across: int, down: int) -> np.ndarray:
        """A smooth mask of `across` × `down` random values."""
        grid = Image.fromarray(self.rng.random((down, across), np.float32))
        return np.asarray(grid.resize((self.n, self.n)))

    def hills(self, base: float) -> np.ndarray:
        """Mask of hills above y = `base`, and of all below."""
        return self.y > base - 0.2 * self.noise(9, 1)[0]

    def spots(self, count: int, radius: float) -> np.ndarray:
        """(count, 3): x, y and radius of random circles of about this radius."""
        return self.uniform((0, 0, 0.5 * radius), (1, 1, 1.5 * radius), (count, 3))

    def balls(self, spots: np.ndarray, colour: np.ndarray | float) -> None:
        """Paints balls that are lit from the upper left."""
        light = np.zeros((self.n, self.n), np.float32)
        for x, y, radius in spots.astype(np.float32):
            right, down = (self.x - x) / radius, (self.y - y) / radius
            light = np.where(right**2 + down**2 < 1, 0.8 - 0.3 * (right + down), light)
        self.paint(colour * light, light > 0)

    def lines(self, rows: np.ndarray) -> np.ndarray:
        """Mask of lines, each given as x0, y0, x1, y1 and width."""
        layer = Image.new("F", (self.n, self.n))
        for *ends, width in (rows * self.n).tolist():
            ImageDraw.Draw(layer).line(ends, 1, max(1, round(width)))
        return np.asarray(layer)

    def grow(self, root: complex, stem: complex, forks: Forks, levels: int) -> np.ndarray:
        """Lines of a plant or a crystal: a stem at `root`, both as x + iy, and its branches."""
        tip = root + stem
        lines = [np.array([[root.real, root.imag, tip.real, tip.imag, 0.12 * abs(stem)]])]
        for place, factor in forks if levels > 1 else ():
            branch = stem * factor * np.exp(0.15j * self.rng.normal())
            lines.append(self.grow(root + place * stem, branch, forks, levels - 1))
        return np.concatenate(lines)

    # The scenes: each paints the weather of its name on the sky.
    def dew(self) -> None:
        self.paint(
            self.colour((0.2, 0.4, 0.1), (0.6, 0.9, 0.5)) * (0.7 + 0.5 * self.noise(12, 24)), 1
        )
        drops = self.spots(30, self.uniform(0.04, 0.08))
        self.balls(drops, 1.5 * self.picture)
        self.balls(drops * [1, 1, 0.25] - [0.02, 0.02, 0], 1.2)  # gleams

    def fogsmog(self) -> None:
        fog = self.picture.mean((1, 2), keepdims=True)
        for depth in range(4):  # the farther away, the paler
            self.paint(fog * (0.8 - 0.2 * depth), self.hills(0.6 + 0.1 * depth))
            self.paint(fog, 1.2 * self.noise(1, 3) - 0.2)

    def frost(self) -> None:
        self.picture *= 0.5
        for turn in np.exp(1j * self.uniform(0, 2 * np.pi, 7)):  # from the edges to the centre
            fern = self.grow(0.5 + 0.5j + 0.7 * turn, -self.uniform(0.3, 0.6) * turn, FERN, 3)
            self.paint(1, self.lines(fern * [1, 1, 1, 1, 0.2]))

    def glaze(self) -> None:
        for y in self.uniform(0, 0.7, 3):
            twigs = self.grow(
                self.uniform(-0.4, 0) + y * 1j, 0.35 + self.uniform(-0.1, 0.1) * 1j, TREE, 4
            )
            icicles = twigs[:, [2, 3, 2, 3, 4]] + [0, 0, 0, 0.12, 0]
            self.paint(0.9, self.lines(np.concatenate([twigs, icicles])))
            self.paint(0.2, self.lines(twigs * [1, 1, 1, 1, 0.4]))

    def hail(self) -> None:
        self.paint(self.colour((0.2, 0.2, 0.1), (0.6, 0.6, 0.4)), 1)
        self.balls(self.spots(100, self.uniform(0.02, 0.06)), 0.9)

    def lightning(self) -> None:
        self.picture *= 0.3 + 0.6 * self.noise(2, 4)
        y = np.linspace(0, 0.9, 20)
        for _ in range(self.rng.integers(2, 6)):  # strokes from one cloud
            x = 0.5 + np.cumsum(self.rng.normal(0, 0.06, 20))
            stroke = np.column_stack([x[:-1], y[:-1], x[1:], y[1:], np.full(19, 0.015)])
            self.paint(1, self.lines(stroke))
        self.paint(0.1, self.hills(self.uniform(0.8, 1)))

    def rain(self) -> None:
        self.paint(self.colour(0.1, 0.4), self.hills(self.uniform(0.6, 0.9)))
        x, y, length = self.spots(250, 0.1).T
        drops = [x, y, x + self.uniform(-0.5, 0.5) * length, y + length, 0.06 * length]
        self.paint(0.9, self.uniform(0.4, 0.8) * self.lines(np.column_stack(drops)))

    def rainbow(self) -> None:
        radius = np.hypot(self.x - self.uniform(0, 1), self.y - 0.9)
        place = (self.uniform(0.4, 0.9) - radius) / self.uniform(
            0.1, 0.15
        )  # from 0 to 1 across the bow
        colours = [1.3 - 3 * np.abs(place - peak) for peak in (0.2, 0.5, 0.8)]
        self.paint(np.clip(colours, 0, 1), 5 * place * (1 - place))
        self.paint(self.colour(0.1, (0.5, 0.6, 0.3)), self.hills(self.uniform(0.7, 1)))

    def rime(self) -> None:
        self.paint(1 - 0.2 * self.noise(6, 24), self.hills(self.uniform(0.8, 1)))
        for x in self.uniform(0.1, 0.9, self.rng.integers(1, 4)):
            tree = self.grow(x + 0.95j, self.uniform(-0.28, -0.13) * 1j, TREE, 7)
            self.paint(0.2, self.lines(tree))
            self.paint(1, self.lines(tree[tree[:, 4] < 0.01]))  # its twigs

    def sandstorm(self) -> None:
        dust = self.colour((0.7, 0.5, 0.3), (1, 0.7, 0.5)) * (0.5 + 0.7 * self.noise(6, 12))
        billows = self.spots(120, 0.1)
        billows[:, 1] = np.sort(
            self.uniform(self.uniform(0.1, 0.4), 1, 120)
        )  # the nearest come last
        self.balls(billows, dust)
        self.paint(dust, self.noise(3, 12) + self.y - 0.7)

    def snow(self) -> None:
        self.paint(1 - 0.2 * self.noise(6, 24), self.hills(self.uniform(0.6, 0.8)))
        for y in self.uniform(0.7, 1, 6):  # pines
            x, height = self.uniform((0, 0.2), (1, 0.4))
            self.paint(
                self.colour(0.1, 0.3),
                (self.y < y) & (np.abs(self.x - x) < 0.3 * (self.y - y + height)),
            )
        self.balls(self.spots(150, 0.015), 1.2)


CLASSES = ("dew", "fogsmog", "frost", "glaze", "hail", "lightning", "rain", "rainbow", "rime",
           "sandstorm", "snow")  # fmt: skip
