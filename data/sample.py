"""Draws the sample: eleven recognisable classes of weather; every command runs without a download.

    python -m data.sample --sheet docs/illustration/sample.png     # six photos of each class

The classes share skies, land, trees and skylines, and a camera varies brightness and tint. So the
mean colour says little: a classifier has to learn what weather looks like.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from config import UserError
from data.files import atomic_folder, lock

VERSION = 2  # counted up whenever a drawing changes, so that older samples are drawn again
MARKER = "sample.json"  # only a folder with this file is replaced

# How a twig branches: where along it, by what complex factor (scale and turn), and how likely.
TREE = np.array([(1, 0.75 * np.exp(1j * turn), 0.75) for turn in (-0.5, 0, 0.5)])
FERN = np.array([(t / 10, (0.45 - t / 25) * np.exp(s), 1) for t in range(10) for s in (1j, -1j)])
BOLT = np.array([(1, 1, 1), (1, 0.5 + 0.5j, 0.15), (1, 0.5 - 0.5j, 0.15)])


def draw_sample(folder: Path, seed: int = 0, per_class: int = 48, size: int = 96) -> Path:
    """Draws `per_class` photos of every class as <folder>/<class>/<number>.jpg; returns `folder`.

    The photos are RGB JPEGs of size × size pixels, the same bytes for the same arguments. A
    complete sample of this version and these settings is reused, any other sample is replaced.
    Raises UserError if `folder` holds something else than a sample or cannot be written.
    """
    marker = json.dumps({"version": VERSION, "seed": seed, "per_class": per_class, "size": size})
    photos = [f"{name}/{number:04d}.jpg" for name in CLASSES for number in range(per_class)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder.parent):  # two processes may draw it at once
            if (folder / MARKER).is_file():
                complete = all((folder / photo).is_file() for photo in photos)
                if complete and (folder / MARKER).read_bytes() == marker.encode():
                    return folder
            elif folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} holds something else than a drawn sample; move it away")
            with atomic_folder(folder) as new:
                for path in map(new.joinpath, photos):
                    path.parent.mkdir(exist_ok=True)
                    draw_photo(path.parent.name, int(path.stem), seed, size).save(path, quality=92)
                (new / MARKER).write_text(marker)
    except OSError as error:
        raise UserError(f"cannot draw the sample into {folder}: {error}") from error
    return folder


def draw_photo(name: str, number: int, seed: int = 0, size: int = 96) -> Image.Image:
    """Draws an RGB image of size × size pixels, which depends on these arguments alone."""
    rng = np.random.default_rng([VERSION, seed, CLASSES.index(name), number])
    canvas = Canvas(rng, 2 * size)  # drawn twice as large and reduced, for smooth edges
    SCENES[CLASSES.index(name)](canvas)
    picture = canvas.picture.reshape(3, size, 2, size, 2).mean((2, 4)).clip(0.004, 1)
    # The camera: partly automatic exposure, a random tint, and grain.
    picture **= (np.log(rng.uniform(0.3, 0.6)) / np.log(picture.mean())) ** 0.6
    picture *= np.exp(rng.normal(0, 0.05, (3, 1, 1)))
    picture += rng.normal(0, rng.uniform(0.005, 0.03), (size, size))
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def draw_sheet(path: Path) -> None:
    """Writes a contact sheet, a PNG of 256 colours: for each class its name and six photos."""
    sheet = Image.new("RGB", (70 + 6 * 90, len(CLASSES) * 90), "white")
    for row, name in enumerate(CLASSES):
        ImageDraw.Draw(sheet).text((6, 90 * row + 44), name, "black", anchor="lm")
        for column in range(6):
            sheet.paste(draw_photo(name, column, size=88), (70 + 90 * column, 90 * row))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


class Canvas:
    """A picture of n × n pixels that starts as a sky, and the painters that all scenes share.

    The picture is float32 (3, n, n) and a colour (3, 1, 1), from 0 to 1. A mask is (n, n), and
    counts as 0 below 0 and as 1 above 1. Places and lengths are fractions of n, and y points down.
    """

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.uniform, self.n = rng, rng.uniform, n
        self.x = np.arange(n, dtype=np.float32) / n
        self.y = self.x[:, None]
        self.picture = np.tile(rng.uniform(0.2, 1) * self.colour((0.5, 0.6, 0.7), 0.9), (1, n, n))
        self.paint(self.colour((0.8, 0.7, 0.6), 1) * rng.uniform(0.4, 1), self.y)
        self.paint(rng.choice([0.25, 0.95]), 2 * self.noise(2, 4) - rng.uniform(0.6, 1.5))

    def colour(self, low: ArrayLike, high: ArrayLike) -> np.ndarray:
        """A random colour between two values, or between red, green and blue of two colours."""
        return self.uniform(np.asarray(low), np.asarray(high), 3).astype(np.float32)[:, None, None]

    def paint(self, colour: np.ndarray | float, mask: np.ndarray | float) -> None:
        """Lays a colour, one for all pixels or one for each, over the picture."""
        self.picture += (colour - self.picture) * np.clip(mask, 0, 1, dtype=np.float32)

    def noise(self, across: int, down: int, octaves: int = 4) -> np.ndarray:
        """A mask of smooth noise, with `across` × `down` cells in its coarsest octave."""
        total = np.zeros((self.n, self.n), np.float32)
        for scale in 2 ** np.arange(octaves):
            grid = self.rng.random((down * scale, across * scale), np.float32)
            total += np.asarray(Image.fromarray(grid).resize(total.shape)) / scale
        return (total - total.min()) / np.ptp(total)

    def land(self, base: float, height: float, bumps: int = 3) -> np.ndarray:
        """Mask of what lies below a wavy line around y = `base`."""
        return (self.y - base + height * (self.noise(bumps, 1, 3)[0] - 0.5)) * self.n

    def skyline(self, base: float, height: float) -> np.ndarray:
        """Mask of a row of buildings, up to `height` above y = `base`, and of all below."""
        edges, heights = np.cumsum(self.uniform(0.07, 0.2, 15)), self.uniform(0.3, 1, 16)
        return self.y > base - height * heights[np.searchsorted(edges, self.x)]

    def spots(self, count: float, width: float, top: float = -0.1, low: float = 1) -> np.ndarray:
        """(count, 4): random square boxes of about this width."""
        x, y = self.uniform((-0.1, top), (1, low), (int(count), 2)).T
        size = width * self.rng.lognormal(0, 0.35, len(x))
        return np.column_stack([x, y, x + size, y + size])

    def shapes(self, rows: np.ndarray, blur: float = 0) -> np.ndarray:
        """Mask of ellipses (rows of x0, y0, x1, y1) or lines (the same, then a width)."""
        layer = Image.new("L", (self.n, self.n))
        pen = ImageDraw.Draw(layer)
        for row in (rows * self.n).tolist():
            if len(row) == 4:
                pen.ellipse(row, 255)
            else:
                pen.line(row[:4], 255, max(1, round(row[4])))
        layer = layer.filter(ImageFilter.GaussianBlur(blur * self.n))
        return np.asarray(layer, np.float32) / 255

    def balls(self, boxes: np.ndarray, x: float, y: float) -> np.ndarray:
        """Brightness of balls in boxes that are lit from the side (x, y), each -1 to 1."""
        inset = (boxes[:, 2:3] - boxes[:, :1]) * [1 + x, 1 + y, x - 1, y - 1]
        return np.mean([self.shapes(boxes + t * inset) for t in np.linspace(0, 0.45, 8)], axis=0)

    def grow(self, root: complex, stem: complex, forks: np.ndarray, levels: int) -> np.ndarray:
        """Lines of a plant or a crystal: a stem at `root`, both as x + iy, and its branches."""
        start, twig, lines = np.array([root]), np.array([stem]), []
        place, factor, chance = forks.T[..., None]
        for _ in range(levels):
            ends = np.column_stack([start, start + twig]).view(float)
            lines.append(np.column_stack([ends, 0.12 * np.abs(twig)]))
            kept = self.rng.random((len(forks), len(twig))) < chance.real
            start, twig = (start + place * twig)[kept], (factor * twig)[kept]
            twig *= np.exp(0.15j * self.rng.normal(size=len(twig)))
        return np.concatenate(lines)

    def snowfield(self, horizon: float) -> np.ndarray:
        """Paints woods and snow before them; returns the colour of the snow."""
        snow = 0.6 + 0.4 * self.picture[:, self.n // 2 :].mean((1, 2), keepdims=True)
        self.paint(snow * self.uniform(0.3, 0.7), self.land(horizon - 0.1, 0.15, 5))
        self.paint(snow * (1 - 0.3 * self.noise(2, 6)), self.land(horizon, 0.06))
        return snow


# The scenes: each paints the weather of its name on a canvas that shows a sky.
def dew(c: Canvas) -> None:
    across = np.abs(c.y - 0.5 + c.uniform(-1.5, 1.5) * (c.x - 0.5))
    veins = np.cos(60 * (c.x - 0.7 * across)) > 0.95
    leaf = c.colour((0.2, 0.4, 0.1), (0.7, 0.9, 0.5)) * (0.6 + 0.7 * c.noise(4, 4))
    c.paint(leaf + 0.15 * veins, (c.uniform(0.4, 1) - across) * 40)
    drops = c.spots(c.uniform(14, 40), c.uniform(0.06, 0.16))
    c.paint(0, 0.5 * c.shapes(drops + 0.02, 0.008))
    bright = c.balls(drops, 0.4, 0.5)  # light enters a drop above and leaves it below
    c.paint(c.picture * 2 * bright + 0.3 * bright**2, c.shapes(drops))
    c.paint(1, c.shapes(drops + (drops[:, 2:3] - drops[:, :1]) * [0.25, 0.2, -0.5, -0.6]))


def fogsmog(c: Canvas) -> None:
    fog, base = c.picture.mean((1, 2), keepdims=True), c.uniform(0.6, 0.75)
    for depth in range(4):  # the farther away, the paler
        c.paint(fog * (0.88 - 0.17 * depth), c.skyline(base + 0.08 * depth, 0.45))
        c.paint(fog, 1.2 * c.noise(1, 3, 3) + 1.5 * (c.y - base))
    tree = c.grow(c.uniform(0, 1) + 1j, c.uniform(-0.2, -0.1) * 1j, TREE, 6)
    c.paint(fog * 0.35, c.uniform(0.2, 0.8) * c.shapes(tree))


def frost(c: Canvas) -> None:
    c.paint(c.colour(0.1, 0.5) * (0.2 + c.noise(2, 4)), 1)
    for x in np.linspace(0, 1, c.rng.integers(4, 7)):
        fern = c.grow(x + 1.05j, c.uniform(-0.3, 0.3) - c.uniform(0.3, 0.9) * 1j, FERN, 3)
        c.paint(1, 0.9 * c.shapes(fern * [1, 1, 1, 1, 0.2], 0.002))
    c.picture = np.rot90(c.picture, c.rng.choice(4), axes=(1, 2))


def glaze(c: Canvas) -> None:
    c.paint(c.colour(0.2, 0.6) * (0.6 + 0.7 * c.noise(2, 4)), 1)
    for y in np.linspace(0, 0.7, c.rng.integers(2, 5)):
        side = c.rng.choice([-1, 1])
        twigs = c.grow(0.5 - 0.55 * side + y * 1j, side * 0.35 + c.uniform(-0.1, 0.1) * 1j, TREE, 4)
        icicles = [-0.015, -0.02, 0.015, 0.2] * c.uniform(0.3, 1, (len(twigs), 1))
        c.paint(0.95, 0.8 * c.shapes(icicles + twigs[:, [2, 3, 2, 3]]))
        for wider, colour in ((0.03, 1), (0.02, 0.7), (0, 0.1)):  # the wood in its shell of ice
            c.paint(colour, 0.9 * c.shapes(twigs * [1, 1, 1, 1, 0.5] + [[0, 0, 0, 0, wider]]))


def hail(c: Canvas) -> None:
    c.paint(c.colour((0.2, 0.2, 0.1), (0.5, 0.5, 0.3)) * (0.6 + 0.7 * c.noise(6, 12)), 1)
    stones = c.spots(c.uniform(30, 150), c.uniform(0.04, 0.14))
    c.paint(0, 0.5 * c.shapes(stones + 0.02, 0.006))
    bright = 0.5 + 0.5 * c.balls(stones, c.uniform(-0.5, 0.5), -0.4)
    c.paint(bright * (0.9 + 0.2 * c.noise(24, 24, 2)), c.shapes(stones))


def lightning(c: Canvas) -> None:
    c.picture *= 0.3 + 0.6 * c.noise(2, 4)
    glow = c.colour(0.5, (0.9, 0.9, 1))
    for x in c.uniform(0.1, 0.9, c.rng.integers(1, 4)):
        bolt = c.grow(x - 0.1j, 0.1j, BOLT, 9)
        zigzag = np.cumsum(c.rng.normal(0, 0.04, 24))
        bolt[:, [0, 2]] += np.interp(bolt[:, [1, 3]], np.linspace(0, 1, 24), zigzag)
        for colour, blur, strength in ((glow, 0.12, 1.6), (glow, 0.02, 1.2), (1, 0, 1)):
            c.paint(colour, strength * c.shapes(bolt, blur))
    c.paint(c.uniform(0, 0.15), c.skyline(c.uniform(0.8, 1), c.uniform(0.05, 0.35)))


def rain(c: Canvas) -> None:
    horizon, tone = c.uniform(0.6, 0.8), c.picture.mean((1, 2), keepdims=True)
    c.paint(tone * c.uniform(0.3, 0.7), c.skyline(horizon, c.uniform(0.25, 0.6)))
    c.paint(tone * c.uniform(0.3, 0.9) * (0.6 + 0.7 * c.noise(5, 10)), c.land(horizon, 0))
    x, y, h = c.uniform((0.1, horizon + 0.1, 0.2), (0.9, 1, 0.5))  # somebody under an umbrella
    c.paint(tone * 0.2, c.shapes(np.array([(x, y - 0.7 * h, x, y, 0.2 * h)])))
    roof = c.shapes(np.array([(x - 0.4 * h, y - h, x + 0.4 * h, y - 0.2 * h)]))
    c.paint(c.colour(0, 1), roof * (c.y < y - 0.6 * h))
    x, y, _, low = c.spots(250, 0.1, -0.2).T
    drops = [x, y, x + c.uniform(-0.5, 0.5) * (low - y), low, 0.06 * (low - y)]
    c.paint(0.92, c.uniform(0.3, 0.7) * c.shapes(np.column_stack(drops), 0.0015))


def rainbow(c: Canvas) -> None:
    horizon, radius, width = c.uniform((0.5, 0.35, 0.07), (0.9, 0.95, 0.16))
    distance = np.hypot(c.x - c.uniform(-0.2, 1.2), c.y - horizon - c.uniform(-0.05, 0.25))
    inward = (radius + width - distance) / width  # from 0 to 1 across the bow
    strength = np.clip(c.uniform(1.5, 4) * c.noise(3, 3), 0, 1)
    for t, opacity in ((inward, 5), (-1 - inward, 2))[: c.rng.integers(1, 3)]:
        colours = [1.3 - 3 * np.abs(t - peak) for peak in (0.2, 0.5, 0.8)]
        c.paint(np.clip(colours, 0, 1), opacity * t * (1 - t) * strength)
    for depth in range(c.rng.integers(1, 4)):
        meadow = c.colour(0.1, (0.5, 0.6, 0.3)) * (0.6 + 0.7 * c.noise(5, 10))
        c.paint(meadow, c.land(horizon + 0.08 * depth, c.uniform(0, 0.3)))


def rime(c: Canvas) -> None:
    horizon = c.uniform(0.7, 0.92)
    snow = c.snowfield(horizon)
    for x in c.uniform(0.1, 0.9, c.rng.integers(1, 4)):
        tree = c.grow(x + (horizon + 0.05) * 1j, c.uniform(-0.28, -0.13) * 1j, TREE, 8)
        c.paint(snow * 0.3, c.shapes(tree))
        c.paint(snow**0.3, 5 * c.shapes(tree, 0.01) * (c.noise(48, 48, 2) - 0.3))
        c.paint(snow**0.3, c.shapes(tree - 0.003, 0.001))


def sandstorm(c: Canvas) -> None:
    horizon, dust = c.uniform(0.68, 0.88), c.colour((0.7, 0.5, 0.2), (1, 0.7, 0.6))
    billows = c.spots(250, 0.17, c.uniform(-0.1, 0.3), horizon)
    bright = 0.4 + 0.6 * c.balls(billows, c.uniform(-0.6, 0.6), -0.4)
    c.paint(dust * bright * (0.75 + 0.4 * c.noise(5, 8)), c.shapes(billows))
    c.paint(dust * 0.35, c.skyline(horizon, c.uniform(0.05, 0.2)))
    c.paint(dust * c.uniform(0.4, 0.9) * (0.6 + 0.7 * c.noise(5, 10)), c.land(horizon, 0.04))
    c.paint(dust, 2 * c.noise(2, 12) + 2 * (c.y - 1))


def snow(c: Canvas) -> None:
    horizon = c.uniform(0.55, 0.8)
    white = c.snowfield(horizon)
    for y in np.sort(c.uniform(horizon, 0.98, c.rng.integers(3, 8))):
        x, h = c.uniform(0, 1), (0.2 + y - horizon) * c.uniform(0.8, 1.5)
        up, tier = (y - c.y) / h, 4 * (y - c.y) / h % 1  # from 0 to 1 in the pine, in each tier
        pine = (up > 0) & (np.abs(c.x - x) < 0.4 * h * (1 - up) * (1 - 0.7 * tier))
        c.paint(np.where(tier < 0.4, c.colour(0, (0.2, 0.3, 0.3)), white), pine)
    c.paint(1, 0.9 * c.shapes(c.spots(200, 0.016), 0.002))


SCENES = (dew, fogsmog, frost, glaze, hail, lightning, rain, rainbow, rime, sandstorm, snow)
CLASSES = tuple(scene.__name__ for scene in SCENES)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws a contact sheet of the sample.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG file to write")
    try:
        draw_sheet(parser.parse_args().sheet)
    except OSError as error:
        parser.error(f"cannot write the sheet: {error}")
