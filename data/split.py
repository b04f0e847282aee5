"""Photos → train, val and test, or folds: by class, with duplicates together, drawn by seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from config import UserError
from data.files import csv_text
from data.photos import Photos

PARTS = ("train", "val", "test")
FRACTIONS = (0.7, 0.2, 0.1)
DRAWS = 20  # tried where photos with two labels tie the classes to each other


@dataclass(frozen=True, eq=False)
class Split:
    """Which part of the split each of N photos is in."""

    photos: Photos
    part: np.ndarray  # (N,) int8, index into `names`; of folds, the one that tests the photo
    names: tuple[str, ...] = PARTS  # or the numbers of the folds

    @cached_property
    def manifest(self) -> bytes:
        """What split.csv contains: path, class and split of each photo."""
        rows = [("path", "class", "split")]
        for path, label, part in zip(self.photos.paths, self.photos.labels, self.part, strict=True):
            rows.append((path, self.photos.classes[label], self.names[part]))
        return csv_text(rows).encode("utf-8", "surrogateescape")

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the manifest's SHA-256: equal for equal splits of equal names."""
        return hashlib.sha256(self.manifest).hexdigest()[:16]

    def indices(self, part: str) -> np.ndarray:
        """Indices, ascending int64, of the photos in "train", "val" or "test"."""
        return np.flatnonzero(self.part == self.names.index(part))

    def fold(self, number: int | None) -> "Split":
        """Tests on one of k folds, validates on the next k/5, at least one, trains on the rest.
        None is the split itself."""
        if number is None:
            return self
        folds = len(self.names)
        after = (self.part - number) % folds
        val = max(1, round(FRACTIONS[1] * folds))
        part = np.select([after == 0, after <= val], [2, 1], 0).astype(np.int8)
        return replace(self, part=part, names=PARTS)


def split_photos(photos: Photos, groups: np.ndarray, seed: int, folds: int | None = None) -> Split:
    """The photos split by 70/20/10, or into so many folds, by `make_split`."""
    names = PARTS if folds is None else tuple(map(str, range(folds)))
    fractions = FRACTIONS if folds is None else (1 / folds,) * folds
    return Split(photos, make_split(photos.labels, groups, photos.classes, seed, fractions), names)


def describe_duplicates(photos: Photos, groups: np.ndarray) -> list[str]:
    """How many photos are duplicates, and which of these have two labels; empty without any."""
    copied = np.bincount(groups, minlength=1)[groups] > 1
    if not copied.any():
        return []
    notes = [
        f"duplicates: {copied.sum():,} photos show {len(np.unique(groups[copied])):,} pictures; "
        "photos of one picture are kept in one part of the split"
    ]
    two_labels = np.unique(groups[photos.labels != photos.labels[groups]])
    if len(two_labels):
        same = np.flatnonzero(groups == two_labels[0])
        shown = " = ".join(repr(photos.paths[photo]) for photo in same)
        notes.append(f"WARNING: {len(two_labels):,} pictures carry two labels, such as {shown}")
    return notes


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
    fractions: of the parts, met to within a class's largest group unless groups hold two classes
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
    own, photos = np.count_nonzero(held[:, label]), held[:, label].sum()
    fewer = ", or give fewer --folds" if len(fractions) > len(PARTS) else ""
    fewer += "; --duplicates exact or off keeps shots of one scene apart" if photos > own else ""
    raise UserError(
        f"class {classes[label]!r} has too few photos: {own} different ones ({photos} with "
        f"duplicates); {len(fractions)} are needed that are not duplicates of other classes' "
        f"photos, one for each part of the split{fewer}"
    )


def _deal(held: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(G,) int8: each group is dealt to the part that needs its photos most; those of several
    classes and large ones first, since small ones can even out what these leave.

    held: (G, C) int, photos of each class in each group
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
        # A class's last groups must go to those of its parts that are still empty.
        urgent = empty[own] & (left[own] <= empty[own].sum(1))[:, None]
        number = np.lexsort((-(photos * need[own]).sum(0), -urgent.sum(0)))[0]
        part[group] = number
        need[own, number] -= photos[:, 0]
        empty[own, number] = False
        left[own] -= 1
    return part
