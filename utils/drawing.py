"""Two pictures about a test set, drawn with Pillow alone: the confusion matrix and a photo grid."""

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# A wrongly named photo: the picture, its true class, the predicted class and its probability.
WrongPhoto = tuple[Image.Image | np.ndarray, str, str, float]

FULL = (8, 48, 107)  # colour of a cell that holds its whole row; an empty cell is white
INK = (30, 30, 30)
GAP = 8
SMALLEST_FONT = 8  # smaller letters are noise
LONGEST_NAME = 200  # pixels of a class name before it is cut


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """A confusion matrix as an RGB picture.

    `counts` is (C, C), whole numbers from 0 up, rows = true class and columns = predicted class;
    `classes` are the C names. A cell's colour runs from white (0) to FULL (all photos of its true
    class); the number in it is the count, 0 left out. Counts and names are left out where C is so
    large that they could not be read.
    """
    number = len(classes)
    if counts.shape != (number, number):
        raise ValueError(f"a confusion matrix of {number} classes has not the shape {counts.shape}")
    cell = min(72, max(2, 1400 // number))
    cells = _draw_cells(counts, cell)
    names = _draw_names(classes, cell)
    title = [
        "rows: true class, columns: predicted class",
        "number: photos, colour: share of the row",
    ]
    font = ImageFont.load_default(14)
    top = GAP + 20 * len(title) + GAP
    left = GAP + names.width

    wide = max(left + cells.width, GAP + round(max(map(font.getlength, title))))
    picture = Image.new("RGB", (wide + GAP, top + cells.height + names.width + GAP), "white")
    for line, text in enumerate(title):
        ImageDraw.Draw(picture).text((GAP, GAP + 20 * line), text, INK, font)
    picture.paste(names, (GAP, top))
    picture.paste(cells, (left, top))
    # Turned by a quarter, the row names become column names that end at the matrix.
    picture.paste(names.transpose(Image.Transpose.ROTATE_90), (left, top + cells.height))
    return picture


def photo_grid(photos: Sequence[WrongPhoto], most: int = 24) -> Image.Image:
    """The `most` photos that were named wrongly with the highest probability, as an RGB picture.

    Photos are RGB images or (H, W, 3) uint8 arrays of any size, at least one of them; the most
    confident error comes first. Under each stand its true class, and the predicted one with its
    probability.
    """
    photos = sorted(photos, key=lambda photo: -photo[3])[:most]
    columns = min(6, math.ceil(math.sqrt(len(photos))))
    tile, caption = 180, 54
    size = (columns * (tile + GAP) + GAP, math.ceil(len(photos) / columns) * (tile + caption) + GAP)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(14)
    for index, (photo, true, predicted, probability) in enumerate(photos):
        x = GAP + index % columns * (tile + GAP)
        y = GAP + index // columns * (tile + caption)
        image = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
        grid.paste(ImageOps.pad(image, (tile, tile), color="white"), (x, y))
        sure = f" {probability:.0%}"
        room = tile - font.getlength(sure)
        draw.text((x, y + tile + 3), _cut(f"true {_drawable(true, '?')}", font, tile), INK, font)
        called = _cut(f"predicted {_drawable(predicted, '?')}", font, room) + sure
        draw.text((x, y + tile + 21), called, INK, font)
    return grid


def _draw_cells(counts: np.ndarray, cell: int) -> Image.Image:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = 255 + share[..., None] * (np.array(FULL) - 255)
    side = cell * len(counts)
    cells = Image.fromarray(np.rint(colours).astype(np.uint8))
    cells = cells.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(cells)
    if cell >= SMALLEST_FONT:
        for edge in range(0, side, cell):
            draw.line([(edge, 0), (edge, side)], (225, 225, 225))
            draw.line([(0, edge), (side, edge)], (225, 225, 225))
    draw.rectangle([0, 0, side - 1, side - 1], outline=INK)

    widest = ImageFont.load_default(100).getlength(str(counts.max())) / 100
    size = min(cell / 3, 0.85 * cell / widest)
    if size >= SMALLEST_FONT:
        font = ImageFont.load_default(size)
        for row, column in np.argwhere(counts):
            middle = ((column + 0.5) * cell, (row + 0.5) * cell)
            ink = "white" if share[row, column] > 0.5 else INK
            draw.text(middle, str(counts[row, column]), ink, font, anchor="mm")
    return cells


def _draw_names(classes: Sequence[str], cell: int) -> Image.Image:
    """The names under one another, `cell` pixels apart, ending at the right edge."""
    size = min(16, 0.75 * cell)
    if size < SMALLEST_FONT:
        return Image.new("RGB", (1, cell * len(classes)), "white")
    font = ImageFont.load_default(size)
    names = [
        _cut(_drawable(name, f"class {i}"), font, LONGEST_NAME) for i, name in enumerate(classes)
    ]
    width = math.ceil(max(map(font.getlength, names))) + GAP
    strip = Image.new("RGB", (width, cell * len(classes)), "white")
    for index, name in enumerate(names):
        place = (width - GAP // 2, (index + 0.5) * cell)
        ImageDraw.Draw(strip).text(place, name, INK, font, anchor="rm")
    return strip


def _drawable(name: str, otherwise: str) -> str:
    """`name` in the letters of Pillow's built-in font, ASCII: accents are dropped.

    A name of which nothing remains, such as a Chinese one, becomes `otherwise`.
    """
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return "".join(letter for letter in ascii_only if letter.isprintable()).strip() or otherwise


def _cut(text: str, font: Any, width: float) -> str:
    """`text`, or as much of its beginning and an ellipsis as `width` pixels hold."""
    if font.getlength(text) <= width:
        return text
    lengths = range(len(text))
    fitting = bisect_right(lengths, width, key=lambda n: font.getlength(text[:n] + "…"))
    return text[: max(fitting - 1, 0)] + "…"
