"""The drawn sample: the same bytes from the same seed, whole or absent, told by its shapes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import UserError
from data import sample
from data.duplicates import group_duplicates, signature

ROOT = Path(__file__).parents[1]
WEATHER = [
    *("dew", "fogsmog", "frost", "glaze", "hail", "lightning"),
    *("rain", "rainbow", "rime", "sandstorm", "snow"),
]
TINY = {"per_class": 2, "size": 32}

DRAW = """
import sys
from pathlib import Path
from data.sample import draw_sample
folder = draw_sample(Path(sys.argv[1]), seed=0, per_class=2, size=32)
print(folder.stat().st_ino)
"""

# Draws a tiny sample into argv[1], but something happens before it does argv[3] for the time
# argv[2]: opens a file of that ending for writing, or renames. Either it is killed, or, with
# another script as argv[4], that is run first.
INTERRUPTED = (
    """
import os, signal, subprocess, sys
left, moment, other = int(sys.argv[2]), sys.argv[3], sys.argv[4:]
def interrupt(event, args):
    global left
    writes = event == "open" and str(args[0]).endswith(moment) and "w" in str(args[1])
    if writes or event == "os." + moment:
        left -= 1
        if left == 0 and other:
            subprocess.run([sys.executable, "-c", other[0], sys.argv[1]], check=True)
        elif left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(interrupt)
"""
    + DRAW
)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def photos(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".jpg")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(sample.draw_sample(tmp_path_factory.mktemp("tiny") / "sample", **TINY))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """(11, per class, 48, 48, 3) uint8: all photos of a sample with its default number of them."""
    folder = sample.draw_sample(tmp_path_factory.mktemp("drawn") / "sample", size=48)
    return np.stack(
        [
            np.stack([np.asarray(Image.open(path)) for path in sorted((folder / name).iterdir())])
            for name in WEATHER
        ]
    )


def test_is_a_folder_of_eleven_classes_of_rgb_jpegs(tmp_path: Path) -> None:
    folder = sample.draw_sample(tmp_path / "new" / "sample", per_class=3, size=40)
    assert folder == tmp_path / "new" / "sample"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == WEATHER
    for name in WEATHER:
        paths = sorted((folder / name).iterdir())
        assert [path.name for path in paths] == ["0000.jpg", "0001.jpg", "0002.jpg"]
        for path in paths:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 40))
    assert os.listdir(tmp_path / "new") == ["sample"]


def test_a_photo_depends_on_seed_class_and_number_alone(
    tmp_path: Path, tiny: dict[str, bytes]
) -> None:
    assert contents(sample.draw_sample(tmp_path / "again", **TINY)) == tiny
    more = photos(sample.draw_sample(tmp_path / "more", per_class=3, size=32))
    assert {name: more[name] for name in tiny if name.endswith(".jpg")}.items() <= tiny.items()
    other = photos(sample.draw_sample(tmp_path / "other", seed=1, **TINY))
    assert not set(other.values()) & set(tiny.values())
    assert len(set(other.values())) == len(other) == 22


def test_a_complete_sample_is_reused(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    folder = sample.draw_sample(tmp_path / "sample", **TINY)
    (folder / "dew" / ".DS_Store").write_text("by a file manager")
    (folder / "rime" / "0001.jpg").write_bytes(b"still the same file")
    untouched = tmp_path.stat().st_mtime_ns
    sample.draw_sample(folder, **TINY)
    assert tmp_path.stat().st_mtime_ns == untouched  # nor was another one drawn and thrown away
    assert (folder / "rime" / "0001.jpg").read_bytes() == b"still the same file"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "snow" / "0001.jpg").unlink(),
        lambda folder: (folder / "dew").rename(folder / "drops"),
        lambda folder: (folder / "sample.json").write_text('{"version": 0}'),
        lambda folder: (folder / "sample.json").write_text("{"),
    ],
    ids=["photo missing", "class missing", "other version", "marker damaged"],
)
def test_an_incomplete_sample_is_drawn_again(tmp_path: Path, tiny: dict[str, bytes], spoil) -> None:
    folder = sample.draw_sample(tmp_path / "sample", **TINY)
    spoil(folder)
    assert contents(sample.draw_sample(folder, **TINY)) == tiny
    assert os.listdir(tmp_path) == ["sample"]


def test_a_sample_of_other_settings_is_replaced(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    folder = sample.draw_sample(tmp_path / "sample", seed=3, per_class=1, size=40)
    assert contents(sample.draw_sample(folder, **TINY)) == tiny


def killed_run(folder: Path, moment: str, nth: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(folder), str(nth), moment]
    assert subprocess.run(command, cwd=ROOT).returncode == -9


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("moment", "nth"), [(".jpg", 15), ("sample.json", 1), ("rename", 1)])
def test_a_killed_run_leaves_no_half_sample(
    tmp_path: Path, tiny: dict[str, bytes], moment: str, nth: int
) -> None:
    folder = tmp_path / "sample"
    killed_run(folder, moment, nth)
    assert not folder.exists()
    assert contents(sample.draw_sample(folder, **TINY)) == tiny


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("moment", "nth"), [(".jpg", 15), ("rename", 1), ("rename", 2)])
def test_a_run_killed_while_it_replaces_a_sample(
    tmp_path: Path, tiny: dict[str, bytes], moment: str, nth: int
) -> None:
    folder = sample.draw_sample(tmp_path / "sample", seed=1, **TINY)
    before = contents(folder)
    killed_run(folder, moment, nth)
    assert contents(folder) == before if nth != 2 else not folder.exists()
    assert contents(sample.draw_sample(folder, **TINY)) == tiny


def test_leftovers_of_killed_runs_are_removed_when_old(tmp_path: Path) -> None:
    for name in ("sample.partial-old", "sample.partial-new", "unrelated"):
        (tmp_path / name / "new").mkdir(parents=True)
    an_hour_ago = time.time() - 3700
    for name in ("sample.partial-old", "unrelated"):
        os.utime(tmp_path / name, (an_hour_ago, an_hour_ago))
    sample.draw_sample(tmp_path / "sample", per_class=1, size=32)
    assert sorted(os.listdir(tmp_path)) == ["sample", "sample.partial-new", "unrelated"]


@pytest.mark.parametrize(
    ("before", "moment", "nth"),
    [("nothing", "sample.json", 1), ("nothing", "rename", 1), ("another seed", "rename", 2)],
)
def test_another_process_draws_the_same_meanwhile(
    tmp_path: Path, tiny: dict[str, bytes], before: str, moment: str, nth: int
) -> None:
    folder = tmp_path / "sample"
    if before == "another seed":
        sample.draw_sample(folder, seed=1, **TINY)
    command = [sys.executable, "-c", INTERRUPTED, str(folder), str(nth), moment, DRAW]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    theirs, ours = run.stdout.split()
    assert theirs == ours  # the sample that was there first stays, for whoever reads it already
    assert contents(folder) == tiny
    assert os.listdir(tmp_path) == ["sample"]


def test_never_touches_what_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="mine holds something else than a drawn sample"):
        sample.draw_sample(tmp_path / "mine", **TINY)
    with pytest.raises(UserError, match=r"cannot draw the sample into .*photo\.jpg"):
        sample.draw_sample(tmp_path / "mine" / "photo.jpg", **TINY)
    assert contents(tmp_path) == {"mine/photo.jpg": b"precious"}


@pytest.mark.parametrize("setting", [{"seed": -1}, {"per_class": 0}, {"size": 31}])
def test_refuses_settings_out_of_range(tmp_path: Path, setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match="needs seed ≥ 0, per_class ≥ 1 and size ≥ 32"):
        sample.draw_sample(tmp_path / "sample", **setting)
    assert not os.listdir(tmp_path)


def held_out_accuracy(features: np.ndarray, ridge: float) -> float:
    """Accuracy in 4-fold cross-validation of a linear model of features (11, photos, D)."""
    classes, count = features.shape[:2]
    labels, fold = np.repeat(np.arange(classes), count), np.tile(np.arange(count) % 4, classes)
    flat = features.reshape(classes * count, -1)
    flat = np.column_stack([(flat - flat.mean(0)) / flat.std(0), np.ones(len(flat))])
    right = 0
    for test in (fold == number for number in range(4)):
        known, wanted = flat[~test], np.eye(classes)[labels[~test]]
        penalty = ridge * np.eye(flat.shape[1])
        weight = np.linalg.solve(known.T @ known + penalty, known.T @ wanted)
        right += ((flat[test] @ weight).argmax(1) == labels[test]).sum()
    return right / len(flat)


def edge_strengths(grey: np.ndarray) -> np.ndarray:
    """(11, photos, 24): log mean strength of the edges in 8 directions at 3 scales; no colour."""
    features = []
    for scale in (1, 2, 4):
        n = grey.shape[2] // scale
        small = grey.reshape(*grey.shape[:2], n, scale, n, scale).mean((3, 5))
        across = np.diff(small, axis=3)[:, :, :-1]
        down = np.diff(small, axis=2)[..., :-1]
        for turn in np.arange(8) * np.pi / 4:
            along = np.maximum(0, np.cos(np.arctan2(down, across) - turn)) ** 4
            features.append(np.log((along * np.hypot(down, across)).mean((2, 3)) + 0.01))
    return np.stack(features, axis=2)


def test_shapes_tell_the_class_and_the_mean_colour_does_not(drawn: np.ndarray) -> None:
    pixels = drawn / 255
    colour = pixels.mean((2, 3))
    with_products = np.concatenate([colour, colour**2, colour * np.roll(colour, 1, 2)], axis=2)
    assert held_out_accuracy(colour, 1e-3) < 0.6
    assert held_out_accuracy(with_products, 1e-3) < 0.6
    grey = pixels.mean(4)
    grey = (grey - grey.mean((2, 3), keepdims=True)) / grey.std((2, 3), keepdims=True)
    assert held_out_accuracy(edge_strengths(grey), 3.0) > 0.75


def test_no_photo_is_a_near_duplicate_of_another(drawn: np.ndarray) -> None:
    photos = drawn.reshape(-1, 48, 48, 3)
    groups = group_duplicates(np.stack([signature(Image.fromarray(photo)) for photo in photos]))
    assert len(np.unique(groups)) == len(photos) == 11 * 48


def test_the_contact_sheet_in_docs_shows_today_s_drawings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.sample", "--sheet"]
    subprocess.run([*command, str(tmp_path / "sheet.png")], cwd=ROOT, check=True)
    kept = ROOT / "docs" / "illustration" / "sample.png"
    assert kept.stat().st_size < 400_000
    with Image.open(kept) as one, Image.open(tmp_path / "sheet.png") as other:
        difference = np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)
    assert np.abs(difference).mean() < 4  # not 0: another machine may round otherwise
    missing = str(tmp_path / "missing" / "sheet.png")
    refused = subprocess.run([*command, missing], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "cannot write the sheet" in refused.stderr
    assert "Traceback" not in refused.stderr
