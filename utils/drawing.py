"""Two pictures about a test set, drawn with Pillow alone: the confusion matrix and a photo grid."""

import math
from collections.abc import Sequence
from unicodedata import combining, normalize

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# A wrongly classified photo (H, W, 3) uint8, its true class, the predicted one, its probability.
WrongPhoto = tuple[np.ndarray, str, str, float]
FULL = (8, 48, 107)  # colour of a cell with all photos of its true class; an empty one is white
GAP = 8


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """An RGB picture of (C, C) counts, rows = true class, columns = predicted class. The colour is
    the share of the row, the number the count; what would be too small to read is omitted."""
    cell = min(72, max(2, 1400 // len(classes)))
    side = cell * len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = np.rint(255 + share[..., None] * (np.array(FULL) - 255)).astype(np.uint8)
    cells = Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(cells), ImageFont.load_default(cell / 3.5)  # five digits fit
    for edge in (*range(0, side, cell if cell >= GAP else side), side - 1):
        draw.line([(edge, 0), (edge, side)], "lightgrey")
        draw.line([(0, edge), (side, edge)], "lightgrey")
    for row, column in np.argwhere(counts) if cell >= 28 else ():
        ink = "white" if share[row, column] > 0.5 else "black"
        middle = ((column + 0.5) * cell, (row + 0.5) * cell)
        draw.text(middle, str(counts[row, column]), ink, font, anchor="mm")

    names = [name[:24] if cell >= 11 else "" for name in drawable(classes).values()]
    font = ImageFont.load_default(max(8, min(16, 0.75 * cell)))
    width = math.ceil(max(map(font.getlength, names))) + GAP
    left, top = GAP + width, 60
    picture = Image.new("RGB", (max(left + side, 300) + GAP, top + side + width), "white")
    draw = ImageDraw.Draw(picture)
    title = "rows: true class, columns: predicted class\nnumber: photos, colour: share of the row"
    draw.text((GAP, GAP), title, "black", ImageFont.load_default(14))
    for row, name in enumerate(names):
        draw.text((left - 4, top + (row + 0.5) * cell), name, "black", font, anchor="rm")
    picture.paste(cells, (left, top))
    # Turned by a quarter, the names of the rows are those of the columns and end at the matrix.
    strip = picture.crop((GAP, top, left, top + side)).transpose(Image.Transpose.ROTATE_90)
    picture.paste(strip, (left, top + side))
    return picture


def photo_grid(photos: Sequence[WrongPhoto], classes: Sequence[str]) -> Image.Image:
    """An RGB picture of the 24 errors with the highest probability, highest first."""
    photos = sorted(photos, key=lambda photo: -photo[3])[:24]
    columns, names, font = min(6, len(photos)), drawable(classes), ImageFont.load_default(14)
    wide, high = 180 + GAP, 180 + 50
    grid = Image.new("RGB", (columns * wide, math.ceil(len(photos) / columns) * high), "white")
    for index, (pixels, true, predicted, probability) in enumerate(photos):
        tile = Image.new("RGB", (180, high), "white")  # captions that are too long end at its edge
        tile.paste(ImageOps.pad(Image.fromarray(pixels), (180, 180), color="white"))
        caption = f"true: {names[true]}\npredicted {probability:.0%}: {names[predicted]}"
        ImageDraw.Draw(tile).text((0, 183), caption, "black", font)
        grid.paste(tile, (index % columns * wide, index // columns * high))
    return grid


def drawable(classes: Sequence[str]) -> dict[str, str]:
    """Each name without accents, or "class 5" where the built-in font still lacks its letters."""
    shown = {}
    for index, name in enumerate(classes):
        plain = "".join(c for c in normalize("NFKD", name) if not combining(c))
        fits = plain.isascii() and plain.isprintable() and plain.strip()
        shown[name] = plain if fits else f"class {index}"
    return shown
