"""Which photos show the same picture, even if re-encoded, resized, cropped, recoloured.

Two thumbnails show the same picture when one, shifted and scaled to fit, has the other's details.
"""

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 32  # of a signature's thumbnail: enough for details, and 1 kB per photo
# Chosen by looking at some 1,000 pairs of the 11-class weather data set: above ALIKE nearly all,
# below it nearly none are the same photo to the eye. Foggy pictures with little detail may fall
# below it, and are the same if their grey levels are.
ALIKE = 0.73
ALIKE_TURNED = 0.85  # mirrored or rotated by multiples of 90°; below 0.8, some look different
ROUGHLY_ALIKE = 0.5
SAME_LEVELS = 4.0

# Candidates: each photo's NEIGHBOURS nearest others with at least LIKENESS in their edges.
NEIGHBOURS, LIKENESS = 8, 0.5
NORM = 2000  # of the vectors of edges
CHUNK = 512  # thumbnails or pairs at a time
FIT_STEPS = 5
FIT_LIMITS = np.array([[0.7, -0.3, 0.7, -0.3], [1.43, 0.3, 1.43, 0.3]], dtype=np.float32)
# Whole frames, and a tenth (a strip with a watermark) cut off the bottom of one or the other.
STARTS = np.array([[1, 0, 1, 0], [1, 0, 0.9, -0.1], [1, 0, 1.11, 0.11]], dtype=np.float32)


def signature(image: Image.Image) -> np.ndarray:
    """(1024,) uint8: a grey 32 × 32 thumbnail of an upright RGB image, for `group_duplicates`."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.uint8).reshape(-1)


def group_duplicates(signatures: np.ndarray) -> np.ndarray:
    """(N,) int64: for each photo, the smallest index of those that show the same picture, by their
    signatures (N, 1024) uint8. Time grows with N²: a minute for 30,000 photos."""
    if len(signatures) == 0:
        return np.zeros(0, dtype=np.int64)
    seen: dict[bytes, int] = {}
    first = [seen.setdefault(row.tobytes(), index) for index, row in enumerate(signatures)]
    distinct, number = np.unique(first, return_inverse=True)
    pictures = signatures[distinct].reshape(-1, SIDE, SIDE)
    pairs = np.concatenate([_same(pictures), _same(_turned(pictures), turned=True)], axis=1)
    group = np.arange(len(pictures))
    while not np.array_equal(*(ends := group[pairs])):  # join them until no pair has two groups
        np.minimum.at(group, ends.max(0), ends.min(0))
        group = group[group]
    return distinct[group[number]]


def _same(pictures: np.ndarray, *, turned: bool = False) -> np.ndarray:
    """(2, P) pairs of (M, 32, 32) pictures that are the same."""
    chunks = np.split(pictures, range(CHUNK, len(pictures), CHUNK))
    pairs = _candidates(np.concatenate([_edges(chunk) for chunk in chunks]))
    chunks = np.split(pairs, range(CHUNK, pairs.shape[1], CHUNK), axis=1)
    same = [_same_when_aligned(pictures[chunk], turned) for chunk in chunks]
    return pairs[:, np.concatenate(same)]


def _turned(pictures: np.ndarray) -> np.ndarray:
    """Pictures flipped and rotated by multiples of 90° so that the lightest quadrant is at the
    upper left and the upper right one is lighter than the lower left."""
    quarters = pictures.reshape(-1, 2, SIDE // 2, 2, SIDE // 2).mean((2, 4))
    for axis in (1, 2):
        most = quarters.max(3 - axis)
        flip = (most[:, 1] > most[:, 0])[:, None, None]
        quarters = np.where(flip, np.flip(quarters, axis), quarters)
        pictures = np.where(flip, np.flip(pictures, axis), pictures)
    mirror = (quarters[:, 1, 0] > quarters[:, 0, 1])[:, None, None]
    return np.where(mirror, pictures.transpose(0, 2, 1), pictures)


def _details(levels: np.ndarray) -> np.ndarray:
    """(..., 32, 32) pictures after local contrast normalisation, as whole numbers in units of 1/32:
    (level - mean) / (standard deviation + 3) over 11 × 11 windows, which removes gradients, as of
    fog, and contrast; the 3 keeps JPEG noise in flat patches from looking like detail. The mean's
    window shrinks towards the border, where a lopsided one would leave some gradient."""
    to_border = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])
    box, even = _box(np.full(SIDE, 5)), _box(np.minimum(to_border, 5))
    off = levels - even @ levels @ even.T
    return np.rint(off / (np.sqrt(box @ (off * off) @ box.T) + 3) * 32).clip(-127, 127)


def _box(radius: np.ndarray) -> np.ndarray:
    """(32, 32) matrix that takes means over the pixels within radius (32,) of each pixel."""
    near = np.abs(np.arange(SIDE) - np.arange(SIDE)[:, None]) <= radius[:, None]
    return (near / near.sum(1, keepdims=True)).astype(np.float32)


def _edges(pictures: np.ndarray) -> np.ndarray:
    """(M, 256) float32: strength of the edges of uint8 pictures in 4 directions in 8 × 8
    overlapping cells, coarse enough to survive a cropped border, scaled to the length NORM. Whole
    numbers, with sums below 2^24, so that every machine's matrix product is exact."""
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
    for start in tqdm(range(0, len(edges), CHUNK), "finding duplicates", delay=5, disable=None):
        likeness = edges[start : start + CHUNK] @ edges.T
        row = np.arange(len(likeness))
        likeness[row, start + row] = -1
        for _ in range(NEIGHBOURS):
            near = likeness.argmax(1)
            score = likeness[row, near]
            likeness[row, near] = -1
            one, other = np.minimum(start + row, near), np.maximum(start + row, near)
            found.append((one * len(edges) + other)[score > least])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), len(edges)))


def _correlation(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(P,) correlation in -1..1 of (P, n, n) pictures, over the pixels where inside is 1, not 0."""
    sums = [(levels * inside).sum((1, 2), keepdims=True) for levels in (one, other, inside)]
    one, other = (one - sums[0] / sums[2]) * inside, (other - sums[1] / sums[2]) * inside
    norms = (one * one).sum((1, 2)) * (other * other).sum((1, 2))
    return (one * other).sum((1, 2)) / np.sqrt(norms + 1)


def _same_when_aligned(pictures: np.ndarray, turned: bool) -> np.ndarray:
    """(P,) bool: which of P pairs (2, P, 32, 32) agree once the second is shifted and scaled to fit
    the first. Fits at half the resolution first, where details of different frames overlap."""
    levels = pictures.astype(np.float32)
    details = _details(levels)
    half = details.reshape(2, -1, SIDE // 2, 2, SIDE // 2, 2).mean((3, 5))
    fit, alike = _fit(half[0], half[1], np.repeat(STARTS[:, None], half.shape[1], axis=1))
    same = alike > ROUGHLY_ALIKE
    fit, alike = _fit(details[0, same], details[1, same], fit[None, same])
    one = levels[0, same]
    other, inside = _warp(levels[1, same], fit)
    difference = (np.abs(one - other) * inside).sum((1, 2)) / inside.sum((1, 2))
    alike_enough = alike > (ALIKE_TURNED if turned else ALIKE)
    of_equal_levels = (alike > ROUGHLY_ALIKE) & (difference < SAME_LEVELS) & (not turned)
    correlated = _correlation(one, other, inside) > ROUGHLY_ALIKE
    same[same] = (alike_enough & correlated) | of_equal_levels
    return same


def _warp(pictures: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample (P, n, n) pictures at (x·width + left, y·height + top); `fit` (P, 4) is width, left,
    height, top, where a whole picture runs from -1 to 1. Returns samples, and 1 where inside."""
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
    """How to warp other (P, n, n) to match one best: the fit (P, 4) and its correlation (P,), by
    Gauss-Newton, inverse compositional (Baker and Matthews 2004, Lucas-Kanade 20 Years On): the
    equations are solved once for all steps and all (S, P, 4) starts."""
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
            fit = np.stack([scale, shift], axis=2).reshape(count, 4).clip(*FIT_LIMITS)
        alike = _correlation(one, *_warp(other, fit))
        best = np.where((alike > most_alike)[:, None], fit, best)
        most_alike = np.maximum(alike, most_alike)
    return best, most_alike
