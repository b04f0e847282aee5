"""Photos → train, val and test: duplicates are found and kept together, the rest is drawn by seed.

signatures ──group_duplicates──▶ groups ──make_split──▶ split.csv
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from config import UserError
from data.duplicates import group_duplicates
from data.files import atomic_write, csv_text
from data.photos import Photos

PARTS = ("train", "val", "test")
FRACTIONS = (0.7, 0.2, 0.1)
COLUMNS = ["path", "class", "split"]
DRAWS = 20  # tried where photos with two labels tie the classes to each other


@dataclass(frozen=True, eq=False)
class Split:
    """Which part of the split each of N photos is in."""

    paths: tuple[str, ...]  # relative to the photo folder, sorted
    class_names: tuple[str, ...]  # the class of each photo
    part: np.ndarray  # (N,) int8, index into `names`; of folds, the one that tests the photo
    names: tuple[str, ...] = PARTS  # or the numbers of the folds
    notes: tuple[str, ...] = ()  # for the user: duplicates, a split that was replaced

    @cached_property
    def manifest(self) -> bytes:
        """What split.csv contains: path, class and split of each photo."""
        parts = (self.names[part] for part in self.part)
        rows = zip(self.paths, self.class_names, parts, strict=True)
        return csv_text([COLUMNS, *rows]).encode("utf-8", "surrogateescape")

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the manifest's SHA-256: equal for equal splits of equal names."""
        return hashlib.sha256(self.manifest).hexdigest()[:16]

    def indices(self, part: str) -> np.ndarray:
        """Indices, ascending int64, of the photos in "train", "val" or "test"."""
        return np.flatnonzero(self.part == self.names.index(part))

    def fold(self, number: int) -> "Split":
        """The split whose test photos are those of one of k folds. It validates on the next k/5
        folds, on one at least, and trains on the rest."""
        folds = len(self.names)
        after = (self.part - number) % folds
        val = max(1, round(FRACTIONS[1] * folds))
        part = np.where(after == 0, 2, np.where(after <= val, 1, 0)).astype(np.int8)
        return replace(self, part=part, names=PARTS)

    def write_manifest(self, path: Path) -> None:
        """Write split.csv, whole or not at all. Raises OSError."""
        atomic_write(path, self.manifest)


def split_photos(
    photos: Photos, signatures: np.ndarray, manifest: Path, seed: int, folds: int | None = None
) -> Split:
    """The split in the manifest when it is of exactly these photos, else a new one, written there.

    signatures: (N, 1024) uint8, one `signature` per photo
    folds: for cross-validation; None for one split by 70/20/10
    Raises UserError: a malformed manifest, or what `make_split` refuses.
    """
    names = PARTS if folds is None else tuple(map(str, range(folds)))
    groups = _groups(signatures, manifest.parent)
    class_names = tuple(photos.classes[label] for label in photos.labels)
    notes = _notes(photos, groups)
    if manifest.exists():
        old = read_manifest(manifest, names)
        if (old.paths, old.class_names) == (photos.paths, class_names):
            return replace(old, notes=notes + _check_edited(old, groups, manifest))
        notes += (f"the photos are not those of the split in {str(manifest)!r}: it is made anew",)
    fractions = FRACTIONS if folds is None else (1 / folds,) * folds
    part = make_split(photos.labels, groups, photos.classes, seed, fractions)
    split = Split(photos.paths, class_names, part, names, notes)
    split.write_manifest(manifest)
    return split


def _groups(signatures: np.ndarray, folder: Path) -> np.ndarray:
    """`group_duplicates`, which takes seconds, remembered in the folder."""
    remembered = folder / f"duplicates-{hashlib.sha256(signatures.tobytes()).hexdigest()[:16]}.npz"
    with suppress(Exception), remembered.open("rb") as file, np.load(file) as saved:
        return saved["groups"]  # unless there are none yet, or they are damaged
    groups, content = group_duplicates(signatures), io.BytesIO()
    np.savez(content, groups=groups)
    atomic_write(remembered, content.getbuffer())
    return groups


def _notes(photos: Photos, groups: np.ndarray) -> tuple[str, ...]:
    """How many photos are duplicates, and which of these have two labels."""
    copied = np.bincount(groups, minlength=1)[groups] > 1
    if not copied.any():
        return ()
    note = (
        f"duplicates: {copied.sum():,} photos show {len(np.unique(groups[copied])):,} pictures; "
        "photos of one picture are kept in one part of the split"
    )
    two_labels = np.unique(groups[photos.labels != photos.labels[groups]])
    if not len(two_labels):
        return (note,)
    alike = [[photos.paths[one] for one in np.flatnonzero(groups == of)] for of in two_labels[:3]]
    shown = ", ".join(" = ".join(map(repr, paths)) for paths in alike)
    return note, f"WARNING: {len(two_labels):,} pictures carry two labels, such as {shown}"


def _check_edited(split: Split, groups: np.ndarray, path: Path) -> tuple[str, ...]:
    """A note if a manifest that somebody edited divides duplicates; UserError for an empty part."""
    held = set(zip(split.class_names, split.part.tolist(), strict=True))
    for name, number in product(split.class_names, range(len(split.names))):
        if (name, number) not in held:
            raise UserError(
                f"{str(path)!r} has no photo of class {name!r} in {split.names[number]}: "
                "correct it, or delete it for a new split"
            )
    divided = len(np.unique(groups[split.part != split.part[groups]]))
    note = f"WARNING: {str(path)!r} divides the duplicates of {divided:,} pictures between parts; "
    return (note + "delete it for a split that does not",) if divided else ()


def read_manifest(path: Path, names: tuple[str, ...] = PARTS) -> Split:
    """A split into parts of these names from its manifest, with the photos sorted by path.

    Raises UserError: missing or malformed, with the number of the line.
    """
    try:  # a spreadsheet may have saved it with a byte order mark
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read the split {str(path)!r}: {error.strerror}") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[str, tuple[str, int]] = {}
    try:
        if (header := next(lines, None)) != COLUMNS:
            raise ValueError(f"the columns are {header}, expected {','.join(COLUMNS)}")
        for photo, label, part in lines:
            if part not in names:
                raise ValueError(f"split is {part!r}, expected one of {', '.join(names)}")
            if photo in rows:
                raise ValueError(f"{photo!r} is listed twice")
            rows[photo] = label, names.index(part)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{str(path)!r}, line {lines.line_num}: {error}\nFix it, or delete it for a new split."
        ) from error
    paths = tuple(sorted(rows))
    part_of = np.array([rows[path][1] for path in paths], np.int8)
    return Split(paths, tuple(rows[path][0] for path in paths), part_of, names)


def make_split(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """The part of each of N photos, (N,) int8: stratified by class, the same on every machine.

    labels: (N,) int, index into classes; each has at least one photo in each part
    groups: (N,) int, equal for photos that must stay together
    fractions: of the parts, adding up to 1; met to within the size of the class's largest group,
        unless groups hold two classes
    Raises UserError: a class that has fewer groups than parts, or shares nearly all of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    _, group = np.unique(groups, return_inverse=True)
    held = np.zeros((group.max() + 1, len(classes)), dtype=np.int64)
    np.add.at(held, (group, labels), 1)
    for _ in range(DRAWS):
        part = _deal(held, fractions, rng)
        counts = np.stack([held[part == number].sum(0) for number in range(len(fractions))])
        if counts.all():
            return part[group]
    label = int(counts.min(0).argmin())
    own, photos = (held[:, label] > 0).sum(), held[:, label].sum()
    raise UserError(
        f"class {classes[label]!r} has too few photos: {own} different ones ({photos} with "
        f"duplicates); {len(fractions)} are needed that are not duplicates of other classes' "
        "photos, one for each part of the split"
        + (", or give fewer --folds" if len(fractions) > len(PARTS) else "")
    )


def _deal(held: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(G,) int8 part of each group, dealt one by one to the part that needs its photos most.

    held: (G, C) int, photos of each class in each group. Groups of several classes and large ones
    are dealt first, so that the small ones can even out what these leave.
    """
    order = rng.permutation(len(held))
    order = order[np.lexsort((-held[order].sum(1), -(held[order] > 0).sum(1)))]
    need = np.outer(held.sum(0), fractions)
    empty = np.ones(need.shape, dtype=bool)
    left = (held > 0).sum(0)
    part = np.zeros(len(held), dtype=np.int8)
    for group in order:
        own = np.flatnonzero(held[group])
        photos = held[group, own, None]
        # Before all else, a class's last groups go to those of its parts that are still empty.
        urgent = empty[own] & (left[own] <= empty[own].sum(1))[:, None]
        number = np.lexsort((-(photos * need[own]).sum(0), -urgent.sum(0)))[0]
        part[group] = number
        need[own, number] -= photos[:, 0]
        empty[own, number] = False
        left[own] -= 1
    return part
