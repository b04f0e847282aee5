"""Which photos show the same picture: exact copies, re-encoded, resized, cropped, watermarked ones.

    signatures of all photos ──group_duplicates──▶ for each photo, the first that shows its picture

Web photos come back re-encoded, resized, cropped, recoloured and with another site's watermark.
Two thumbnails show the same photo when one, shifted and scaled to fit, has the other's details.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

SIDE = 32  # of a signature's thumbnail: enough for details, and 1 kB per photo
# The thresholds were chosen by looking at some 1,000 pairs of the 11-class weather data set: above
# ALIKE nearly all, below it nearly none are the same photo to the eye. Two foggy pictures with
# little detail in them may fall below it, and are the same if their grey levels are.
ALIKE = 0.73
ROUGHLY_ALIKE = 0.5
SAME_LEVELS = 4.0
FLAT_LEVELS = 2  # a thumbnail whose levels span no more is a frame without a picture

# Candidates: each photo's NEIGHBOURS nearest others with at least LIKENESS in their edges, out of
# all photos while these are few, else out of the LEAF photos around it in each of TREES trees.
NEIGHBOURS = 8
LIKENESS = 0.5
COPY_LIKENESS = 0.8  # from here on the details are compared as they are, before any fitting
NORM = 2000  # of the vectors of edges
EXHAUSTIVE = 8192
LEAF = 512
TREES = 16
# Fitting one thumbnail onto another takes 0.1 ms, so its number is bounded, the most alike first.
MOST_ALIGNED = 50_000
CHUNK = 512
# Fits start from here: the whole frames, and a tenth cut off below (a strip with a watermark) in
# one or the other.
FIT_STEPS = 5
LEAST_FIT = np.array([0.7, -0.3, 0.7, -0.3], dtype=np.float32)
MOST_FIT = np.array([1.43, 0.3, 1.43, 0.3], dtype=np.float32)
STARTS = np.array([[1, 0, 1, 0], [1, 0, 0.9, -0.1], [1, 0, 1.11, 0.11]], dtype=np.float32)


def signature(image: Image.Image) -> np.ndarray:
    """(1024,) uint8: a grey 32 × 32 thumbnail of an upright RGB image, for `group_duplicates`."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.uint8).reshape(-1)


def group_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Which photos show the same picture.

    signatures: (N, 1024) uint8, from `signature`
    Returns (N,) int64: the smallest index among the photos that show the same picture.

    Time grows with N log N; memory is about 3 kB per photo.
    """
    if len(signatures) == 0:
        return np.zeros(0, dtype=np.int64)
    first: dict[bytes, int] = {}
    same_as = np.array(
        [
            first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), number)
            for number, row in enumerate(signatures)
        ],
        dtype=np.int64,
    )
    distinct = np.unique(same_as)
    pictures = signatures[distinct].reshape(-1, SIDE, SIDE)
    details, edges = _describe(pictures)
    joined = _connected(np.arange(len(pictures)), *_flat_pairs(pictures))
    doubtful = np.zeros((3, 0), dtype=np.int64)
    for one, other, likeness in _candidates(edges):
        apart = joined[one] != joined[other]
        one, other, likeness = one[apart], other[apart], likeness[apart]
        same = likeness > COPY_LIKENESS * NORM**2
        same[same] = _by_chunks(_same_details, one[same], other[same], details)
        joined = _connected(joined, one[same], other[same])
        doubtful = np.hstack([doubtful, np.stack([one, other, likeness])[:, ~same]])
        doubtful = _most_alike(doubtful, joined)
    one, other, _ = doubtful
    same = _by_chunks(_same_when_aligned, one, other, details, pictures)
    joined = _connected(joined, one[same], other[same])
    return distinct[joined][np.searchsorted(distinct, same_as)]


def _most_alike(pairs: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """The MOST_ALIGNED most alike of (3, P) pairs: first, second, likeness; each pair once."""
    pairs = pairs[:, joined[pairs[0]] != joined[pairs[1]]]
    pairs = pairs[:, np.argsort(-pairs[2], kind="stable")[: 2 * MOST_ALIGNED]]
    _, once = np.unique(pairs[0] * len(joined) + pairs[1], return_index=True)
    return pairs[:, np.sort(once)[:MOST_ALIGNED]]


def _connected(joined: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(M,) the smallest index that each index is joined to, after joining the pairs too."""
    root = joined.copy()
    while not np.array_equal(one := root[first], other := root[second]):
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(root, root[root]):
            root = root[root]
    return root


def _flat_pairs(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of frames without a picture (all black, all white) of the same level within 1."""
    low, high = pictures.min((1, 2)).astype(np.int64), pictures.max((1, 2)).astype(np.int64)
    flat = np.nonzero(high - low <= FLAT_LEVELS)[0]
    flat = flat[np.argsort((low + high)[flat], kind="stable")]
    close = np.diff((low + high)[flat]) <= 2
    return flat[:-1][close], flat[1:][close]


def _describe(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is compared: details (M, 32, 32) int8 and edges (M, 256) int16, see the two below."""
    details = np.empty(pictures.shape, dtype=np.int8)
    edges = np.empty((len(pictures), 256), dtype=np.int16)
    for start in range(0, len(pictures), CHUNK):
        chunk = slice(start, start + CHUNK)
        levels = pictures[chunk].astype(np.float32)
        details[chunk] = np.rint(_details(levels) * 32).clip(-127, 127)
        edges[chunk] = _edges(levels)
    return details, edges


def _details(levels: np.ndarray) -> np.ndarray:
    """Each pixel against its 11 × 11 surroundings: (level - mean) / (standard deviation + 3).

    The mean takes away what all fog shares, a smooth gradient; its surroundings shrink towards the
    border, since a lopsided mean would make detail of a gradient. The division takes away
    brightness and contrast; the 3 keeps JPEG noise of a nearly flat patch from looking like detail.
    """
    radius = np.full(SIDE, 5)
    box = _box(radius)
    even = _box(np.minimum(radius, np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])))
    off = levels - even @ levels @ even.T
    return off / (np.sqrt(box @ (off * off) @ box.T) + 3)


def _box(radius: np.ndarray) -> np.ndarray:
    """(32, 32) matrix that takes means over the pixels within radius (32,) of each pixel."""
    pixels = np.arange(SIDE)
    near = np.abs(pixels - pixels[:, None]) <= radius[:, None]
    return (near / near.sum(1, keepdims=True)).astype(np.float32)


def _edges(levels: np.ndarray) -> np.ndarray:
    """(M, 256): strength of the edges in 4 directions in 8 × 8 overlapping cells, of norm NORM.

    Coarse enough to survive a cropped border, and a vector whose products find neighbours.
    Whole numbers below 2^24 in all sums, so that every machine's matrix product is exact.
    """
    padded = np.pad(levels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    half = np.float32(np.sqrt(0.5))
    directions = np.abs(
        np.stack([across, half * (across + down), down, half * (down - across)], axis=1)
    )
    place = (np.arange(SIDE) + 0.5) / SIDE * 8 - 0.5
    cells = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(8), place))) / 4
    cells = cells.astype(np.float32)
    strength = cells @ directions @ cells.T
    strength /= np.sqrt((strength * strength).sum(1, keepdims=True)) + 2
    flat = strength.reshape(len(levels), -1) - np.float32(0.4)  # about the mean: most photos differ
    return np.rint(flat * (NORM / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-3)))


def _candidates(edges: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """First < second and likeness of neighbours by edges, in a few batches that may repeat some."""
    few = len(edges) <= EXHAUSTIVE
    draw = np.random.Generator(np.random.PCG64(0))
    for _ in range(1 if few else TREES):
        found = []
        for leaf in _leaves(edges, EXHAUSTIVE if few else LEAF, draw):
            row, column, likeness = _nearest(edges[leaf].astype(np.float32))
            one, other = leaf[row], leaf[column]
            found.append(np.stack([np.minimum(one, other), np.maximum(one, other), likeness]))
        one, other, likeness = np.concatenate(found, axis=1).astype(np.int64)
        yield one, other, likeness


def _leaves(edges: np.ndarray, size: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Divide at the median along the line through two random photos until size or fewer are left.

    Halves are equal whatever the photos are, so that a hundred thousand foggy ones cost no more.
    """
    pending = [np.arange(len(edges))]
    while pending:
        leaf = pending.pop()
        if len(leaf) <= size:
            yield leaf
            continue
        one, other = edges[draw.choice(leaf, 2, replace=False)].astype(np.float32)
        order = np.argsort(_products(edges, leaf, one - other), kind="stable")
        middle = len(leaf) // 2
        pending += [leaf[order[:middle]], leaf[order[middle:]]]


def _products(edges: np.ndarray, rows: np.ndarray, line: np.ndarray) -> np.ndarray:
    """edges[rows] @ line; a chunk at a time, since all of them as float32 would be a large copy."""
    chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    return np.concatenate([edges[chunk].astype(np.float32) @ line for chunk in chunks])


def _nearest(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, other row and likeness × NORM² of the NEIGHBOURS nearest others of each row."""
    found = []
    for start in range(0, len(edges), CHUNK):
        likeness = edges[start : start + CHUNK] @ edges.T
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -1
        if likeness.shape[1] > NEIGHBOURS:
            near = np.argpartition(likeness, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        else:
            near = np.broadcast_to(np.arange(likeness.shape[1]), likeness.shape)
        score = np.take_along_axis(likeness, near, axis=1)
        row, column = np.nonzero(score > LIKENESS * NORM**2)
        found.append((start + row, near[row, column], score[row, column]))
    one, other, score = (np.concatenate(column) for column in zip(*found, strict=True))
    return one, other, score


def _by_chunks(
    compare: Callable[..., np.ndarray], first: np.ndarray, second: np.ndarray, *of: np.ndarray
) -> np.ndarray:
    """(P,) bool: compare(array[first], array[second], ...) of the arrays, a chunk at a time."""
    same = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), CHUNK):
        chunk = slice(start, start + CHUNK)
        pairs = [array[which[chunk]] for array in of for which in (first, second)]
        same[chunk] = compare(*pairs)
    return same


def _same_details(detail: np.ndarray, other_detail: np.ndarray) -> np.ndarray:
    return _correlation(detail.astype(np.float32), other_detail.astype(np.float32)) > ALIKE


def _correlation(
    one: np.ndarray, other: np.ndarray, inside: np.ndarray | None = None
) -> np.ndarray:
    """(P,) correlation in -1..1 of (P, n, n) pictures, over the pixels where inside is 1, not 0."""

    def centred(values: np.ndarray) -> np.ndarray:
        if inside is None:
            return values - values.mean((1, 2), keepdims=True)
        mean = (values * inside).sum((1, 2)) / inside.sum((1, 2))
        return (values - mean[:, None, None]) * inside

    def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("pij,pij->p", a, b)

    one, other = centred(one), centred(other)
    return products(one, other) / np.sqrt(products(one, one) * products(other, other) + 1)


def _same_when_aligned(
    detail: np.ndarray, other_detail: np.ndarray, picture: np.ndarray, other_picture: np.ndarray
) -> np.ndarray:
    """(P,) bool: whether the pictures agree once the other is shifted and scaled to fit.

    Fits details of half the resolution first, since these still overlap when the frames differ.
    """
    one, other = detail.astype(np.float32), other_detail.astype(np.float32)
    starts = [np.tile(start, (len(one), 1)) for start in STARTS]
    fit, alike = _fit(_halve(one), _halve(other), starts)
    same = np.zeros(len(one), dtype=bool)
    close = np.nonzero(alike > ROUGHLY_ALIKE)[0]
    if len(close) == 0:
        return same
    fit, alike = _fit(one[close], other[close], [fit[close]])
    levels = picture[close].astype(np.float32)
    others, inside = _warp(other_picture[close].astype(np.float32), fit)
    difference = (np.abs(levels - others) * inside).sum((1, 2)) / inside.sum((1, 2))
    same[close] = ((alike > ALIKE) & (_correlation(levels, others, inside) > ROUGHLY_ALIKE)) | (
        (alike > ROUGHLY_ALIKE) & (difference < SAME_LEVELS)
    )
    return same


def _halve(pictures: np.ndarray) -> np.ndarray:
    half = pictures.shape[1] // 2
    return pictures.reshape(-1, half, 2, half, 2).mean((2, 4))


def _axis(size: int) -> np.ndarray:
    """Pixel centres along a side that runs from -1 to 1."""
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


def _warp(pictures: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample (P, n, n) pictures at (x·width + left, y·height + top); also which samples exist.

    fit: (P, 4) width, left, height, top, where a whole picture runs from -1 to 1
    Returns the (P, n, n) samples, and 1 where they lie inside the picture, else 0, as float32.
    """
    size = pictures.shape[1]
    axis, pixels = _axis(size), np.arange(size, dtype=np.float32)

    def weights(scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        place = (scale[:, None] * axis + shift[:, None] + 1) / 2 * size - np.float32(0.5)
        return np.maximum(0, 1 - np.abs(place[:, :, None] - pixels))

    across, down = weights(fit[:, 0], fit[:, 1]), weights(fit[:, 2], fit[:, 3])
    inside = (down.sum(2) > 0.5)[:, :, None] & (across.sum(2) > 0.5)[:, None, :]
    return down @ pictures @ across.transpose(0, 2, 1), inside.astype(np.float32)


def _fit(
    one: np.ndarray, other: np.ndarray, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How other (P, n, n) must be warped to match one best; up to 30 % may be cut from a side.

    Gauss-Newton, inverse compositional (Baker and Matthews 2004, Lucas-Kanade 20 Years On), so
    that the equations are solved once for all steps and starts, each of them a (P, 4) fit.
    Returns the best fit (P, 4) and its correlation (P,).
    """
    axis = _axis(one.shape[1])
    by_y, by_x = np.gradient(one, 2 / one.shape[1], axis=(1, 2))
    slopes = np.stack([by_x * axis, by_x, by_y * axis[:, None], by_y], axis=1)
    slopes = slopes.reshape(len(one), 4, -1)
    normal = slopes @ slopes.transpose(0, 2, 1)
    damping = 0.003 * np.trace(normal, axis1=1, axis2=2) + 1
    solve = np.linalg.solve(normal + damping[:, None, None] * np.eye(4, dtype=np.float32), slopes)

    best, most_alike = starts[0], np.full(len(one), -1, dtype=np.float32)
    for fit in starts:
        for _ in range(FIT_STEPS):
            warped, inside = _warp(other, fit)
            error = ((warped - one) * inside).reshape(len(one), -1, 1)
            step = np.clip((solve @ error)[:, :, 0], -0.15, 0.15)
            scale = fit[:, ::2] / (1 + step[:, ::2])
            shift = fit[:, 1::2] - scale * step[:, 1::2]
            fit = np.stack([scale[:, 0], shift[:, 0], scale[:, 1], shift[:, 1]], axis=1)
            fit = np.clip(fit, LEAST_FIT, MOST_FIT)
        alike = _correlation(one, *_warp(other, fit))
        best = np.where((alike > most_alike)[:, None], fit, best)
        most_alike = np.maximum(alike, most_alike)
    return best, most_alike
