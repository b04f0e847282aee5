"""Photos decoded once: a uint8 array on disk, memory-mapped, that training never leaves again.

    decoded = decode_photos(photos, side=256, cache=Path("output/cache"), workers=8, strict=False)

A dataset's folder in the cache holds one folder per resolution. That folder appears under its
name complete or not at all, and its name carries a fingerprint of what it was made from, so a
run that is killed, or photos that change, never leave a wrong cache behind.
"""

import hashlib
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from config import UserError
from data.duplicates import signature
from data.locks import only_one
from data.photos import Photos, UnreadablePhoto, decode_rgb, open_rgb, read_photo

# Raised whenever the same photos would decode to other pixels, signatures or files than before.
VERSION = 3
# Signatures must not depend on the cached resolution, or the split would.
SIGNATURE_SIDE = 256
PHOTOS_PER_TASK = 32


@dataclass(frozen=True)
class Decoded:
    """Readable photos, their pixels and what was found out about them on the way.

    Attributes:
        folder: the dataset's own folder in the cache.
        photos: the readable ones, in order.
        pixels: (M, side, side, 3) uint8 RGB, memory-mapped read-only, one row per file found.
        rows: (N,) int64, the row of `pixels` of each readable photo.
        signed: (M, D) uint8 signatures, memory-mapped read-only, one row per file found.
        digest: 16 hex digits that stand for the bytes of the readable files, in their order.
        unreadable: (path, reason) of each file that was left out.
    """

    folder: Path
    photos: Photos
    pixels: np.ndarray
    rows: np.ndarray
    signed: np.ndarray
    digest: str
    unreadable: tuple[tuple[str, str], ...]

    @property
    def signatures(self) -> np.ndarray:
        """(N, D) uint8, for finding duplicates: a copy, since no run needs it for long."""
        return self.signed[self.rows]


def decode_photos(photos: Photos, side: int, cache: Path, *, workers: int, strict: bool) -> Decoded:
    """Every photo squashed to a square of `side` pixels, from the cache or decoded into it.

    Raises UserError when a class has no readable photo, when the disk is full and, if `strict`,
    when any photo cannot be read.
    """
    root = photos.root.resolve()
    folder = cache / f"{root.name[:60]}-{_digest(str(root))[:8]}"
    fingerprint = _fingerprint(photos, side)
    ready = folder / f"{side}px-{fingerprint[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / "lock"):
            try:
                if not ready.exists():
                    _decode_into(ready, photos, side, workers)
            finally:  # on a full disk, what was begun would stand in everybody's way
                shutil.rmtree(folder / "unfinished", ignore_errors=True)
    except OSError as problem:
        raise UserError(
            f"{folder}: the decoded photos could not be written ({problem.strerror or problem}); "
            "free some space or point --cache to another disk"
        ) from problem
    decoded = _load(ready, photos)
    if strict and decoded.unreadable:
        path, reason = decoded.unreadable[0]
        raise UserError(
            f"--strict: {len(decoded.unreadable)} photos of {photos.root} cannot be read, "
            f"the first is {path!r} ({reason})"
        )
    for label, name in enumerate(photos.classes):
        if not (decoded.photos.labels == label).any():
            reason = next(why for path, why in decoded.unreadable if path.startswith(f"{name}/"))
            raise UserError(f"{photos.root / name}: none of its photos can be read ({reason})")
    return decoded


def _load(ready: Path, photos: Photos) -> Decoded:
    with np.load(ready / "index.npz") as index:
        readable, reasons = index["readable"], index["reasons"].tolist()
        sums = index["sums"][readable]
    left_out = [path for path, fine in zip(photos.paths, readable, strict=True) if not fine]
    return Decoded(
        folder=ready.parent,
        photos=photos.keep(readable),
        pixels=np.load(ready / "pixels.npy", mmap_mode="r"),
        rows=np.flatnonzero(readable),
        signed=np.load(ready / "signatures.npy", mmap_mode="r"),
        digest=hashlib.sha256(sums.astype("<u4").tobytes()).hexdigest()[:16],
        unreadable=tuple(zip(left_out, reasons, strict=True)),
    )


def _decode_into(ready: Path, photos: Photos, side: int, workers: int) -> None:
    unfinished = ready.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    count = len(photos.paths)
    tasks = (
        photos.paths[start : start + PHOTOS_PER_TASK] for start in range(0, count, PHOTOS_PER_TASK)
    )
    reasons: list[str] = []
    sums: list[int] = []
    with (
        _new_array(unfinished / "pixels.npy", (count, side, side, 3)) as pixel_file,
        _new_array(unfinished / "signatures.npy", (count, SIGNATURE_LENGTH)) as signature_file,
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=count, desc="decoding photos, once", unit="photo", disable=None) as bar,
    ):
        work = partial(_decode_task, photos.root, side)
        with closing(in_order(pool, work, tasks, ahead=4 * workers)) as results:
            for pixels, signed, summed, failed in results:
                pixel_file.write(pixels.tobytes())
                signature_file.write(signed.tobytes())
                sums.extend(summed)
                reasons.extend(failed)
                bar.update(len(failed))
    np.savez(
        unfinished / "index.npz",
        readable=np.array([not reason for reason in reasons]),
        reasons=np.array([reason for reason in reasons if reason], dtype=str),
        sums=np.array(sums, dtype=np.uint32),
    )
    unfinished.rename(ready)
    for older in ready.parent.glob(f"{side}px-*"):
        if older != ready:
            shutil.rmtree(older, ignore_errors=True)


def _new_array(path: Path, shape: tuple[int, ...]) -> BinaryIO:
    """A .npy file of uint8 numbers that are still to be written."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], tasks: Iterable[Any], ahead: int
) -> Generator[Any, None, None]:
    """Results in the order of the tasks, with at most `ahead` of them held in memory.

    When it is closed or interrupted, tasks that have not begun never do.
    """
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pending in waiting:
            pending.cancel()


def _decode_task(
    root: Path, side: int, paths: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, list[int], list[str]]:
    """Of a few photos: pixels, signatures, CRC-32 of the files, and reasons for being unreadable
    ("" if they are not)."""
    pixels = np.zeros((len(paths), side, side, 3), np.uint8)
    signatures = np.zeros((len(paths), SIGNATURE_LENGTH), np.uint8)
    sums, reasons = [0] * len(paths), [""] * len(paths)
    for row, path in enumerate(paths):
        try:
            data, suffix = read_photo(root / path), Path(path).suffix
            image = decode_rgb(data, suffix, SIGNATURE_SIDE)
            signatures[row] = signature(image)
            if side > SIGNATURE_SIDE:
                image = decode_rgb(data, suffix, side)
            sums[row] = zlib.crc32(data)
        except UnreadablePhoto as problem:
            reasons[row] = str(problem)
            continue
        pixels[row] = _squash(image, side)
    return pixels, signatures, sums, reasons


def read_square(path: Path, side: int) -> np.ndarray:
    """One photo as the cache would hold it: (side, side, 3) uint8, squashed to a square.

    Raises UnreadablePhoto as open_rgb does.
    """
    # _decode_task takes the signature from the same decoding unless more pixels are needed.
    return _squash(open_rgb(path, max(side, SIGNATURE_SIDE)), side)


def _squash(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))


SIGNATURE_LENGTH = len(signature(Image.new("RGB", (SIGNATURE_SIDE, SIGNATURE_SIDE))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _fingerprint(photos: Photos, side: int) -> str:
    lines = [f"version {VERSION} side {side}"]
    for path in photos.paths:
        try:
            stat = os.stat(photos.root / path)
            lines.append(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}")
            if not os.access(photos.root / path, os.R_OK):  # a chmod changes no size and no time
                lines.append("denied")
        except OSError:
            lines.append(f"{path}\0gone")
    return _digest("\n".join(lines))
