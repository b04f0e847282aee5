"""Which photos show the same picture: exact copies, re-encoded, resized, cropped, watermarked ones.

    signatures of all photos ──group_duplicates──▶ for each photo, the first that shows its picture

Web photos come back re-encoded, resized, cropped, recoloured and with another site's watermark.
Two thumbnails show the same photo when one, shifted and scaled to fit, has the other's details.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 32  # of a signature's thumbnail: enough for details, and 1 kB per photo
# The thresholds were chosen by looking at some 1,000 pairs of the 11-class weather data set: above
# ALIKE nearly all, below it nearly none are the same photo to the eye. Two foggy pictures with
# little detail in them may fall below it, and are the same if their grey levels are.
ALIKE = 0.73
ROUGHLY_ALIKE = 0.5
SAME_LEVELS = 4.0

# Candidates: each photo's NEIGHBOURS nearest others with at least LIKENESS in their edges.
NEIGHBOURS = 8
LIKENESS = 0.5
NORM = 2000  # of the vectors of edges
CHUNK = 512  # thumbnails or pairs at a time
CHUNK_PRODUCTS = 1 << 24  # likenesses at a time: 64 MB
FIT_STEPS = 5
FIT_LIMITS = np.array([[0.7, -0.3, 0.7, -0.3], [1.43, 0.3, 1.43, 0.3]], dtype=np.float32)
WHOLE = np.ones((SIDE, SIDE), dtype=np.float32)
# Fits start from the whole frames, and with a tenth (a strip with a watermark) cut off the bottom
# of one or the other.
STARTS = np.array([[1, 0, 1, 0], [1, 0, 0.9, -0.1], [1, 0, 1.11, 0.11]], dtype=np.float32)


def signature(image: Image.Image) -> np.ndarray:
    """(1024,) uint8: a grey 32 × 32 thumbnail of an upright RGB image, for `group_duplicates`."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.uint8).reshape(-1)


def group_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Which photos show the same picture.

    signatures: (N, 1024) uint8, from `signature`
    Returns (N,) int64: the smallest index among the photos that show the same picture.

    Every photo is compared with every other: time grows with N², 13 s for 30,000 photos.
    """
    if len(signatures) == 0:
        return np.zeros(0, dtype=np.int64)
    rows = np.ascontiguousarray(signatures).view(f"V{SIDE * SIDE}")[:, 0]
    _, first, equal = np.unique(rows, return_index=True, return_inverse=True)
    distinct, number = np.unique(first[equal], return_inverse=True)
    pictures = signatures[distinct].reshape(-1, SIDE, SIDE)
    chunks = np.split(pictures, range(CHUNK, len(pictures), CHUNK))
    details = np.concatenate([_details(chunk) for chunk in chunks])
    edges = np.concatenate([_edges(chunk) for chunk in chunks])

    pairs = _candidates(edges)
    same = _in_chunks(_same_when_aligned, pairs, details, pictures) > 0
    group = _connected(np.arange(len(pictures)), pairs[:, same])
    return distinct[group[number]]


def _connected(group: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(M,) the smallest index of each index's group, after joining the groups of (2, P) pairs."""
    group = group.copy()
    while not np.array_equal(*(roots := group[pairs])):
        np.minimum.at(group, roots.max(0), roots.min(0))
        while not np.array_equal(group, group[group]):
            group = group[group]
    return group


def _details(pictures: np.ndarray) -> np.ndarray:
    """(M, 32, 32) int8, in units of 1/32: each pixel of a uint8 picture against its 11 × 11
    surroundings, (level - mean) / (standard deviation + 3).

    The mean takes away what all fog shares, a smooth gradient; its surroundings shrink towards the
    border, since a lopsided mean would make detail of a gradient. The division takes away
    brightness and contrast; the 3 keeps JPEG noise of a nearly flat patch from looking like detail.
    """
    levels = pictures.astype(np.float32)
    to_border = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])
    box, even = _box(np.full(SIDE, 5)), _box(np.minimum(to_border, 5))
    off = levels - even @ levels @ even.T
    details = off / (np.sqrt(box @ (off * off) @ box.T) + 3)
    return np.rint(details * 32).clip(-127, 127).astype(np.int8)


def _box(radius: np.ndarray) -> np.ndarray:
    """(32, 32) matrix that takes means over the pixels within radius (32,) of each pixel."""
    near = np.abs(np.arange(SIDE) - np.arange(SIDE)[:, None]) <= radius[:, None]
    return (near / near.sum(1, keepdims=True)).astype(np.float32)


def _edges(pictures: np.ndarray) -> np.ndarray:
    """(M, 256) float32: strength of the edges of uint8 pictures in 4 directions in 8 × 8
    overlapping cells, scaled to the length NORM.

    Coarse enough to survive a cropped border, and a vector whose products find neighbours.
    Whole numbers below 2^24 in all sums, so that every machine's matrix product is exact.
    """
    padded = np.pad(pictures.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    half = np.float32(np.sqrt(0.5))
    slopes = np.stack([across, half * (across + down), down, half * (down - across)], axis=1)
    place = (np.arange(SIDE) + 0.5) / SIDE * 8 - 0.5
    cells = (np.maximum(0, 1 - np.abs(np.arange(8)[:, None] - place)) / 4).astype(np.float32)
    strength = cells @ np.abs(slopes) @ cells.T
    strength /= np.sqrt((strength * strength).sum(1, keepdims=True)) + 2
    vectors = strength.reshape(len(pictures), -1) - np.float32(0.4)  # about the mean
    return np.rint(vectors * (NORM / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-3)))


def _candidates(edges: np.ndarray) -> np.ndarray:
    """(2, P) pairs, first < second, of near neighbours by their (M, 256) edges, each pair once."""
    found, least = [], LIKENESS * NORM**2
    step = max(1, CHUNK_PRODUCTS // len(edges))
    for start in tqdm(range(0, len(edges), step), "searching duplicates", delay=5, disable=None):
        likeness = edges[start : start + step] @ edges.T
        row = np.arange(len(likeness))
        likeness[row, start + row] = -1
        for _ in range(NEIGHBOURS):
            near = likeness.argmax(1)
            score = likeness[row, near]
            likeness[row, near] = -1
            one, other = np.minimum(start + row, near), np.maximum(start + row, near)
            found.append((one * len(edges) + other)[score > least])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), len(edges)))


def _in_chunks(
    compare: Callable[..., np.ndarray], pairs: np.ndarray, *arrays: np.ndarray
) -> np.ndarray:
    """(P,) float32: compare(array[first], array[second], ...) of (2, P) pairs."""
    result = np.zeros(pairs.shape[1], dtype=np.float32)
    for start in range(0, len(result), CHUNK):
        sides = pairs[:, start : start + CHUNK]
        chosen = (array[side].astype(np.float32) for array in arrays for side in sides)
        result[start : start + CHUNK] = compare(*chosen)
    return result


def _correlation(one: np.ndarray, other: np.ndarray, inside: np.ndarray = WHOLE) -> np.ndarray:
    """(P,) correlation in -1..1 of (P, n, n) pictures, over the pixels where inside is 1, not 0."""
    inside = np.broadcast_to(inside, one.shape)
    sums = [(levels * inside).sum((1, 2), keepdims=True) for levels in (one, other, inside)]
    one, other = (one - sums[0] / sums[2]) * inside, (other - sums[1] / sums[2]) * inside
    norms = (one * one).sum((1, 2)) * (other * other).sum((1, 2))
    return (one * other).sum((1, 2)) / np.sqrt(norms + 1)


def _same_when_aligned(
    detail: np.ndarray, other_detail: np.ndarray, levels: np.ndarray, other_levels: np.ndarray
) -> np.ndarray:
    """(P,) bool: whether the pictures agree once the other is shifted and scaled to fit.

    Fits details of half the resolution first, since these still overlap when the frames differ.
    """
    blocks = (len(detail), SIDE // 2, 2, SIDE // 2, 2)
    half, other_half = (one.reshape(blocks).mean((2, 4)) for one in (detail, other_detail))
    fit, alike = _fit(half, other_half, np.repeat(STARTS[:, None], len(detail), axis=1))
    same = alike > ROUGHLY_ALIKE
    fit, alike = _fit(detail[same], other_detail[same], fit[None, same])
    levels = levels[same]
    others, inside = _warp(other_levels[same], fit)
    difference = (np.abs(levels - others) * inside).sum((1, 2)) / inside.sum((1, 2))
    same[same] = ((alike > ALIKE) & (_correlation(levels, others, inside) > ROUGHLY_ALIKE)) | (
        (alike > ROUGHLY_ALIKE) & (difference < SAME_LEVELS)
    )
    return same


def _warp(pictures: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample (P, n, n) pictures at (x·width + left, y·height + top); also which samples exist.

    fit: (P, 4) width, left, height, top, where a whole picture runs from -1 to 1
    Returns the (P, n, n) samples, and 1 where they lie inside the picture, else 0, as float32.
    """
    size = pictures.shape[1]
    pixels = np.arange(size, dtype=np.float32)
    axis = (2 * pixels + 1) / size - 1

    def weights(scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        place = (scale[:, None] * axis + shift[:, None] + 1) / 2 * size - np.float32(0.5)
        return np.maximum(0, 1 - np.abs(place[:, :, None] - pixels))

    across, down = weights(fit[:, 0], fit[:, 1]), weights(fit[:, 2], fit[:, 3])
    inside = (down.sum(2) > 0.5)[:, :, None] & (across.sum(2) > 0.5)[:, None, :]
    return down @ pictures @ across.transpose(0, 2, 1), inside.astype(np.float32)


def _fit(one: np.ndarray, other: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How other (P, n, n) must be warped to match one best; up to 30 % may be cut from a side.

    Gauss-Newton, inverse compositional (Baker and Matthews 2004, Lucas-Kanade 20 Years On): the
    equations are solved once for all steps and all (S, P, 4) starts.
    Returns the best fit (P, 4) and its correlation (P,).
    """
    count, size, _ = one.shape
    axis = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    by_y, by_x = np.gradient(one, 2 / size, axis=(1, 2))
    slopes = np.stack([by_x * axis, by_x, by_y * axis[:, None], by_y], axis=1)
    slopes = slopes.reshape(count, 4, size**2)
    normal = slopes @ slopes.transpose(0, 2, 1)
    damping = 0.003 * np.trace(normal, axis1=1, axis2=2) + 1
    solve = np.linalg.solve(normal + damping[:, None, None] * np.eye(4, dtype=np.float32), slopes)

    best, most_alike = starts[0], np.full(count, -1, dtype=np.float32)
    for fit in starts:
        for _ in range(FIT_STEPS):
            warped, inside = _warp(other, fit)
            error = ((warped - one) * inside).reshape(count, size**2, 1)
            step = np.clip((solve @ error)[:, :, 0], -0.15, 0.15)
            scale = fit[:, ::2] / (1 + step[:, ::2])
            shift = fit[:, 1::2] - scale * step[:, 1::2]
            fit = np.stack([scale[:, 0], shift[:, 0], scale[:, 1], shift[:, 1]], axis=1)
            fit = np.clip(fit, *FIT_LIMITS)
        alike = _correlation(one, *_warp(other, fit))
        best = np.where((alike > most_alike)[:, None], fit, best)
        most_alike = np.maximum(alike, most_alike)
    return best, most_alike
