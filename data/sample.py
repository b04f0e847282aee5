"""Draws the sample: eleven recognisable classes of weather; every command runs without a download.

    python -m data.sample --sheet docs/illustration/sample.png     # six photos of each class

A drawing is made like a photo: a scene, then the camera. The classes share their skies, trees,
hills, skylines and grounds, and the camera pulls every photo towards a random brightness and tint,
so that the mean colour tells little and a classifier has to learn what the weather looks like.
A photo depends on (seed, class, number, size) alone, whatever else is drawn, and in which order.
"""

import argparse
import colorsys
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from config import UserError

VERSION = 1  # counted up whenever a drawing changes, so that samples drawn before are drawn again
MARKER = "sample.json"  # written last; a folder without it is not a sample
STALE_SECONDS = 3600  # a half-drawn folder this old has no owner any more

Rng = np.random.Generator
Array = np.ndarray

# A sky's colours at its top and at the horizon.
SKIES = np.array(
    [
        [(63, 127, 196), (188, 217, 238)],  # day
        [(138, 147, 156), (201, 204, 206)],  # overcast
        [(109, 111, 168), (243, 183, 143)],  # dawn
        [(43, 47, 99), (217, 116, 90)],  # dusk
        [(12, 18, 48), (47, 61, 102)],  # night
        [(58, 65, 73), (125, 133, 135)],  # storm
        [(201, 141, 75), (244, 220, 166)],  # golden
        [(18, 80, 92), (143, 193, 186)],  # teal
        [(122, 63, 109), (233, 167, 180)],  # rose
    ],
    dtype=np.float32,
)


def draw_sample(folder: Path, seed: int = 0, per_class: int = 48, size: int = 96) -> Path:
    """Draws `per_class` photos of every class as <folder>/<class>/<number>.jpg; returns `folder`.

    The photos are RGB JPEGs of size × size pixels, the same bytes for the same arguments. A
    complete sample of this version and these settings is reused, any other sample is replaced.
    The folder gets its name when it is complete, in one step: a killed run leaves no half sample,
    and two runs at once do no harm.

    Raises UserError if a setting is out of range, if `folder` holds something else than a sample,
    or if it cannot be written.
    """
    if seed < 0 or per_class < 1 or size < 32:
        raise UserError(
            f"sample: seed {seed}, per_class {per_class}, size {size}: "
            "needs seed ≥ 0, per_class ≥ 1 and size ≥ 32"
        )
    settings = {"version": VERSION, "seed": seed, "per_class": per_class, "size": size}
    if _is_complete(folder, settings):
        return folder
    try:
        if folder.exists() and not (folder / MARKER).is_file() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else than a drawn sample; move it away")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
        try:
            _draw_all(partial / "new", settings)
            _put_in_place(partial, folder, settings)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot draw the sample into {folder}: {error}") from error
    return folder


def draw_photo(name: str, number: int, seed: int = 0, size: int = 96) -> Image.Image:
    """Draws photo `number` of class `name` as an RGB image of size × size pixels."""
    index = CLASSES.index(name)
    rng = np.random.default_rng([VERSION, seed, index, number])
    scene = SCENES[name](rng, 2 * size)  # drawn twice as large and reduced, for smooth edges
    return _develop(rng, scene.reshape(size, 2, size, 2, 3).mean((1, 3), dtype=np.float32))


def draw_sheet(path: Path, per_class: int = 6, size: int = 88) -> None:
    """Writes a contact sheet as a PNG: for each class a row of `per_class` photos and its name."""
    margin, gap = 70, 2
    extent = (margin + per_class * (size + gap), len(CLASSES) * (size + gap))
    sheet = Image.new("RGB", extent, "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(CLASSES):
        pen.text((6, row * (size + gap) + size // 2), name, fill="black", anchor="lm")
        for column in range(per_class):
            photo = draw_photo(name, column, size=size)
            sheet.paste(photo, (margin + column * (size + gap), row * (size + gap)))
    # A palette keeps the file at a third of its true-colour size.
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True)


def _is_complete(folder: Path, settings: dict[str, int]) -> bool:
    expected = {_photo_name(number) for number in range(settings["per_class"])}
    try:
        return json.loads((folder / MARKER).read_text()) == settings and all(
            expected <= {path.name for path in (folder / name).iterdir()} for name in CLASSES
        )
    except (OSError, ValueError):
        return False


def _photo_name(number: int) -> str:
    return f"{number:04d}.jpg"


def _draw_all(folder: Path, settings: dict[str, int]) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(settings["per_class"]):
            photo = draw_photo(name, number, settings["seed"], settings["size"])
            photo.save(folder / name / _photo_name(number), quality=92)
    (folder / MARKER).write_text(json.dumps(settings))


def _put_in_place(partial: Path, folder: Path, settings: dict[str, int]) -> None:
    if _is_complete(folder, settings):  # another process was faster
        return
    try:
        if folder.exists():
            folder.rename(partial / "old")
        (partial / "new").rename(folder)
    except OSError:  # another process was faster still
        if not _is_complete(folder, settings):
            raise


def _remove_stale(folder: Path) -> None:
    for path in folder.parent.iterdir():
        if path.name.startswith(f"{folder.name}.partial-"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it as well
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


# Brushes. A picture is a float32 array (n, n, 3), a mask one of (n, n), both from 0 to 1.
# Places, lengths and widths are fractions of n.


def _noise(rng: Rng, n: int, across: int, down: int, octaves: int = 4) -> Array:
    """Smooth noise (n, n) from 0 to 1, with `across` × `down` cells in its coarsest octave."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        scale = 2**octave
        grid = rng.random((down * scale, across * scale), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.BICUBIC)) / scale
    total -= total.min()
    return total / total.max()


def _grid(n: int) -> tuple[Array, Array]:
    """Coordinates x (1, n) and y (n, 1) from 0 to 1."""
    line = (np.arange(n, dtype=np.float32) + 0.5) / n
    return line[None, :], line[:, None]


def _step(value: Array, start: float, end: float) -> Array:
    """Smooth step: 0 at `start` and below, 1 at `end` and above."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _hsv(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _mix(picture: Array, colour: Array | float, mask: Array | float) -> Array:
    """`picture` with `colour` laid over it, as opaque as `mask`."""
    alpha = mask[..., None] if isinstance(mask, np.ndarray) else mask
    return picture + (colour - picture) * alpha


def _strokes(n: int, segments: Array, blur: float = 0) -> Array:
    """Mask of line segments: rows x0, y0, x1, y1, width."""
    layer = Image.new("L", (n, n))
    pen = ImageDraw.Draw(layer)
    for x0, y0, x1, y1, width in (segments * n).tolist():
        pen.line((x0, y0, x1, y1), 255, max(1, round(width)))
    return _as_mask(layer, blur)


def _as_mask(layer: Image.Image, blur: float = 0) -> Array:
    if blur:
        layer = layer.filter(ImageFilter.GaussianBlur(blur * layer.width))
    return np.asarray(layer, np.float32) / 255


def _as_image(picture: Array) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


def _as_picture(image: Image.Image) -> Array:
    return np.asarray(image, np.float32) / 255


def _blurred(picture: Array, radius: float) -> Array:
    blur = ImageFilter.GaussianBlur(radius * len(picture))
    return _as_picture(_as_image(picture).filter(blur))


def _develop(rng: Rng, picture: Array) -> Image.Image:
    """The camera: partly automatic exposure and white balance, random saturation and grain."""
    picture = np.clip(picture, 0.004, 1)
    gamma = (np.log(rng.uniform(0.3, 0.6)) / np.log(picture.mean())) ** 0.5
    picture = picture ** float(gamma)
    mean = picture.mean((0, 1))
    tint = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    picture *= tint * (mean.mean() / mean) ** 0.15
    grey = picture.mean(2, keepdims=True)
    picture = grey + (picture - grey) * rng.uniform(0.6, 1.3)
    grain = rng.normal(0, rng.uniform(0.005, 0.025), picture.shape[:2]).astype(np.float32)
    return _as_image(picture + grain[..., None])


# Parts of scenes.


def _sky(rng: Rng, n: int, clouds: float = 0.5) -> Array:
    """A sky between two random ones of SKIES, with bright or dark clouds."""
    one, other = SKIES[rng.integers(len(SKIES), size=2)] / 255
    top, bottom = one + (other - one) * rng.random(dtype=np.float32)
    _, y = _grid(n)
    sky = np.broadcast_to(top, (n, n, 3)) + (bottom - top) * y[..., None] ** rng.uniform(0.6, 1.6)
    veil = _step(_noise(rng, n, 2, 4), rng.uniform(0.4, 0.6), 0.85)
    return _mix(sky, 0.95 if rng.random() < 0.7 else 0.25, veil * clouds * rng.uniform(0.3, 1))


def _ridge(rng: Rng, n: int, base: float, height: float, bumps: int = 3) -> Array:
    """Mask of the land below a wavy line around y = `base`."""
    _, y = _grid(n)
    line = _noise(rng, n, bumps, 1, 3)[0]
    return _step(y - base + height * (line - 0.5), -1 / n, 1 / n)


def _skyline(rng: Rng, n: int, base: float, height: float) -> tuple[Array, Array]:
    """Masks of a row of buildings that stand on y = `base`, and of their lit windows."""
    walls, lights = Image.new("L", (n, n)), Image.new("L", (n, n))
    wall, light = ImageDraw.Draw(walls), ImageDraw.Draw(lights)
    x, pitch = -rng.uniform(0, 0.1), rng.uniform(0.025, 0.04)
    while x < 1:
        width, top = rng.uniform(0.06, 0.18), base - height * rng.uniform(0.3, 1)
        wall.rectangle((x * n, top * n, (x + width) * n, n), 255)
        if rng.random() < 0.2:
            mast = (x + width / 2) * n
            wall.line((mast, (top - 0.08) * n, mast, top * n), 255, 2)
        for u in np.arange(x + 0.015, x + width - 0.02, pitch):
            for v in np.arange(top + 0.02, base - 0.02, pitch * 1.3):
                if rng.random() < 0.5:
                    light.rectangle((u * n, v * n, (u + 0.012) * n, (v + 0.018) * n), 255)
        x += width + rng.choice([0, 0, 0.03])
    return _as_mask(walls), _as_mask(lights)


def _tree(
    rng: Rng, x: float, y: float, length: float, levels: int, lean: float = -np.pi / 2
) -> Array:
    """Segments of a bare tree that grows from (x, y); `length` is that of its trunk."""
    start, angle, segments = np.array([[x, y]]), np.array([lean]), []
    width, spread = length * rng.uniform(0.12, 0.18), rng.uniform(0.35, 0.6)
    for _ in range(levels):
        size = length * rng.uniform(0.7, 1.15, (len(angle), 1))
        end = start + size * np.column_stack([np.cos(angle), np.sin(angle)])
        segments.append(np.column_stack([start, end, np.full(len(end), max(width, 0.004))]))
        fork = np.tile([-spread, 0, spread], len(angle)) + rng.normal(0, 0.2, 3 * len(angle))
        keep = rng.random(len(fork)) < min(0.75, 120 / len(fork))
        keep[0] = True
        start, angle = np.repeat(end, 3, axis=0)[keep], (np.repeat(angle, 3) + fork)[keep]
        length, width = length * 0.73, width * 0.62
    return np.concatenate(segments)


def _bokeh(rng: Rng, n: int, hue: float) -> Array:
    """A background far out of focus: soft discs of light over a dark or bright ground."""
    value = rng.uniform(0.2, 0.8)
    ground = _hsv(hue, rng.uniform(0.1, 0.6), value)
    other = _hsv(hue + rng.normal(0, 0.12), rng.uniform(0.1, 0.7), value * rng.uniform(0.4, 1.2))
    picture = _mix(np.broadcast_to(ground, (n, n, 3)), other, _noise(rng, n, 2, 2, 2))
    layer = Image.new("L", (n, n))
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.integers(0, 14)):
        x, y, r = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0.03, 0.1) * n
        pen.ellipse((x - r, y - r, x + r, y + r), int(rng.integers(60, 200)))
    return _mix(picture, _hsv(hue + rng.normal(0, 0.1), 0.3, 1), 0.5 * _as_mask(layer, 0.012))


def _leaf(rng: Rng, n: int, hue: float) -> tuple[Array, Array]:
    """A large leaf with veins (n, n, 3), and its mask."""
    x, y = _grid(n)
    turn = rng.uniform(0, np.pi)
    dx, dy = x - rng.uniform(0.35, 0.65), y - rng.uniform(0.35, 0.65)
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn) + rng.uniform(-0.6, 0.6) * along**2
    length, breadth = rng.uniform(0.5, 1.0), rng.uniform(0.22, 0.6)
    edge = breadth * (1 - (along / length) ** 2) - np.abs(across)
    wave = (along - 0.7 * np.abs(across)) * rng.uniform(40, 80)
    vein = np.maximum(_step(np.cos(wave), 0.9, 1), 1 - _step(np.abs(across), 0.006, 0.016))
    colour = _hsv(hue, rng.uniform(0.4, 0.85), rng.uniform(0.35, 0.8))
    tone = 0.75 + 0.35 * _noise(rng, n, 3, 3, 3) - 0.08 * np.sign(across)
    return _mix(colour * tone[..., None], colour**0.5, 0.4 * vein), _step(edge, 0, 0.012)


@cache
def _ball(lit_x: float, lit_y: float) -> tuple[Image.Image, Image.Image]:
    """A ball lit from (lit_x, lit_y): its brightness and its mask, each 64 × 64 pixels, mode L."""
    x, y = _grid(64)
    x, y = 2.1 * x - 1.05, 2.1 * y - 1.05
    r = np.hypot(x, y)
    z = np.sqrt(np.clip(1 - r * r, 0, 1))
    light = np.clip(0.35 + 0.65 * (z + lit_x * x + lit_y * y) / 1.4, 0, 1)
    return _as_image(light), _as_image(1 - _step(r, 0.93, 1.03))


# Scenes, one for each class.


def _dew(rng: Rng, n: int) -> Array:
    hue = rng.uniform(0.18, 0.4) if rng.random() < 0.7 else rng.random()  # mostly green
    picture = _bokeh(rng, n, hue)
    for _ in range(rng.integers(1, 4)):
        leaf, mask = _leaf(rng, n, hue + rng.normal(0, 0.02))
        picture = _mix(_mix(picture, 0.0, 0.4 * np.roll(mask, n // 40, axis=0)), leaf, mask)
    image, scale = _as_image(picture), rng.uniform(0.5, 1.4)
    for _ in range(rng.integers(14, 32)):
        radius = np.clip(scale * rng.lognormal(-3.0, 0.45), 0.022, 0.17)
        _drop(image, rng.uniform(0, n), rng.uniform(0, n), radius * n)
    return _as_picture(image)


def _drop(image: Image.Image, x: float, y: float, radius: float) -> None:
    """Lays a water drop on `image`: it turns what lies under it upside down, and glints."""
    light, mask = _ball(0.6, 0.7)  # dark above, bright below, as light goes through
    left, top, width = round(x - radius), round(y - radius), round(2 * radius)
    light, mask = light.resize((width, width)), mask.resize((width, width))
    image.paste(0, (left + width // 10, top + width // 6), mask.point(lambda v: v * 0.45))
    under = image.crop((left, top, left + width, top + width)).rotate(180)
    under = ImageChops.multiply(under, Image.merge("RGB", [light] * 3))
    glow = light.point(lambda v: v * 0.33)
    image.paste(ImageChops.add(under, Image.merge("RGB", [glow] * 3)), (left, top), mask)
    spot = mask.resize((max(3, width // 4), max(3, width // 5)))
    image.paste((255, 255, 255), (left + width // 4, top + width // 5), spot)


def _fogsmog(rng: Rng, n: int) -> Array:
    picture = _sky(rng, n, 0.2)
    fog = picture[n // 2 :].mean((0, 1))
    fog = fog + (fog.mean() - fog) * rng.uniform(0.3, 0.9)
    x, y = _grid(n)
    if rng.random() < 0.5:
        sun = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.1, 0.35))
        picture = _mix(picture, 1.0, 0.5 * (1 - _step(sun, 0.05, 0.07)))
    picture = _mix(picture, fog, 0.7)
    height, base = rng.uniform(0.3, 0.5), rng.uniform(0.6, 0.75)
    for depth in range(4):
        tall = (height + 0.08 * depth) * rng.uniform(0.7, 1)
        wall, _ = _skyline(rng, n, base + 0.08 * depth, tall)
        picture = _mix(picture, fog * (0.88 - 0.17 * depth), wall)
        thick = 1.3 * _noise(rng, n, 1, 3, 3) + 1.5 * (y - base)
        picture = _mix(picture, fog, np.clip(thick, 0, 1) * rng.uniform(0.6, 0.95))
    if rng.random() < 0.6:
        tree = _tree(rng, rng.uniform(0, 1), 1.0, rng.uniform(0.12, 0.2), 6)
        picture = _mix(picture, fog * 0.35, 0.8 * _strokes(n, tree))
    return _mix(picture, fog, rng.uniform(0.1, 0.35))


def _frost(rng: Rng, n: int) -> Array:
    picture = _blurred(_sky(rng, n, 1.0), 0.03)
    picture = _mix(picture, _bokeh(rng, n, rng.random()), rng.uniform(0, 0.7))
    picture *= rng.uniform(0.3, 0.7)
    corner, ferns = rng.uniform(0, 2 * np.pi), []
    for shift in np.linspace(-0.5, 0.5, rng.integers(4, 7)):  # they grow from one side of the pane
        turn = corner + rng.normal(0, 0.25)
        root = 0.5 - 0.6 * np.array([np.cos(corner), np.sin(corner)])
        root = root + shift * np.array([-np.sin(corner), np.cos(corner)]) + rng.normal(0, 0.05, 2)
        ferns.append(_fern(rng, root, turn, rng.uniform(0.5, 1.2)))
    lines = np.concatenate(ferns)
    x, y = _grid(n)
    edge = 0.5 - (x - 0.5) * np.cos(corner) - (y - 0.5) * np.sin(corner)
    veil = _step(edge + 0.5 * (_noise(rng, n, 8, 8, 3) - 0.5), 0.3, 1.1)
    ice = 0.85 + 0.15 * _sky(rng, n)
    fine = lines[:, 4] < 0.005
    picture = _mix(picture, ice, 0.4 * veil)
    picture = _mix(picture, ice, 0.35 * _strokes(n, lines, 0.015))
    picture = _mix(picture, ice, 0.6 * _strokes(n, lines[fine], 0.001))
    return _mix(picture, ice, 0.9 * _strokes(n, lines[~fine], 0.002))


def _fern(rng: Rng, root: Array, turn: float, length: float) -> Array:
    """Segments of a feather of ice: a bent stem, barbs at 60 degrees, barbs on the barbs."""
    t = np.linspace(0, 1, 9)
    bend = turn + rng.uniform(-0.9, 0.9) * t
    points = root + np.cumsum(np.column_stack([np.cos(bend), np.sin(bend)]) * length / 9, axis=0)
    stem = np.column_stack([points[:-1], points[1:]])
    barbs = _barbs(stem, 2, (rng.uniform(0.2, 0.35) * length * (1.15 - t[:-1]))[:, None])
    hairs = _barbs(barbs, 5, 0.35 * np.hypot(*(barbs[:, 2:] - barbs[:, :2]).T)[:, None])
    widths = np.repeat([0.016, 0.009, 0.004], [len(stem), len(barbs), len(hairs)])
    return np.column_stack([np.concatenate([stem, barbs, hairs]), widths])


def _barbs(stems: Array, count: int, length: Array) -> Array:
    """`count` pairs of segments along each stem, shorter to its tip; `length` is (stems, 1)."""
    t = (np.arange(count) + 0.5) / count
    delta = stems[:, 2:] - stems[:, :2]
    start = stems[:, None, :2] + delta[:, None] * t[None, :, None]
    turn = np.arctan2(delta[:, 1], delta[:, 0])[:, None]
    reach = length * (1.2 - t)
    sides = []
    for side in (-np.pi / 3, np.pi / 3):
        step = np.stack([reach * np.cos(turn + side), reach * np.sin(turn + side)], axis=2)
        sides.append(np.concatenate([start, start + step], axis=2).reshape(-1, 4))
    return np.concatenate(sides)


def _glaze(rng: Rng, n: int) -> Array:
    picture = _bokeh(rng, n, rng.random())
    twigs, slope = [], rng.normal(0, 0.3)
    for height in np.linspace(0, 0.7, rng.integers(2, 5)) + rng.uniform(-0.05, 0.15):
        side = rng.integers(2)
        lean = slope + rng.normal(0, 0.15) + np.pi * side
        twigs.append(_tree(rng, -0.05 + 1.1 * side, height, rng.uniform(0.25, 0.5), 4, lean))
    wood = np.concatenate(twigs)
    wood[:, 4] = np.clip(wood[:, 4], 0.008, 0.022)
    shell = wood.copy()
    shell[:, 4] = wood[:, 4] * 1.7 + 0.018
    layer = Image.fromarray((_strokes(n, shell) * 255).astype(np.uint8))
    _hang_icicles(rng, layer, wood)
    outer, inner = _as_mask(layer, 0.003), _as_mask(layer.filter(ImageFilter.MinFilter(5)), 0.006)
    clear = _hsv(rng.random(), 0.06, 1)
    bark = _hsv(rng.uniform(0, 0.12), 0.5, rng.uniform(0.15, 0.4))
    picture = _mix(picture, clear, 0.4 * outer)
    picture = _mix(picture, bark, 0.9 * _strokes(n, wood, 0.001))
    picture = _mix(picture, clear, 0.9 * np.clip(outer - inner, 0, 1))  # the rim of ice
    glint = wood - np.array([0, 0.5, 0, 0.5, 0]) * wood[:, 4:]
    glint[:, 4] = 0.008
    return _mix(picture, 1.0, 0.8 * _strokes(n, glint, 0.002))


def _hang_icicles(rng: Rng, layer: Image.Image, wood: Array) -> None:
    n, pen, longest = layer.width, ImageDraw.Draw(layer), rng.uniform(0.1, 0.35)
    for x0, y0, x1, y1, _ in wood[rng.random(len(wood)) < 0.8]:
        for t in rng.random(2):
            x, y = (x0 + (x1 - x0) * t) * n, (y0 + (y1 - y0) * t) * n
            width, length = rng.uniform(0.012, 0.024) * n, longest * rng.uniform(0.2, 1) * n
            pen.polygon([(x - width, y), (x + width, y), (x, y + length)], 255)


def _hail(rng: Rng, n: int) -> Array:
    hue, value = rng.uniform(0.06, 0.42), rng.uniform(0.15, 0.6)
    ground = _hsv(hue, rng.uniform(0.1, 0.7), value) * (0.5 + _noise(rng, n, 6, 6))[..., None]
    if rng.random() < 0.6:
        ground = _grass(rng, ground, hue, value)
    light, scale = (round(rng.uniform(-0.7, 0.7), 1), -0.6), rng.uniform(0.025, 0.085)
    count = int(np.clip(rng.uniform(0.3, 1.1) / (4 * scale**2), 10, 200))
    bright, cover = Image.new("L", (n, n)), Image.new("L", (n, n))
    for y in np.sort(rng.uniform(-0.05, 1.05, count)):
        radius = n * scale * rng.lognormal(0, 0.3)
        _stone(rng, bright, cover, (rng.uniform(-0.05, 1.05) * n, y * n), radius, light)
    milky = 0.8 + 0.2 * _noise(rng, n, 24, 24, 2)
    ice = (
        _hsv(rng.uniform(0.5, 0.7), 0.07, 1)
        * np.clip(1.25 * _as_mask(bright) * milky, 0, 1)[..., None] ** 0.7
    )
    shadow = np.roll(_as_mask(cover, 0.008), (n // 40, -round(light[0] * n / 40)), axis=(0, 1))
    return _mix(_mix(ground, 0.0, 0.5 * shadow), ice, _as_mask(cover))


def _stone(
    rng: Rng,
    bright: Image.Image,
    cover: Image.Image,
    at: tuple[float, float],
    radius: float,
    light: tuple[float, float],
) -> None:
    """Lays a ball, not quite round, on a brightness `bright` and a mask `cover` of mode L."""
    ball, mask = _ball(*light)
    extent = (max(3, round(2 * radius)), max(3, round(2 * radius * rng.uniform(0.75, 1))))
    mask = mask.resize(extent)
    corner = (round(at[0] - radius), round(at[1] - radius))
    shadow = round(radius * 0.2)
    bright.paste(70, (corner[0] - round(light[0] * shadow), corner[1] + shadow), mask)
    bright.paste(ball.resize(extent), corner, mask)
    cover.paste(255, corner, mask)


def _grass(rng: Rng, ground: Array, hue: float, value: float) -> Array:
    n = len(ground)
    for shade in (0.5, 0.9, 1.4):
        x, y, lean = rng.uniform(0, 1, 120), rng.uniform(0, 1.1, 120), rng.normal(0, 0.06, 120)
        tip = y - rng.uniform(0.05, 0.2, 120)
        blades = np.column_stack([x, y, x + lean, tip, np.full(120, 0.012)])
        ground = _mix(ground, _hsv(hue, 0.6, min(1, value * shade)), 0.8 * _strokes(n, blades))
    return ground


def _lightning(rng: Rng, n: int) -> Array:
    picture = _sky(rng, n, 0.8) * rng.uniform(0.35, 0.8)
    picture *= 0.6 + 0.6 * _noise(rng, n, 2, 4)[..., None]
    horizon = rng.uniform(0.72, 0.92)
    bolts = np.concatenate([_bolt(rng, horizon) for _ in range(rng.integers(1, 4))])
    glow = _hsv(rng.uniform(0.5, 0.95), rng.uniform(0.1, 0.5), 1)
    for blur, strength in ((0.12, 1.6), (0.025, 1.2), (0.006, 0.9)):
        picture = _mix(picture, glow, np.clip(strength * _strokes(n, bolts, blur), 0, 0.9))
    picture = _mix(picture, 1.0, _strokes(n, bolts))
    dark = picture.mean((0, 1)) * rng.uniform(0.1, 0.35)
    picture = _mix(picture, dark, _ridge(rng, n, horizon, 0.08))
    if rng.random() < 0.5:
        wall, light = _skyline(rng, n, 1.0, rng.uniform(0.15, 0.35))
        picture = _mix(_mix(picture, dark, wall), _hsv(0.12, 0.5, 0.9), light)
    return picture


def _bolt(rng: Rng, horizon: float) -> Array:
    """Segments of a bolt from the clouds to the horizon, with branches."""
    x, top = rng.uniform(0.1, 0.9), rng.uniform(-0.1, 0.2)
    ends, segments = [(x, top, x + rng.normal(0, 0.2), horizon, 0.02)], []
    for _ in range(rng.integers(3, 8)):
        y = rng.uniform(top, 0.7 * horizon)
        reach = rng.normal(0, 0.3)
        ends.append((np.nan, y, reach, y + abs(reach) * rng.uniform(0.4, 1.3), 0.009))
    trunk = np.empty((0, 2))
    for x0, y0, x1, y1, width in ends:
        if np.isnan(x0):  # a branch leaves the trunk at its height
            x0 = np.interp(y0, trunk[:, 1], trunk[:, 0])
            x1 += x0
        points = np.array([(x0, y0), (x1, y1)])
        for level in range(4):
            middle = (points[:-1] + points[1:]) / 2
            middle[:, 0] += rng.normal(0, 0.06 / 1.8**level, len(middle))
            points = np.insert(points, np.arange(1, len(points)), middle, axis=0)
        trunk = trunk if len(trunk) else points
        widths = np.linspace(width, width * 0.6, len(points) - 1)
        segments.append(np.column_stack([points[:-1], points[1:], widths]))
    return np.concatenate(segments)


def _rain(rng: Rng, n: int) -> Array:
    picture, horizon = _sky(rng, n, 0.5), rng.uniform(0.5, 0.75)
    tone = picture.mean((0, 1))
    wall, light = _skyline(rng, n, horizon, rng.uniform(0.25, 0.6))
    picture = _mix(picture, tone * rng.uniform(0.3, 0.7), wall)
    picture = _mix(picture, _hsv(rng.uniform(0.05, 0.15), 0.5, 1), light * rng.uniform(0.2, 0.9))
    picture = _blurred(picture, 0.006)
    row = round(horizon * n)  # the street is wet: it mirrors what stands above it
    mirror = _blurred(picture[::-1], 0.015)[n - row : 2 * (n - row)]
    picture[row:] = mirror * rng.uniform(0.5, 0.8)
    for _ in range(rng.integers(0, 3)):
        picture = _walker(rng, picture, rng.uniform(0.1, 0.9), rng.uniform(horizon + 0.1, 1))
    return _streaks(rng, picture, horizon)


def _walker(rng: Rng, picture: Array, x: float, y: float) -> Array:
    """Somebody under an umbrella, who stands at (x, y)."""
    n, h = len(picture), rng.uniform(0.25, 0.5) * len(picture)
    x, y, w = x * n, y * n, 0.13 * h
    body, roof = Image.new("L", (n, n)), Image.new("L", (n, n))
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle((x - w, y - 0.62 * h, x + w, y - 0.2 * h), w / 2, 255)
    pen.rectangle((x - 0.7 * w, y - 0.3 * h, x - 0.2 * w, y), 255)
    pen.rectangle((x + 0.2 * w, y - 0.3 * h, x + 0.7 * w, y), 255)
    pen.line((x, y - h, x, y - 0.6 * h), 255, 2)
    umbrella = (x - 0.4 * h, y - h, x + 0.4 * h, y - 0.4 * h)
    ImageDraw.Draw(roof).chord(umbrella, 180, 360, 255)
    picture = _mix(picture, picture.mean((0, 1)) * 0.2, _as_mask(body))
    cloth = _hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 0.9))
    return _mix(picture, cloth, _as_mask(roof))


def _streaks(rng: Rng, picture: Array, horizon: float) -> Array:
    """Rain before the scene: slanting streaks, and rings where drops hit the ground."""
    n, slant = len(picture), rng.uniform(-0.5, 0.5)
    layer = Image.new("L", (n, n))
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.integers(10, 30)):
        x, y = rng.uniform(0, n), rng.uniform(horizon, 1) * n
        r = rng.uniform(0.02, 0.06) * n
        pen.ellipse((x - r, y - r / 3, x + r, y + r / 3), None, 255, 2)
    picture = _mix(picture, 0.9, 0.35 * _as_mask(layer, 0.001))
    for count, length, width in ((200, 0.08, 0.005), (90, 0.16, 0.009)):
        left, top = rng.uniform(-0.2, 1.2, count), rng.uniform(-0.2, 1, count)
        drop = length * rng.uniform(0.6, 1.3, count)
        fall = np.column_stack([left, top, left + slant * drop, top + drop, np.full(count, width)])
        picture = _mix(picture, 0.92, rng.uniform(0.4, 0.7) * _strokes(n, fall, 0.0015))
    return picture


def _rainbow(rng: Rng, n: int) -> Array:
    picture, horizon = _sky(rng, n, 1.0), rng.uniform(0.55, 0.9)
    x, y = _grid(n)
    radius, width = rng.uniform(0.35, 0.85), rng.uniform(0.07, 0.14)
    dx, dy = x - rng.uniform(-0.05, 1.05), y - horizon - rng.uniform(-0.05, 0.25)
    distance = np.hypot(dx, dy / rng.uniform(0.8, 1))
    gaps = _step(_noise(rng, n, 3, 3, 3), rng.uniform(-0.3, 0.2), rng.uniform(0.25, 0.6))
    strength = rng.uniform(0.65, 0.95) * gaps
    picture = _mix(picture, 1.0, 0.12 * (1 - _step(distance, radius - 0.02, radius)))
    picture = _bow(picture, (radius + width - distance) / width, strength)
    if rng.random() < 0.4:
        picture = _bow(picture, (distance - radius - 2.2 * width) / width, 0.5 * strength)
    hue, value = rng.uniform(0.06, 0.42), rng.uniform(0.2, 0.6)
    for depth in range(rng.integers(1, 4)):
        tone = 0.7 + 0.6 * _noise(rng, n, 6, 12)[..., None]
        land = _hsv(hue + 0.03 * depth, 0.5, value * 0.8**depth) * tone
        ridge = _ridge(rng, n, horizon + 0.08 * depth, rng.uniform(0.03, 0.2))
        picture = _mix(picture, land, ridge)
    for _ in range(rng.integers(3)):
        tree = _tree(rng, rng.random(), rng.uniform(horizon, 1), rng.uniform(0.05, 0.12), 6)
        picture = _mix(picture, _hsv(hue, 0.5, 0.15), _strokes(n, tree, 0.002))
    return picture


def _bow(picture: Array, t: Array, strength: Array) -> Array:
    """Adds a bow: red where `t` is 0, violet where it is 1."""
    hue = np.linspace(0, 0.8, 32)
    table = np.stack([_hsv(h, 0.85, 1) for h in hue])
    colours = table[np.clip(t * 32, 0, 31).astype(np.int64)]
    return _mix(picture, colours, strength * _step(t, 0, 0.15) * (1 - _step(t, 0.85, 1)))


def _rime(rng: Rng, n: int) -> Array:
    picture, horizon = _sky(rng, n, 0.4) * rng.uniform(0.6, 1), rng.uniform(0.7, 0.92)
    snow = 0.7 + 0.3 * picture[n // 2 :].mean((0, 1))
    shade = snow * rng.uniform(0.55, 0.75)
    if rng.random() < 0.6:
        woods = (picture.mean((0, 1)) + shade) / 2.5
        picture = _mix(picture, woods, _ridge(rng, n, horizon - 0.1, 0.1, 6))
    ground = _mix(np.broadcast_to(snow, (n, n, 3)), shade, 0.6 * _noise(rng, n, 2, 6))
    picture = _mix(picture, ground, _ridge(rng, n, horizon, 0.05))
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.1, 0.9), horizon + rng.uniform(0, 0.1)
        tree = _tree(rng, x, y, rng.uniform(0.15, 0.27), 8)
        fuzz = _step(_strokes(n, tree, 0.01) * (0.3 + _noise(rng, n, 48, 48, 2)), 0.15, 0.5)
        picture = _mix(picture, shade, 0.6 * np.roll(fuzz, n // 50, axis=0))
        picture = _mix(picture, shade * 0.4, _strokes(n, tree))
        white = tree + np.array([-0.002, -0.004, -0.002, -0.004, 0])
        picture = _mix(picture, snow**0.3, np.maximum(_strokes(n, white, 0.001), 0.5 * fuzz))
    return picture


def _sandstorm(rng: Rng, n: int) -> Array:
    picture, horizon = _sky(rng, n, 0.3), rng.uniform(0.68, 0.88)
    dust = _hsv(rng.uniform(0.04, 0.11), rng.uniform(0.35, 0.8), rng.uniform(0.6, 1))
    _, y = _grid(n)
    bright, cover = _wall(rng, n, rng.uniform(-0.1, 0.35), horizon)
    swirl = 0.75 + 0.4 * _noise(rng, n, 5, 8)
    picture = _mix(picture, dust * (bright * swirl)[..., None], cover)
    soil = dust * rng.uniform(0.4, 0.9) * (0.7 + 0.5 * _noise(rng, n, 2, 16)[..., None])
    picture = _mix(picture, soil, _ridge(rng, n, horizon, 0.04))
    if rng.random() < 0.7:
        houses, _ = _skyline(rng, n, horizon + 0.05, rng.uniform(0.08, 0.2))
        picture = _mix(picture, dust * 0.35, 0.8 * houses * (y < horizon + 0.05))
    drift = _step(_noise(rng, n, 2, 12), 0.4, 0.9) * _step(y, horizon - 0.25, 1)
    return _mix(picture, dust, 0.9 * drift)


def _wall(rng: Rng, n: int, top: float, horizon: float) -> tuple[Array, Array]:
    """A wall of dust from `top` down to the horizon: brightness and mask of its billows."""
    light, slope = (round(rng.uniform(-0.8, 0.8), 1), -0.5), rng.uniform(-0.4, 0.4)
    bright, cover = Image.new("L", (n, n), 150), Image.new("L", (n, n))
    edge = top + 0.35 * (_noise(rng, n, 3, 1, 3)[0] - 0.5) + slope * (_grid(n)[0][0] - 0.5)
    ball, mask = _ball(*light)
    soft = _as_image(_as_mask(mask) * (1 - _step(_grid(64)[1], 0.3, 0.95)))  # no edge below
    for depth in np.sort(rng.random(180)):
        x, r = rng.integers(n), n * rng.lognormal(-2.5, 0.4)
        y = (edge[x] + depth * (horizon - edge[x])) * n + r
        extent, corner = (round(2 * r), round(2 * r)), (round(x - r), round(y - r))
        bright.paste(ball.resize(extent), corner, soft.resize(extent))
        cover.paste(255, corner, mask.resize(extent))
    return 0.4 + 0.65 * _as_mask(bright, 0.007), _as_mask(cover, 0.004)


def _snow(rng: Rng, n: int) -> Array:
    picture, horizon = _sky(rng, n, 0.4), rng.uniform(0.55, 0.8)
    snow = 0.55 + 0.45 * picture[n // 2 :].mean((0, 1))
    shade = snow * rng.uniform(0.6, 0.8)
    picture = _mix(picture, (picture.mean((0, 1)) + shade) / 2, _ridge(rng, n, horizon - 0.12, 0.2))
    ground = _mix(np.broadcast_to(snow, (n, n, 3)), shade, 0.6 * _noise(rng, n, 2, 6))
    picture = _mix(picture, ground, _ridge(rng, n, horizon, 0.06))
    for y in np.sort(rng.uniform(horizon, 0.98, rng.integers(2, 8))):
        height = (0.15 + 0.6 * (y - horizon)) * rng.uniform(0.9, 1.8)
        thing = _pine if rng.random() < 0.7 else _house
        picture = thing(rng, picture, rng.uniform(0, 1), y, height, snow)
    return _flakes(rng, picture)


def _pine(rng: Rng, picture: Array, x: float, y: float, height: float, snow: Array) -> Array:
    n, h = len(picture), height * len(picture)
    x, y = x * n, y * n
    dark, white = Image.new("L", (n, n)), Image.new("L", (n, n))
    green, cover = ImageDraw.Draw(dark), ImageDraw.Draw(white)
    green.rectangle((x - 0.03 * h, y - 0.2 * h, x + 0.03 * h, y), 255)
    for tier in range(4):
        top, wide = y - h * (0.45 + 0.2 * tier), h * (0.3 - 0.055 * tier)
        middle, low = top + 0.2 * h, top + 0.32 * h
        green.polygon([(x, top), (x - wide, low), (x + wide, low)], 255)
        patch = [(x, top), (x - wide, low), (x - 0.3 * wide, middle), (x + 0.6 * wide, middle)]
        cover.polygon(patch, 255)
    needles = _hsv(rng.uniform(0.3, 0.6), 0.4, rng.uniform(0.1, 0.35))
    picture = _mix(picture, needles, _as_mask(dark))
    return _mix(picture, snow, 0.9 * _as_mask(white, 0.002))


def _house(rng: Rng, picture: Array, x: float, y: float, height: float, snow: Array) -> Array:
    n, masks = len(picture), []
    h = 0.6 * height
    for shape in (
        [(-0.6, 0), (-0.6, -0.6), (0, -1), (0.6, -0.6), (0.6, 0)],
        [(-0.75, -0.5), (0, -1.1), (0.75, -0.5), (0.75, -0.65), (0, -1.3), (-0.75, -0.65)],
        [(-0.35, -0.15), (-0.35, -0.45), (-0.1, -0.45), (-0.1, -0.15)],
    ):
        layer = Image.new("L", (n, n))
        ImageDraw.Draw(layer).polygon([((x + u * h) * n, (y + v * h) * n) for u, v in shape], 255)
        masks.append(_as_mask(layer))
    picture = _mix(picture, _hsv(rng.random(), 0.4, rng.uniform(0.15, 0.5)), masks[0])
    return _mix(_mix(picture, snow, masks[1]), _hsv(0.12, 0.6, 1), masks[2])


def _flakes(rng: Rng, picture: Array) -> Array:
    n = len(picture)
    for count, radius, blur in ((150, 0.006, 0.001), (60, 0.011, 0.002), (12, 0.022, 0.006)):
        layer = Image.new("L", (n, n))
        pen = ImageDraw.Draw(layer)
        for x, y, r in rng.uniform((0, 0, 0.7), (1, 1, 1.3), (count, 3)) * n:
            pen.ellipse((x - r * radius, y - r * radius, x + r * radius, y + r * radius), 255)
        picture = _mix(picture, 1.0, 0.9 * _as_mask(layer, blur))
    return picture


SCENES: dict[str, Callable[[Rng, int], Array]] = {
    "dew": _dew,
    "fogsmog": _fogsmog,
    "frost": _frost,
    "glaze": _glaze,
    "hail": _hail,
    "lightning": _lightning,
    "rain": _rain,
    "rainbow": _rainbow,
    "rime": _rime,
    "sandstorm": _sandstorm,
    "snow": _snow,
}
CLASSES = tuple(SCENES)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a contact sheet of the sample.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG file to write")
    sheet = parser.parse_args().sheet
    try:
        draw_sheet(sheet)
    except OSError as error:
        parser.error(f"cannot write the sheet {sheet}: {error.strerror}")


if __name__ == "__main__":
    main()
