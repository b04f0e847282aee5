"""Photos as people have them: in folders of classes, divided, in a table, in archives."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import UserError
from data.layouts import with_unlabelled
from data.listing import PARTS, find_photos
from data.split import Split, split_photos

TABLE = [(f"images/{name}/{n}.jpg", name) for name in ("rain", "snow") for n in range(9)]
NUMBERED = [(*row, n % 3) for n, row in enumerate(TABLE)]


def files(root: Path, *folders: str, count: int = 9) -> None:
    """Empty photos: nothing here decodes them."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.jpg").touch()


def classes_in(root: Path, *folders: str, count: int = 9) -> None:
    files(root, *(f"{f}/{name}" for f in folders for name in ("rain", "snow")), count=count)


def table(path: Path, head: str, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head.split(), *rows])
    return path


def read(path: Path, seed: int = 0, folds: int | None = None) -> Split:
    photos = find_photos(path, path.parent / "unpacked")
    return split_photos(photos, np.arange(len(photos)), seed, folds)


LAYOUTS = {
    # folders, those of photos without classes, and how many photos are for train, val and test
    "classes": (["."], [], (12, 4, 2)),
    "a wrapper": (["a/b"], [], (12, 4, 2)),
    "train, val, test": (["train", "val", "test"], [], (18, 18, 18)),
    "Trainset": (["Trainset", "testdata"], [], (14, 4, 18)),
    "TrainImages": (["RainTrainImages", "RainTestImages"], [], (14, 4, 18)),
    "Data/train": (["Data/train", "Data/test"], [], (14, 4, 18)),
    "seg_train": (["seg_train/seg_train", "seg_test/seg_test"], ["seg_pred/seg_pred"], (14, 4, 18)),
    "without test": (["train", "valid"], ["unlabelled/a", "unlabelled/b"], (16, 18, 2)),
    "others": (["trn", "tst"], ["extra/a", "extra/b"], (14, 4, 18)),
    "test without classes": (["train"], ["test"], (12, 4, 2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_layout_is_recognised_and_its_parts_are_used_as_given(name, packed, tmp_path):
    labelled, others, counts = LAYOUTS[name]
    root = tmp_path / "photos"
    classes_in(root, *labelled)
    files(root, *others)
    path = Path(shutil.make_archive(str(root), "zip", root)) if packed else root
    split = read(path)
    assert split.photos.classes == ("rain", "snow")
    assert tuple(len(split.indices(part)) for part in PARTS) == counts
    for photo, part in zip(split.photos.paths, split.part, strict=True):
        assert "test" not in photo.replace("tst", "test") or PARTS[part] == "test"
    left_out = {other.split("/")[0] for other in others} | ({"files"} if others else set())
    assert {note.split()[0] for note in split.photos.notes} == left_out
    assert not others or f": {9 * len(others)}, such as '{others[0]}/0" in split.photos.notes[-1]


def test_classes_of_sub_folders_are_no_parts(tmp_path):
    files(tmp_path / "a" / "in", "rain/light", "rain/heavy", "snow/light", "snow/heavy")
    (tmp_path / "a" / "1.jpg").touch()
    files(tmp_path / "b", "train/steam", "train/diesel", "car/red", "car/blue")
    found = find_photos(tmp_path / "a", tmp_path)
    assert (len(found), found.notes[1][-28:]) == (36, "left out: 1, such as '1.jpg'")
    assert found.notes[0].startswith("each class has the folders heavy, light: if those are")
    assert find_photos(tmp_path / "b", tmp_path).classes == ("car", "train")
    classes_in(tmp_path / "c", "train", "val")
    files(tmp_path / "c", "test/rain/2020")  # no wrapper, as training has a class of this name
    (tmp_path / "c" / "l.csv").write_text("network,path,class,predicted,probability\n")
    c = find_photos(tmp_path / "c", tmp_path)
    assert (np.sum(c.given == "test"), *c.notes) == (9, "l.csv is not used as a list of photos")
    two = [("train/rain/1.jpg", "rain"), ("../val/b", "snow")]
    listed = table(tmp_path / "c" / "m.csv", "path class", two)
    assert "m.csv has no column split: train, val are mixed" in find_photos(listed, tmp_path).notes
    with pytest.raises(UserError, match=r"'\.\./val/b' is absolute or leads out of the folder"):
        find_photos(listed.parent, tmp_path)
    files(tmp_path / "d", *(f"{p}/{n}/{k}" for p in ("train", "test") for n in "ab" for k in "cd"))
    assert find_photos(tmp_path / "d", tmp_path).notes[0].startswith("each class has the folders c")


def test_a_table_gives_classes_parts_and_folds_and_reads_what_is_written(tmp_path):
    files(tmp_path, "images/rain", "in/images/rain")
    rows = [(*row, PARTS[n % 3]) for n, row in enumerate(TABLE)]
    given = read(table(tmp_path / "given.csv", "path class split", rows))
    assert [len(given.indices(part)) for part in PARTS] == [6, 6, 6]
    drawn = read(table(tmp_path / "drawn.csv", "path class", TABLE[::-1]), seed=3)
    (tmp_path / "split.csv").write_bytes(drawn.manifest)
    assert read(tmp_path / "split.csv").manifest == drawn.manifest
    (tmp_path / "split.csv").write_bytes((few := drawn.with_labels(2, 0)).manifest)
    assert np.array_equal(read(tmp_path / "split.csv").part, few.part)
    folds = read(table(tmp_path / "in" / "folds.csv", "path class split", NUMBERED), folds=3)
    assert [len(folds.fold(1).indices(part)) for part in PARTS] == [6, 6, 6]
    assert folds.fold(1).indices("test").tolist() == np.flatnonzero(folds.part == 1).tolist()
    text = (listed := tmp_path / "in" / "folds.csv").read_text("utf-8")
    (tmp_path / "in" / "a.csv").write_bytes(b"path\0class")  # in a folder of a table and others
    found = read(tmp_path / "in", folds=3)
    notes = "folds.csv lists the photos", "a.csv is not used as a list of photos"
    assert (found.hash, found.photos.notes) == (folds.hash, notes)
    files(tmp_path, "outer/a/b")  # a table beside its photos, in folders that hold one folder alone
    flat = [(f"{n}.jpg", ("rain", "snow")[n % 2], n) for n in range(9)]
    table(tmp_path / "outer" / "a" / "b" / "a.csv", "path class picture", flat)
    assert len(find_photos(tmp_path / "outer", tmp_path)) == 9
    text = text.replace("split", "split,a;b;c;d")
    tops = {"sep=;\n": "utf-8", "\t\n": "utf-16", "\n,,\n": "utf-8-sig"}  # of spreadsheets
    for mark, (top, code) in zip(";\t,", tops.items(), strict=True):
        listed = listed.replace(listed.with_suffix(".TSV" if mark == "\t" else ".csv"))
        listed.write_bytes((top + text.replace(",", mark)).encode(code))
        assert folds.hash == read(listed, folds=3).hash == read(listed.parent, folds=3).hash


WRONG = [
    ({"train": "rain snow", "holdout": "rain snow"}, "holdout, train, and it is not clear"),
    ({"train": "rain snow", "training": "rain snow"}, "train, training, and it is not clear"),
    ({"train": "rain snow", "test": "rain hail"}, "test has a class 'hail', which train lacks"),
    ({"train": "", "test": ""}, "split into test, train, but no training folder has two"),
    ({"a": "rain"}, "only one class, 'rain', in .*a folder with one sub-folder"),
    ({".": ""}, "9 photos, no class folders, in .*a folder with one sub-folder"),
    ({"val": "rain snow", "test": "rain snow"}, "split into test, val, but no training"),
    ({"rain": "train test", "snow": "train test"}, "rain' is split into test, train; a fold"),
    ({"rain": "training_set val", "snow": "a"}, "rain' is split into training_set, val; a fold"),
    ('path class\na.jpg rain\na.jpg "snow', "cannot be read as a table: unexpected end of data"),
    ("file label\na.jpg rain", "has the columns 'file', 'label': the columns path and class"),
    ("path class split\na.jpg rain foo\nb.jpg snow train", "its column split has 'foo'; it may"),
    ("path class split\na.jpg rain non-train\nb.jpg snow train", "has 'non-train'; it may"),
    ("path class class\na.jpg rain snow", "'class', 'class': .* are needed, each once"),
    ("path class\na.jpg rain light\nb.jpg rain", "too many cells for 'a.jpg'; quote"),
    ("path class\na.jpg rain\na.jpg snow", "has 'a.jpg' twice"),
    ("path class\na.jpg", "no path or no class in the line"),
    ("path class\na.jpg rain", ": at least two classes are needed, 1 found"),
    ("path class split\na.jpg rain val\nb.jpg snow train", "'rain' has no training photo in"),
    ("path class\nb.jpg rain\nc.jpg snow", "none of its 2 files exists, such as 'b.jpg': paths"),
    ("path class\na.jpg rain\né.jpg snow", r"'\\udce9.jpg' does not exist: save the CSV as UTF-8"),
    ("", "is empty: the columns path and class are needed"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "says"), WRONG)
def test_what_is_no_layout_is_refused_with_what_was_found(made, says, tmp_path):
    path = tmp_path / "photos"
    if isinstance(made, str):
        (path := tmp_path / "photos.csv").write_bytes(made.replace(" ", ",").encode("cp1252"))
        (tmp_path / "a.jpg").touch()
    else:
        for folder, inner in made.items():
            files(path, *(f"{folder}/{name}" for name in inner.split() or ["."]))
    with pytest.raises(UserError, match=says):
        read(path)


def test_settings_that_would_divide_given_parts_anew_are_refused(tmp_path):
    classes_in(tmp_path / "all", "train", "val", "test")
    classes_in(tmp_path / "two", "train", "test", count=20)
    folds = table(tmp_path / "folds.csv", "path class split", NUMBERED)
    files(tmp_path, "images/rain")
    for path, seed, count in ((tmp_path / "all", 0, 5), (tmp_path / "all", 1, None)):
        with pytest.raises(UserError, match="would draw a new split, but these photos have one"):
            read(path, seed, count)
    for seed, count in ((0, None), (0, 4), (1, 3)):
        with pytest.raises(UserError, match="split into folds: give --folds 3 alone"):
            read(folds, seed, count)
    assert read(tmp_path / "two", 1).hash != read(tmp_path / "two", 2).hash  # its validation


def test_unlabelled_photos_follow_with_absolute_paths(tmp_path):
    classes_in(tmp_path / "photos", ".")
    files(tmp_path / "more", "deep/down", count=2)
    classed = find_photos(tmp_path / "photos", tmp_path)
    photos = with_unlabelled(classed, tmp_path / "more", tmp_path)
    assert photos.labels.tolist() == [0] * 9 + [1] * 9 + [-1] * 2
    assert photos.paths[18:] == tuple(f"{tmp_path}/more/deep/down/{n}.jpg" for n in range(2))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="--unlabelled: no photo"):
        with_unlabelled(photos, tmp_path / "nothing", tmp_path)
