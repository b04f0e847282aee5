"""The drawn sample: the same bytes from the same seed, complete or absent, classified by shapes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from config import UserError
from data.duplicates import group_duplicates, signature
from data.sample import CLASSES, draw_photo, draw_sample

TINY = {"per_class": 2, "size": 32}
SPOILT = {
    "foreign file": lambda folder: (folder / "dew" / "notes.txt").write_bytes(b""),
    "photo missing": lambda folder: (folder / "snow" / "0001.jpg").unlink(),
    "other settings": lambda folder: draw_sample(folder, seed=3, per_class=1, size=40),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return contents(draw_sample(tmp_path_factory.mktemp("tiny") / "new" / "sample", **TINY))


def test_a_photo_depends_on_seed_class_and_number_alone(tmp_path, tiny):
    more = contents(draw_sample(tmp_path / "more", per_class=3, size=32))
    assert [name for name in tiny if more[name] != tiny[name]] == ["sample.json"]
    other = contents(draw_sample(tmp_path / "other", seed=1, **TINY))
    assert len({*tiny.values(), *other.values()}) == 46
    assert (len(more), more["snow/0002.jpg"][:2]) == (34, b"\xff\xd8")  # JPEG
    assert tiny["sample.json"] == b'{"version": 3, "seed": 0, "per_class": 2, "size": 32}'


@pytest.mark.parametrize("what", SPOILT)
def test_a_complete_sample_is_reused_and_any_other_is_replaced(tmp_path, tiny, what):
    folder = draw_sample(tmp_path / "sample", **TINY)
    SPOILT[what](folder)
    before, kept = folder.stat().st_ino, what == "foreign file"
    assert (draw_sample(folder, **TINY).stat().st_ino == before) == kept
    assert contents(folder) == tiny | ({"dew/notes.txt": b""} if kept else {})


def test_whoever_draws_it_at_the_same_time_gets_the_same_sample(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        drawn = pool.map(lambda _: draw_sample(tmp_path / "sample", **TINY).stat().st_ino, range(3))
    assert len(set(drawn)) == 1


def test_never_touches_what_is_no_sample(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="holds something else than a drawn sample"):
        draw_sample(tmp_path, **TINY)
    with pytest.raises(NotADirectoryError, match=r"photo\.jpg"):
        draw_sample(tmp_path / "photo.jpg", **TINY)
    assert contents(tmp_path) == {"photo.jpg": b"precious"}


def held_out_accuracy(features: np.ndarray) -> float:
    """Accuracy of a linear model of features (528, D) on each fourth photo."""
    features = (features - features.mean(0)) / features.std(0)
    labels, test = np.repeat(np.eye(11), 48, axis=0), np.arange(528) % 4 == 0
    weight = np.linalg.pinv(features[~test], rcond=0.1) @ labels[~test]
    return np.mean((features[test] @ weight).argmax(1) == labels[test].argmax(1))


def test_shapes_identify_the_class_and_the_mean_colour_does_not():
    photos = [draw_photo(name, number, size=48) for name in CLASSES for number in range(48)]
    pixels = np.array([np.asarray(photo) for photo in photos]) / 255
    assert held_out_accuracy((pixels.mean((1, 2))[..., None] ** [0.5, 1, 2]).reshape(528, 9)) < 0.6
    spectrum = np.log(np.abs(np.fft.rfft2(pixels.mean(3))) + 0.1)[..., 1:]
    assert held_out_accuracy(spectrum.reshape(528, 12, 4, 6, 4).mean((2, 4)).reshape(528, 72)) > 0.6
    assert len(np.unique(group_duplicates(np.stack([signature(p) for p in photos])))) == 528
