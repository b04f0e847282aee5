"""Layouts beyond a folder of classes: photos with a given split, in folders or a table, photos
without a class, and archives, which cannot write or read outside the folder they unpack into."""

import codecs
import csv
import errno
import hashlib
import os
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config import UserError, one_line
from data.files import FREE_SPACE, build_once
from data.listing import ALL_PARTS, LAYOUTS, PARTS, UNLABELLED, Photos, photos_below, walk

PART = re.compile(  # as in seg_train, training_set, Testdata, TrainImages, unlabelled
    r"(?<![a-z])(train|trn|test|tst|eval|val|dev|unlabel)(ing|uation|id|idation|l?ed|val)?"
    r"(set|data|images?|photos?)?(?![a-z])"
)
MEANT = {"trn": "train", "tst": "test", "eval": "test", "dev": "val", "unlabel": UNLABELLED}
# Drawn BMP images compress to a twentieth at best; a bomb unpacks to a thousand times its size.
MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 100, 256 << 20


def with_unlabelled(photos: Photos, path: Path, unpack_into: Path) -> Photos:
    """The photos, then those of a folder or archive, without classes; UserError if it has none."""
    root = unpack(path, unpack_into).resolve()
    more = sorted(f"{root.as_posix()}/{inner}" for inner in photos_below(root))
    if not more:
        raise UserError(f"--unlabelled: no photo (*.jpg, *.png, ...) in {str(path)!r}")
    labels = np.concatenate([photos.labels, np.full(len(more), -1)])
    return replace(photos, paths=(*photos.paths, *more), labels=labels)


def find_split(root: Path, names: list[str], tables: list[Path]) -> Photos | None:
    """Photos that a CSV here lists or sub-folders split; None for class folders; else UserError."""
    if tables:
        if len(tables) > 1:
            raise UserError(f"{tables[0]} and {tables[1].name} list photos: merge them or give one")
        photos = from_table(tables[0])
        for path in photos.paths:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                what = "is absolute or leads out of the folder: if it is right, give the CSV itself"
                raise UserError(f"{tables[0]}: {path!r} {what}")
        return replace(photos, notes=(f"{tables[0].name} lists the photos", *photos.notes))
    parts = _from_parts(root, names)
    if not parts and len(names) > 1 and all(map(part_of, names)):
        what = f"{str(root)!r} is split into {', '.join(names)}"
        raise UserError(f"{what}, but no training folder has two class folders; {LAYOUTS}")
    return parts


def part_of(name: str, find: Callable[[str], re.Match[str] | None] = PART.search) -> str:
    """The part that a folder name stands for: "train" for `seg_train`; "" for any other name."""
    found = find(re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return MEANT.get(found[1], found[1]) if found else ""


def _from_parts(root: Path, names: list[str]) -> Photos | None:
    """The photos of folders that are parts of a split: one is named for training and has class
    folders; others have the same classes or, if they have none, are left out. None for any other
    folders. Raises UserError if it is not clear which is which, or training lacks a class."""
    inside: dict[str, dict[str, str]] = {}  # of each folder, its class folders by their paths
    known = list[str]()  # classes, which may have sub-folders
    for name in sorted(names, key=lambda name: part_of(name) != "train"):
        folder = Path(name)
        while len(inner := next(walk(root / folder))[1]) == 1 and inner[0] not in known:
            if not next(walk(root / folder / inner[0]))[1]:
                break
            folder /= inner[0]
        inside[name] = {(folder / one).as_posix(): one for one in inner}
        known = known or inner
    training = [name for name in names if part_of(name) == "train" and len(inside[name]) > 1]
    if not training or len(names) < 2:
        return None
    classes, others = {*inside[training[0]].values()}, {*names} - {*training}
    shared = {name for name in others if classes & {*inside[name].values()}}
    named = {name for name in others if part_of(name)}
    for name in others - shared:
        if len(inside[name]) < 2 or part_of(name) == UNLABELLED or (shared and not part_of(name)):
            inside[name] = {}  # photos, perhaps in a folder
    if not (shared | named or training[1:]) or any(inside[one] for one in others - shared - named):
        return None  # classes, of which one is called train
    labelled = {name: part_of(name) for name in names if inside[name]}
    where = f"{str(root)!r} is split into {', '.join(names)}"
    if len(labelled) > len(set(labelled.values())) or not set(labelled.values()) <= set(PARTS):
        why = "it is not clear which of them is which: name them train, val and test"
        raise UserError(f"{where}, and {why}, or list the photos in a CSV: path, class, split")
    for name in labelled:
        if more := sorted({*inside[name].values()} - classes):
            raise UserError(f"{where}: {name} has a class {more[0]!a}, which {training[0]} lacks")
    photos = from_folders(root, {k: v for name in labelled for k, v in inside[name].items()})
    given = np.array([labelled[path.split("/")[0]] for path in photos.paths])
    left = [f"{one} has no class folders and is left out" for one in names if one not in labelled]
    return replace(photos, given=given if len(labelled) > 1 else None, notes=(*photos.notes, *left))


def from_folders(root: Path, folders: dict[str, str]) -> Photos:
    """The photos in class folders: `folders` maps their paths below the root to the classes."""
    classes = sorted(set(folders.values()))
    found, folders_in = list[tuple[str, int]](), list[set[str]]()
    for folder, name in folders.items():
        photos = [(path, classes.index(name)) for path in photos_below(root, folder)]
        if not photos:
            raise UserError(f"no photo in class folder {str(root / folder)!r}; {LAYOUTS}")
        below = [path[len(folder) + 1 :].split("/") for path, _ in photos]
        inside = {first for first, *more in below if more}
        if "train" in map(part_of, inside) and len(inside) > 1 and all(map(part_of, inside)):
            what = f"{str(root / folder)!r} is split into {', '.join(sorted(inside))}"
            raise UserError(f"{what}; {LAYOUTS}")
        found += photos
        folders_in.append(inside)
    paths, labels = zip(*sorted(found), strict=True)
    same = sorted(set.intersection(*folders_in))
    note = f"each class has the folders {', '.join(same)}: if those are the classes, use a CSV"
    return Photos(root, (*classes,), paths, np.array(labels), None, (note,) * (len(same) > 1))


def read_table(table: Path, whole: bool = True) -> tuple[list[str], list[dict[str, str]]]:
    """The names of a CSV's columns and, if `whole`, the rows below: in UTF-8 or UTF-16, between
    commas, semicolons or tabs, as spreadsheets write them. Raises what the disk and csv raise."""
    with table.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
    with table.open(encoding=encoding, errors=errors, newline="") as file:
        blank = re.compile(r'[\s",;]*|"?sep=.{0,2}"?\s*', re.I).fullmatch  # or Excel's line sep=;
        head, names = next((x for x in file if not blank(x)), ""), dict[str, list[str]]()
        for mark in ",;\t":
            row = next(csv.reader([head], delimiter=mark), [])
            names[mark] = [name.strip().lower() for name in row]
        mark = max(names, key=lambda mark: len({"path", "class"} & {*names[mark]}))
        rows = csv.DictReader(file, names[mark], "\0", "", delimiter=mark, strict=True)
        return names[mark], [r for r in rows if any(r[n] for n in names[mark])] if whole else []


def lists_photos(table: Path) -> bool:
    """Whether a table has the columns path and class."""
    with suppress(OSError, UnicodeError, csv.Error):
        columns = read_table(table, whole=False)[0]  # evaluate, predict and runs write others
        others = "probability" in columns or columns == ["picture", "path", "class", "split"]
        return {"path", "class"} <= {*columns} and not others
    return False


def from_table(table: Path) -> Photos:
    """Photos of a CSV with the columns path (relative to the CSV), class and perhaps split."""
    try:
        columns, rows = read_table(table)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{str(table)!r} cannot be read as a table: {error}") from error
    if [*map(columns.count, ("path", "class", "split"))] not in ([1, 1, 0], [1, 1, 1]):
        found = f"has the columns {', '.join(map(repr, columns))}" if columns else "is empty"
        raise UserError(f"{str(table)!r} {found}: the columns path and class are needed, each once")
    for row in rows:
        row["class"] = row["class"].strip()
        if not row["path"] or not row["class"] or "\0" in row["path"]:
            raise UserError(f"{str(table)!r}: no path or no class in the line {str(row)[:100]}")
        if any(map(str.strip, row.get("\0", ""))):
            raise UserError(f"{str(table)!r}: too many cells for {row['path']!r}; quote any comma")
        row["path"] = posixpath.normpath(row["path"])
    rows = sorted(rows, key=itemgetter("path"))
    for row, after in pairwise(rows):
        if row["path"] == after["path"]:
            raise UserError(f"{str(table)!r} has {row['path']!r} twice")
    classes = sorted({row["class"] for row in rows})
    if len(classes) < 2:
        raise UserError(f"{str(table)!r}: at least two classes are needed, {len(classes)} found")
    odd = (row["path"] for row in rows if re.search("[\udc80-\udcff]", row["path"]))  # not UTF-8
    if lost := [path for path in odd if not os.path.exists(table.parent / path)]:
        raise UserError(f"{str(table)!r}: {lost[0]!r} does not exist: save the CSV as UTF-8")
    if not any(os.path.exists(table.parent / row["path"]) for row in rows):
        what = f"none of its {len(rows):,} files exists, such as {rows[0]['path']!r}"
        raise UserError(f"{str(table)!r}: {what}: paths start from the folder of the CSV, with /")
    others = ", ".join(name for name in columns if name not in ("", "path", "class", "split"))
    hint = "" if "split" in columns else " (only one named split is)"
    notes = [f"columns of {table.name} that are not used{hint}: {others}"] * bool(others)
    given, folders = None, {name for row in rows for name in row["path"].split("/")[:-1]}
    if "split" in columns:
        texts = [re.sub("(?<=[a-z])[ _-]", "", row["split"].strip().lower()) for row in rows]
        given = np.array([part_of(text, PART.fullmatch) or text for text in texts])
        known = np.isin(given, ALL_PARTS)
        wrong = sorted({row["split"] for row, fits in zip(rows, known, strict=True) if not fits})
        if wrong and {*texts} != {str(number) for number in range(len({*texts}))}:
            may = "it may have train, val and test, or the numbers of folds, from 0"
            raise UserError(f"{str(table)!r}: its column split has {wrong[0]!r}; {may}")
    elif len(parts := {*map(part_of, folders)} - {""}) > 1:
        notes.append(f"{table.name} has no column split: {', '.join(sorted(parts))} are mixed")
    labels = np.array([classes.index(row["class"]) for row in rows], np.int64)
    paths = tuple(row["path"] for row in rows)
    return Photos(table.parent, tuple(classes), paths, labels, given, tuple(notes))


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) archive into a new folder under into, and return it; the
    same one (path, size, times) once, and again if unpacked files have changed. Returns a folder as
    it is. Raises UserError if it is not an archive, is encrypted or broken, far larger than
    packed, has a name twice or, in a tar, a device, symlink or way out, or if the disk is full."""
    if os.path.isdir(archive):
        return archive
    if not os.path.isfile(archive):
        raise UserError(f"{str(archive)!r} does not exist, or is neither a folder nor an archive")
    try:
        status = archive.stat()
        times = status.st_mtime_ns, status.st_ctime_ns, status.st_ino  # cp -p keeps the first
        key = ascii((str(archive.resolve()), status.st_size, times)).encode()
        name = f"{archive.name.split('.')[0][:40]}-{hashlib.sha256(key).hexdigest()[:12]}"
        return build_once(into / name, lambda folder: _extract(archive, folder))
    except Exception as error:  # the decoders raise errors of many kinds on data that are broken
        disk = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES
        if isinstance(error, OSError) and error.errno in disk and error.filename != str(archive):
            raise UserError(f"{str(into)!r}: {error.strerror}; {FREE_SPACE}") from error
        what = f"{str(archive)!r} cannot be unpacked as tar or zip ({one_line(error, 1000)})"
        raise UserError(f"{what}: give a complete archive, the unpacked folder or a CSV") from error


def _extract(archive: Path, folder: Path) -> None:
    files, left = 0, max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * archive.stat().st_size)
    is_tar = tarfile.is_tarfile(archive)
    open_archive: Any = tarfile.open if is_tar else zipfile.ZipFile
    with open_archive(archive) as packed:
        packed.extraction_filter = is_tar and tarfile.data_filter  # no devices, nothing outside
        for entry in tqdm(packed if is_tar else packed.infolist(), "unpacking", disable=None):
            left -= 512 + (entry.size if is_tar else entry.file_size)
            if left < 0:
                raise ValueError("far larger than its compressed size: not photos")
            if is_tar and entry.issym():  # they trick the filter until 3.11.12, 3.12.10 and 3.13.3
                raise ValueError(f"{entry.name!r} in it is a symbolic link")
            if not is_tar:  # ZipFile strips leading / and .. from names, and writes links as files
                if not entry.flag_bits & 0x800:  # read as cp437, but zip on Linux writes UTF-8
                    with suppress(UnicodeError):
                        entry.filename = entry.filename.encode("cp437").decode()
                entry.filename = entry.filename.replace("\\", "/")  # as tools of Windows write
            packed.extract(entry, folder)
            files += not (entry.isdir() if is_tar else entry.is_dir())
        end = packed.fileobj.read(1 << 20) if is_tar else b"\0"
        if not end or end.strip(b"\0"):  # tarfile takes any damaged header for the end
            raise ValueError("truncated, or damaged in a header")
    if files != sum(len(names) for _, _, names in os.walk(folder)):
        raise ValueError("two of its entries have the same name")
