"""Which photos there are, of which class and, if they are already split, in which part."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import UserError
from data.photos import is_named_as_photo

PARTS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the part of those photos whose class is known, but not used
ALL_PARTS = (*PARTS, UNLABELLED)
SYSTEM_FOLDERS = {"__macosx", "@eadir", "@recycle", "#recycle"}  # of macOS, a NAS, whole disks
SYSTEM_FOLDERS |= {"lost+found", "$recycle.bin", "system volume information"}
TABLES = (".csv", ".tsv")
LAYOUTS = "a folder with one sub-folder per class works; or one split into train, val and test,\n"
LAYOUTS += "a CSV with columns path, class and perhaps split, or an archive of any of these"


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a data set, in an order that is the same on every machine."""

    root: Path  # the folder that the paths start from
    classes: tuple[str, ...]  # their names, sorted; surrogates stand for bytes that are not UTF-8
    paths: tuple[str, ...]  # with "/" between the parts, sorted; unlabelled ones last, absolute
    labels: np.ndarray  # (N,) int64, index into classes; -1 for unlabelled photos
    # The part of the split or the number of the fold of each photo with a class, as text.
    given: np.ndarray | None = None
    notes: tuple[str, ...] = ()  # what was found and left out

    def __len__(self) -> int:
        return len(self.paths)


def find_photos(path: Path, unpack_into: Path) -> Photos:
    """List the photos of a folder, a table (TABLES), or an archive that is unpacked below
    unpack_into. One folder alone is a wrapper: what is in it is used. Raises UserError: none of the
    LAYOUTS, fewer than two classes, one without photos, or no access."""
    from data.layouts import find_split, from_folders, from_table, lists_photos, part_of, unpack

    if path.suffix.lower() in TABLES:
        return from_table(path)
    root = top = unpack(path, unpack_into).absolute()
    notes = list[str]()
    while True:
        _, names, files = next(walk(root))
        if dead := [p for n in files if not is_named_as_photo(n) and not (p := root / n).exists()]:
            raise UserError(f"{str(dead[0])!r} is a broken link: restore it, or remove it")
        tables = {n: lists_photos(root / n) for n in files if n.lower().endswith(TABLES)}
        notes += [f"{n} is not used as a list of photos" for n in tables if not tables[n]]
        photos = find_split(root, names, [root / n for n in tables if tables[n]])
        if photos or len(names) != 1:
            break
        root /= names[0]
    if not photos:
        if not names:
            found = f"{sum(map(is_named_as_photo, files)):,} photos, no class folders,"
            found = f"only one class, {root.name!r}," if root != top else found
            raise UserError(f"{found} in {str(path)!r}; {'; '.join([*notes[:1], LAYOUTS])}")
        photos = from_folders(root, {name: name for name in names})
        notes += [f"{n!r} is a class here, not a part of a split" for n in names if part_of(n)]
    used = {f"{photos.root.as_posix()}/{path}" for path in photos.paths}
    every = (f"{at.as_posix()}/{name}" for at, _, files in walk(top, False) for name in files)
    if left := [path for path in every if path not in used and not path.lower().endswith(TABLES)]:
        notes.append(f"files left out: {len(left):,}, such as {os.path.relpath(left[0], top)!r}")
    return replace(photos, notes=(*photos.notes, *notes))


def walk(top: Path, strict: bool = True) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder with its folders and files, sorted, none hidden or, if `strict`, unreadable."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename!r}: {error.strerror}")

    for folder, inner, files in os.walk(top, onerror=fail if strict else None):
        for names in (inner, files):
            names[:] = sorted(n for n in names if n[0] != "." and n.lower() not in SYSTEM_FOLDERS)
        yield Path(folder), inner, files


def photos_below(root: Path, name: str = ".") -> Iterator[str]:
    """Paths below the root of the photos in a folder of it; raises UserError for a linked one."""
    for folder, inner, files in walk(root / name):
        for link in filter(Path.is_symlink, map(folder.joinpath, inner)):
            raise UserError(f"{str(link)!r} links to a folder, as only class folders may: copy it")
        inside = f"{folder.relative_to(root).as_posix()}/".removeprefix("./")
        yield from (f"{inside}{file}" for file in files if is_named_as_photo(file))
