"""Photos → train, val and test, or folds: by class, with duplicates together, drawn by seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from config import UserError
from data.files import csv_text
from data.listing import ALL_PARTS, PARTS, UNLABELLED, Photos

FRACTIONS = (0.7, 0.2, 0.1)
DRAWS = 20  # tried where photos with two labels tie the classes to each other


@dataclass(frozen=True, eq=False)
class Split:
    """Which part of the split each of N photos is in."""

    photos: Photos
    part: np.ndarray  # (N,) int8, index into `names`; of folds, the one that tests the photo
    names: tuple[str, ...] = ALL_PARTS  # or the numbers of the folds

    @cached_property
    def manifest(self) -> bytes:
        """What split.csv contains: path, class and split of each photo."""
        photos = zip(self.photos.paths, self.photos.labels, self.part, strict=True)
        rows = [(path, self.photos.classes[own], self.names[part]) for path, own, part in photos]
        return csv_text([("path", "class", "split"), *rows]).encode("utf-8", "surrogateescape")

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the manifest's SHA-256: equal for equal splits of equal names."""
        return hashlib.sha256(self.manifest).hexdigest()[:16]

    @cached_property
    def held_out(self) -> str:
        """As `hash`, of the validation and test photos alone: the same for few and all labels."""
        kept = [x for x in self.manifest.splitlines() if x.endswith((b",val", b",test"))]
        return hashlib.sha256(b"\n".join(kept)).hexdigest()[:16]

    def indices(self, part: str) -> np.ndarray:
        """Indices, ascending int64, of the photos in "train", "val", "test" or "unlabelled"."""
        return np.flatnonzero(self.part == self.names.index(part))

    def fold(self, number: int | None) -> "Split":
        """The split that tests on this fold and validates on the next fifth; for None, itself."""
        if number is None:
            return self
        folds = len(self.names)
        after = (self.part - number) % folds
        val = max(1, round(FRACTIONS[1] * folds))
        part = np.select([after == 0, after <= val], [2, 1], 0).astype(np.int8)
        return Split(self.photos, part).checked()

    def checked(self) -> "Split":
        """The split; raises UserError for a class without a training photo."""
        trained = {*self.photos.labels[self.indices("train")].tolist()}
        if lacking := [name for n, name in enumerate(self.photos.classes) if n not in trained]:
            raise UserError(f"class {lacking[0]!r} has no training photo in the given split")
        return self

    def with_labels(self, per_class: float | None, seed: int) -> "Split":
        """Keep `per_class` labels of training photos per class, or that share if below 1, but at
        least one; the others become unlabelled. Fewer labels are a subset of more."""
        if per_class is None:
            return self
        part, labels = self.part.copy(), self.photos.labels
        rng = np.random.Generator(np.random.PCG64(seed))
        for label in range(len(self.photos.classes)):
            own = rng.permutation(np.flatnonzero((part == 0) & (labels == label)))
            count = max(1, round(per_class * len(own))) if per_class < 1 else int(per_class)
            part[own[count:]] = self.names.index(UNLABELLED)
        if np.array_equal(part, self.part):
            raise UserError(f"--labels-per-class {per_class:g} keeps all labels: omit it")
        return replace(self, part=part)


def split_photos(photos: Photos, groups: np.ndarray, seed: int, folds: int | None = None) -> Split:
    """The given split, with a val or test part that it lacks drawn from train; else 70/20/10, or
    `folds` folds. Raises UserError for settings that do not fit a given split."""
    given = photos.given
    if given is None:
        names = ALL_PARTS if folds is None else tuple(map(str, range(folds)))
        fractions = FRACTIONS if folds is None else (1 / folds,) * folds
        part = make_split(photos.labels, groups, photos.classes, seed, fractions)
        return Split(photos, part, names)
    known = sorted(set(given.tolist()))
    if known[0].isdigit():
        if len(known) < 3:
            raise UserError(f"these photos have {len(known)} folds: at least three are needed")
        if folds != len(known) or seed:
            raise UserError(f"these photos are split into folds: give --folds {len(known)} alone")
        return Split(photos, given.astype(np.int8), tuple(map(str, range(folds))))
    drawn = np.array([0, *(n for n in (1, 2) if PARTS[n] not in known)], np.int8)
    if folds or (seed and len(drawn) == 1):
        flag = "--folds" if folds else "--split-seed"
        raise UserError(f"{flag} would draw a new split, but these photos have one: omit it")
    part = np.array([ALL_PARTS.index(name) for name in given], np.int8)
    train = Split(photos, part).checked().indices("train")
    if len(drawn) > 1:
        labels, shares = photos.labels[train], np.array(FRACTIONS)[drawn]
        fractions = tuple(shares / shares.sum())
        part[train] = drawn[make_split(labels, groups[train], photos.classes, seed, fractions)]
    return Split(photos, part)


def describe_duplicates(split: Split, groups: np.ndarray) -> list[str]:
    """How many photos are duplicates, which have two labels, which are in several given parts."""
    photos, copied = split.photos, np.bincount(groups)[groups] > 1
    if not copied.any():
        return []
    pictures = len(np.unique(groups[copied]))
    notes = [f"NOTE     duplicates: {copied.sum():,} photos show {pictures:,} pictures"]
    if photos.given is None:
        notes[0] += "; photos of one picture are kept in one part of the split"
    given = np.full(len(photos), "") if photos.given is None else photos.given
    for values, what in (
        (photos.labels, "have conflicting labels"),
        (np.where(given == UNLABELLED, "train", given), "are in several parts of the given split"),
    ):
        apart = np.unique(groups[values != values[groups]])
        if len(apart):
            same = np.flatnonzero(groups == apart[0])
            shown = " = ".join(repr(photos.paths[photo]) for photo in same)
            notes.append(f"WARNING  pictures that {what}: {len(apart):,}, such as {shown}")
    return notes


def list_duplicates(split: Split, groups: np.ndarray) -> list[tuple[object, ...]]:
    """The photos that are duplicates: number of the picture, path, class, and part of the split."""
    photos, copied = split.photos, np.bincount(groups)[groups] > 1
    return [
        (groups[i], photos.paths[i], photos.classes[photos.labels[i]], split.names[split.part[i]])
        for i in sorted(np.flatnonzero(copied), key=lambda i: (groups[i], i))
    ]


def make_split(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """The part of each of N photos, (N,) int8: stratified by class, the same on every machine.

    labels: (N,) int, index into classes; each class gets at least one photo in each part
    groups: (N,) int, equal for photos that must stay together
    fractions: of the parts, met to within a class's largest group unless groups hold two classes
    Raises UserError: a class that has fewer groups than parts, or shares nearly all of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    _, group = np.unique(groups, return_inverse=True)
    held = np.zeros((group.max() + 1, len(classes)), dtype=np.int32)
    np.add.at(held, (group, labels), 1)
    for _ in range(DRAWS):
        part = _deal(held, fractions, rng)
        counts = np.stack([held[part == number].sum(0) for number in range(len(fractions))])
        if counts.all():
            return part[group]
    label = int(counts.min(0).argmin())
    own, photos = np.count_nonzero(held[:, label]), held[:, label].sum()
    fewer = ", or give fewer --folds" if len(fractions) > len(PARTS) else ""
    fewer += "; --duplicates exact or off may split shots of one scene" if photos > own else ""
    has = f"has too few photos: {own} different ones ({photos} with duplicates)"
    needs = f"{len(fractions)} are needed that no other class shares, one for each part{fewer}"
    raise UserError(f"class {classes[label]!r} {has}; {needs}")


def _deal(held: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(G,) int8: each group is dealt to the part that needs its photos most, those of several
    classes and large ones first. `held` (G, C) counts the photos of each class in each group."""
    order = rng.permutation(len(held))
    order = order[np.lexsort((-held.sum(1)[order], -(held > 0).sum(1)[order]))]
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
