"""Photos → train, val and test: duplicates are found and kept together, the rest is drawn by seed.

signatures ──group_duplicates──▶ groups ──make_split──▶ split.csv
"""

import codecs
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from config import UserError
from data.duplicates import group_duplicates
from data.locks import write_whole
from data.photos import Photos

PARTS = ("train", "val", "test")
FRACTIONS = (0.7, 0.2, 0.1)
COLUMNS = ("path", "class", "split")
DRAWS = 20  # tried where photos with two labels tie the classes to each other
URGENT = 1e18  # more than any need: a class's last groups go to its parts that are still empty


@dataclass(frozen=True, eq=False)
class Split:
    """Which part of the split each photo is in, in the order of the photos.

    paths: photo paths relative to the photo folder
    class_names: the class of each photo
    part: (N,) int8, index into `names`: 0 train, 1 val, 2 test; of a division into folds, the fold
        that tests the photo
    names: of the parts; of a division, the folds' numbers
    notes: lines for the user about duplicates, and about a split that was replaced
    conflicts: groups of duplicates that carry two labels or more, as (path, class) of their photos
    """

    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    part: np.ndarray
    names: tuple[str, ...] = PARTS
    notes: tuple[str, ...] = ()
    conflicts: tuple[tuple[tuple[str, str], ...], ...] = ()

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the manifest's SHA-256: equal for equal splits of equal names."""
        return hashlib.sha256(self._manifest()).hexdigest()[:16]

    def indices(self, part: str) -> np.ndarray:
        """Indices, ascending int64, of the photos in "train", "val" or "test"."""
        return np.nonzero(self.part == self.names.index(part))[0]

    def fold(self, number: int) -> "Split":
        """A fold of a division: it tests one part, validates on the next fifth of the parts, one at
        least, and trains on the rest."""
        folds = len(self.names)
        after = (self.part - number) % folds
        val = max(1, round(FRACTIONS[1] * folds))
        part = np.where(after == 0, 2, np.where(after <= val, 1, 0)).astype(np.int8)
        return replace(self, part=part, names=PARTS)

    def write_manifest(self, path: Path) -> None:
        """Write split.csv: path, class and split of each photo; whole or not at all."""
        _write(path, self._manifest())

    def _manifest(self) -> bytes:
        parts = (self.names[part] for part in self.part)
        return to_csv([COLUMNS, *zip(self.paths, self.class_names, parts, strict=True)])


def split_photos(
    photos: Photos, signatures: np.ndarray, manifest: Path, seed: int, folds: int | None = None
) -> Split:
    """The split in the manifest when it is of exactly these photos, else a new one, written there.

    photos: N photos, sorted by path
    signatures: (N, 1024) uint8, one `signature` per photo
    folds: of a division for cross-validation; None for the one split by 70/20/10
    Raises UserError: a malformed manifest, or what `make_split` refuses.
    """
    names = PARTS if folds is None else tuple(map(str, range(folds)))
    fractions = FRACTIONS if folds is None else (1 / folds,) * folds
    groups = _groups(photos, signatures, manifest.parent)
    class_names = tuple(photos.classes[label] for label in photos.labels)
    notes, conflicts = _report(photos.paths, class_names, groups)
    old = read_manifest(manifest, names) if manifest.exists() else None
    if old and (old.paths, old.class_names) == (photos.paths, class_names):
        notes += _check_split(old, groups, photos, manifest)
        return replace(old, notes=notes, conflicts=conflicts)
    if old:
        notes += (f"the photos are not those of the split in {str(manifest)!r}: it is made anew",)
    part = make_split(photos.labels, groups, photos.classes, seed, fractions)
    split = Split(photos.paths, class_names, part, names, notes, conflicts)
    split.write_manifest(manifest)
    return split


def _groups(photos: Photos, signatures: np.ndarray, folder: Path) -> np.ndarray:
    """`group_duplicates`, remembered in a file that lists each duplicate and what it repeats."""
    digest = hashlib.sha256(np.ascontiguousarray(signatures).data).hexdigest()[:16]
    remembered = folder / f"duplicates-{digest}.csv"
    index = {path: number for number, path in enumerate(photos.paths)}
    groups = np.arange(len(index))
    try:
        for path, first in list(_from_csv(remembered.read_bytes()))[1:]:
            groups[index[path]] = index[first]
    except (OSError, ValueError, KeyError, csv.Error):
        groups = group_duplicates(signatures)
        repeated = np.nonzero(groups != np.arange(len(groups)))[0]
        rows = ((photos.paths[one], photos.paths[groups[one]]) for one in repeated)
        _write(remembered, to_csv([("path", "duplicate_of"), *rows]))
    return groups


def _report(
    paths: tuple[str, ...], class_names: tuple[str, ...], groups: np.ndarray
) -> tuple[tuple[str, ...], tuple[tuple[tuple[str, str], ...], ...]]:
    """Notes on the duplicates, and the groups with two labels."""
    several: dict[int, list[tuple[str, str]]] = {}
    for one in np.nonzero(np.bincount(groups, minlength=1)[groups] > 1)[0]:
        several.setdefault(groups[one], []).append((paths[one], class_names[one]))
    if not several:
        return (), ()
    count = sum(len(group) for group in several.values())
    notes = [
        f"duplicates: {count:,} photos show {len(several):,} pictures; "
        "photos of one picture are kept in one part of the split"
    ]
    conflicts = tuple(
        tuple(group) for group in several.values() if len({label for _, label in group}) > 1
    )
    if conflicts:
        shown = ", ".join(" = ".join(repr(path) for path, _ in group) for group in conflicts[:3])
        more = f" and {len(conflicts) - 3:,} more" if len(conflicts) > 3 else ""
        notes.append(f"WARNING: {len(conflicts):,} pictures carry two labels: {shown}{more}")
    return tuple(notes), conflicts


def _check_split(
    split: Split, groups: np.ndarray, photos: Photos, manifest: Path
) -> tuple[str, ...]:
    """A note if a manifest that somebody edited divides duplicates; UserError for an empty part."""
    for number, part in enumerate(split.names):
        held = np.bincount(photos.labels[split.part == number], minlength=len(photos.classes))
        if not held.all():
            raise UserError(
                f"{str(manifest)!r} has no photo of class "
                f"{photos.classes[int(held.argmin())]!r} in {part}: correct it, or delete it for a "
                "new split"
            )
    divided = len(np.unique(groups[split.part != split.part[groups]]))
    if not divided:
        return ()
    return (
        f"WARNING: {str(manifest)!r} divides the duplicates of {divided:,} pictures between parts; "
        "delete it for a split that does not",
    )


def read_manifest(path: Path, names: tuple[str, ...] = PARTS) -> Split:
    """A split into parts of these names from its manifest, with the photos sorted by path.

    Raises UserError: missing or malformed, with the number of the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the split {str(path)!r}: {error.strerror}") from error
    rows: dict[str, tuple[str, int]] = {}
    lines = _from_csv(data)
    try:
        if (header := next(lines, None)) != list(COLUMNS):
            raise ValueError(f"the columns are {header}, expected {','.join(COLUMNS)}")
        for photo, label, part in lines:
            if part not in names:
                raise ValueError(f"split is {part!r}, expected one of {', '.join(names)}")
            if photo in rows:
                raise ValueError(f"{photo!r} is listed twice")
            rows[photo] = label, names.index(part)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{str(path)!r}, line {lines.line_num}: {error}\nMend it, or delete it for a new split."
        ) from error
    paths = tuple(sorted(rows))
    part_of = np.array([rows[photo][1] for photo in paths], dtype=np.int8)
    return Split(paths, tuple(rows[photo][0] for photo in paths), part_of, names)


def to_csv(rows: Iterable[Sequence[str]]) -> bytes:
    """The rows as csv. Not by csv.writer: which fields it quotes has changed between Pythons."""

    def quoted(field: str) -> str:
        special = not field or any(character in field for character in ',"\r\n')
        return '"' + field.replace('"', '""') + '"' if special else field

    text = "".join(",".join(map(quoted, row)) + "\n" for row in rows)
    # A file name need not be UTF-8; its other bytes pass through unchanged.
    return text.encode("utf-8", "surrogateescape")


def _from_csv(data: bytes) -> Any:
    """A csv reader of bytes that a spreadsheet may have saved with a byte order mark."""
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    return csv.reader(io.StringIO(text, newline=""), strict=True)


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from error


def make_split(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """Draw the part of each photo: stratified by class, no group divided, the same everywhere.

    Each class has at least one photo in each part. Beyond that, the photos of a class in a part
    are within the size of one group, the class's largest, of the fraction; where groups hold two
    classes, as many of these bounds are kept as several draws allow.

    labels: (N,) int, index into classes
    groups: (N,) int, equal for photos that must stay together
    fractions: of the parts, adding up to 1
    Returns (N,) int8: the number of each photo's part; 0 train, 1 val, 2 test
    Raises UserError: a class with fewer groups than parts, or whose groups are nearly all another's
    too.
    """
    parts = len(fractions)
    purpose = "one for each part of the split"
    if tuple(fractions) != FRACTIONS:
        purpose += ", or give fewer --folds"
    _, group = np.unique(groups, return_inverse=True)
    held = np.zeros((group.max(initial=-1) + 1, len(classes)), dtype=np.int64)
    np.add.at(held, (group, labels), 1)
    for name, own, photos in zip(classes, (held > 0).sum(0), held.sum(0), strict=True):
        if own < parts:
            raise UserError(
                f"class {name!r} has too few photos: {own} different ones ({photos} with "
                f"duplicates); {parts} are needed, {purpose}"
            )
    draw = np.random.Generator(np.random.PCG64(seed))
    draws = DRAWS if ((held > 0).sum(1) > 1).any() else 1
    best, best_counts, least = np.zeros(0, dtype=np.int8), np.zeros(0), np.inf
    for _ in range(draws):
        part = _deal(held, fractions, draw)
        counts = np.stack([held[part == number].sum(0) for number in range(parts)])
        off = np.abs(counts - np.outer(fractions, held.sum(0)))
        excess = np.maximum(0, off - held.max(0)).sum() + (counts == 0).sum() * len(labels)
        if excess < least:
            best, best_counts, least = part, counts, excess
        if excess == 0:
            break
    if not best_counts.all():
        name = classes[int(best_counts.min(0).argmin())]
        raise UserError(
            f"class {name!r} has too few photos of its own: most are duplicates of other classes' "
            f"photos; {parts} that are not are enough, {purpose}"
        )
    return best[group]


def _deal(held: np.ndarray, fractions: Sequence[float], draw: np.random.Generator) -> np.ndarray:
    """(G,) int8 part of each group, dealt one by one to the part that needs its photos most.

    held: (G, C) int, photos of each class in each group. Groups of several classes and large ones
    are dealt first, so that the small ones can even out what these leave.
    """
    order = draw.permutation(len(held))
    order = order[np.lexsort((-held[order].sum(1), -(held[order] > 0).sum(1)))]
    need = np.outer(held.sum(0), fractions).tolist()
    parts = range(len(fractions))
    empty = [set(parts) for _ in range(held.shape[1])]
    left = (held > 0).sum(0).tolist()
    part = np.zeros(len(held), dtype=np.int8)
    for group in order.tolist():
        of_class = [(label, int(held[group, label])) for label in np.nonzero(held[group])[0]]
        gain = [0.0] * len(parts)
        for label, photos in of_class:
            for number in parts:
                gain[number] += photos * need[label][number]
                if number in empty[label] and left[label] <= len(empty[label]):
                    gain[number] += URGENT
        number = gain.index(max(gain))
        part[group] = number
        for label, photos in of_class:
            need[label][number] -= photos
            empty[label].discard(number)
            left[label] -= 1
    return part
