"""Photos decoded once: a uint8 array on disk, memory-mapped, that training reads from.

Each resolution has a folder, named by a fingerprint of the photos' files, that appears complete or
not at all. Checksums are verified on every load; if one fails, the photos are decoded again.
"""

import glob
import hashlib
import os
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from config import UserError
from data.files import FREE_SPACE, atomic_folder, lock, open_regular
from data.listing import UNLABELLED, Photos
from data.photos import FOREIGN, UnreadablePhoto, decode_rgb, open_rgb, read_photo

VERSION = 9  # raised whenever the same photos would decode to other pixels or groups
SIGNATURE_SIDE = 256  # signatures must not depend on the cached resolution, or the split would
ROUND = 256  # photos at a time: the decoded ones wait in memory for the slowest


@dataclass(frozen=True)
class Decoded:
    """M photos, of which N with a class and U without are readable, and their pixels."""

    photos: Photos  # the N readable ones, in order
    pixels: np.ndarray  # (M, side, side, 3) uint8 RGB, memory-mapped read-only
    rows: np.ndarray  # (N,) int64, the row of `pixels` of each of them
    groups: np.ndarray  # (N,) int64, equal for photos of one picture (data/duplicates.py)
    equal: np.ndarray  # (N,) int64, for each photo, the first one whose file has the same CRC-32
    digest: str  # 16 hex digits that stand for the bytes of the N files, in their order
    unreadable: tuple[tuple[str, str], ...]  # path and reason of each photo that was left out
    unlabelled: np.ndarray  # (U,) int64, rows of `pixels`
    together: np.ndarray  # (N + U,) int64, as `groups`, of both
    unlabelled_digest: str  # as `digest`, of the U files; "" if there are none


def decode_photos(photos: Photos, side: int, cache: Path) -> Decoded:
    """Every photo squashed to a square of `side` pixels, from the cache or decoded into it. Raises
    UserError for a class or a given part without a readable photo, a disk or memory error while
    reading a photo, or a cache that cannot be written or read."""
    root, more = photos.root.resolve(), {os.path.dirname(p) for p in photos.paths if p[0] == "/"}
    prefix = f"{root.name[:60]}-{zlib.crc32(os.fsencode(f'{root}{sorted(more)}')):08x}-{side}px-"
    ready = cache / f"{prefix}{_fingerprint(photos, side)}"
    try:
        with lock(cache, prefix):
            if (decoded := _load(ready, photos, side)) is None:
                with atomic_folder(ready) as unfinished:
                    _decode_into(unfinished, photos, side, ready.name)
                for older in set(cache.glob(f"{glob.escape(prefix)}*")) - {ready}:
                    shutil.rmtree(older, ignore_errors=True)
                if (decoded := _load(ready, photos, side)) is None:
                    raise OSError("what was read back differs from what was written")
    except OSError as error:
        what = f"the decoded photos could not be written or read there ({error.strerror or error})"
        raise UserError(f"{str(cache)!r}: {what}; {FREE_SPACE}") from error
    named = {"class": [photos.classes[label] for label in photos.labels if label >= 0]}
    if photos.given is not None:  # without its photos, a part would be drawn from the others
        named["part"] = photos.given.tolist()
    for kind, names in named.items():
        for name in sorted({*names} - {names[row] for row in decoded.rows} - {UNLABELLED}):
            path = photos.paths[names.index(name)]
            what = f"no photo can be read, the first is {path!r} ({dict(decoded.unreadable)[path]})"
            raise UserError(f"{kind} {name!r}: {what}")
    return decoded


def read_square(path: Path, side: int) -> np.ndarray:
    """One photo as the cache would hold it: (side, side, 3) uint8; raises as open_rgb does."""
    # _decode also makes the signature from it: at a smaller size, a JPEG decodes to other pixels.
    return _squash(open_rgb(path, max(side, SIGNATURE_SIDE)), side)


def _squash(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _fingerprint(photos: Photos, side: int) -> str:
    """A hash of the file metadata; swapped files may share size and mtime, not inode and ctime."""
    lines = [f"version {VERSION} side {side} {sorted(FOREIGN)} {np.sum(photos.labels < 0)}"]
    for path in photos.paths:
        lines.append(path)
        with suppress(FileNotFoundError, NotADirectoryError):  # also a broken link
            s = os.stat(photos.root / path)
            lines.append(f"\0{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


def _load(ready: Path, photos: Photos, side: int) -> Decoded | None:
    """What a folder of the cache holds; None if it is not there or, with a note, damaged."""
    if not os.path.lexists(ready):
        return None
    try:
        with open_regular(ready / "pixels.raw") as file:
            pixels = np.memmap(file, np.uint8, "r", shape=(len(photos), side, side, 3))
        with open_regular(ready / "index.npz") as file, np.load(file) as saved:  # has its own sums
            reasons, sums = saved["reasons"], saved["sums"]
            groups, together = saved["groups"], saved["together"]
            if (zlib.crc32(pixels.data), ready.name) != (saved["pixel_sum"], saved["name"]):
                raise ValueError("other pixels than were written")
    except Exception as error:  # numpy and zipfile can raise anything on damaged files
        if isinstance(error, MemoryError | OSError) and not isinstance(error, FileNotFoundError):
            raise  # the machine's fault, not the file's
        print(f"NOTE: {str(ready)!r} is damaged: decoding the photos again", file=sys.stderr)
        return None
    classed = photos.labels >= 0
    readable, without = (reasons == "") & classed, (reasons == "") & ~classed
    _, first, which = np.unique(sums[readable], return_index=True, return_inverse=True)
    digests = [hashlib.sha256(sums[of].astype("<u4").tobytes()) for of in (readable, without)]
    rows = np.flatnonzero(readable)
    paths, labels = tuple(photos.paths[row] for row in rows), photos.labels[rows]
    given = None if photos.given is None else photos.given[rows]
    return Decoded(
        photos=replace(photos, paths=paths, labels=labels, given=given),
        pixels=pixels,
        rows=rows,
        groups=groups,
        equal=first[which],
        digest=digests[0].hexdigest()[:16],
        unreadable=tuple((photos.paths[i], str(reasons[i])) for i in np.flatnonzero(reasons != "")),
        unlabelled=np.flatnonzero(without),
        together=together,
        unlabelled_digest=digests[1].hexdigest()[:16] if without.any() else "",
    )


def _decode_into(folder: Path, photos: Photos, side: int, name: str) -> None:
    """Fill a folder of this name; `_load` reads it."""
    from data.duplicates import group_duplicates  # once for all runs

    rows, pixel_sum = [], 0
    paths = [photos.root / path for path in photos.paths]
    missing = {path for path in paths if not os.path.exists(path)}
    if denied := [p for p in paths if p not in missing and not os.access(p, os.R_OK)]:
        raise UserError(f"no permission to read {len(denied)} photos, such as {str(denied[0])!r}")
    with (
        # Not a memory map: on a full disk, that would kill the process without a word.
        open(folder / "pixels.raw", "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc="decoding photos, once", unit="photo", disable=None) as bar,
    ):
        for start in range(0, len(paths), ROUND):
            for *row, square in pool.map(partial(_decode, side), paths[start : start + ROUND]):
                rows.append(row)
                pixel_sum = zlib.crc32(square.data, pixel_sum)
                file.write(square.data)
                bar.update()
    reasons, signatures, sums = map(np.array, zip(*rows, strict=True))
    if gone := {paths[n] for n in np.flatnonzero(reasons == os.strerror(2))} - missing:
        raise UserError(f"{len(gone)} photos disappeared, such as {str(min(gone))!r}: restore them")
    readable, labelled = reasons == "", photos.labels >= 0
    groups = together = group_duplicates(signatures[readable & labelled])
    if not labelled.all():  # unlabelled photos must not affect the groups of labelled ones
        together = group_duplicates(signatures[readable])
    made = {"reasons": reasons, "sums": sums, "groups": groups, "together": together}
    np.savez(folder / "index.npz", allow_pickle=False, name=name, pixel_sum=pixel_sum, **made)


def _decode(side: int, path: Path) -> tuple[str, np.ndarray, int, np.ndarray]:
    """Why a photo cannot be read, "" if it can; its signature, its file's sum, and its pixels."""
    from data.duplicates import signature

    try:
        data = read_photo(path)
        image = decode_rgb(data, path.suffix, SIGNATURE_SIDE)
        thumbnail = signature(image)
        if side > SIGNATURE_SIDE:
            image = decode_rgb(data, path.suffix, side)
        return "", thumbnail, zlib.crc32(data), _squash(image, side)
    except UnreadablePhoto as problem:
        return str(problem), np.zeros(1024, np.uint8), 0, np.zeros((side, side, 3), np.uint8)
    except (OSError, MemoryError) as error:  # not the photo's fault, so not recorded in the cache
        why = getattr(error, "strerror", None) or "out of memory"
        raise UserError(f"{str(path)!r} could not be read: {why}") from error
