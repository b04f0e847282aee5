"""Duplicates are found and stay together, the split is stratified, the manifest is exact."""

import io
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from config import UserError
from data.cache import decode_photos
from data.duplicates import group_duplicates, signature
from data.listing import Photos, find_photos
from data.split import Split, describe_duplicates, list_duplicates, make_split, split_photos
from tests.photo_folders import encoded

WEATHER = Path(__file__).parents[2] / "shared" / "weather"
FRACTIONS = [0.7, 0.2, 0.1]
PATHS = tuple(f"{name}/{number:02}.jpg" for name in ("fog", "rain") for number in range(20))
FORTY = Photos(Path("photos"), ("fog", "rain"), PATHS, np.repeat([0, 1], 20))


@cache
def picture(seed: int, contrast: float = 55, width: int = 288, height: int = 192) -> Image.Image:
    """Coloured clouds with detail at all scales, as photos have, around a smooth gradient."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    waves = rng.normal(size=(3, *frequency.shape, 2)) @ [1, 1j]
    waves[1:] = 0.8 * waves[0] + 0.6 * waves[1:]
    clouds = np.fft.irfft2(waves / np.maximum(frequency, 2 / width) ** 1.5, s=(height, width))
    clouds *= contrast / clouds.std((1, 2), keepdims=True)
    levels = np.linspace(170, 100, height)[:, None] + clouds
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def saved(image: Image.Image, quality: int) -> Image.Image:
    """The image as it comes back from a JPEG."""
    return Image.open(io.BytesIO(encoded(image, quality=quality)))


def groups_of(images: list[Image.Image]) -> list[int]:
    return group_duplicates(np.stack([signature(image) for image in images])).tolist()


COPIES: dict[str, Any] = {
    "jpeg 75": lambda image: saved(image, quality=75),
    "quarter": lambda image: saved(image.resize((73, 48)), quality=40),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "darker": lambda image: image.point(lambda level: level**1.3 / 255**0.3),
    "cropped": lambda image: saved(image.crop((17, 19, 276, 188)), quality=70),
}
COPIES |= {way.name: partial(Image.Image.transpose, method=way) for way in Image.Transpose}
PAIRS = [(contrast, name) for contrast in (55, 12) for name in COPIES]


# Fog gives different photos one gradient; JPEG noise must not hide a detail of one grey level.
@pytest.mark.parametrize(("contrast", "copy"), [*PAIRS, (5, "jpeg 75"), (1, "jpeg 75")])
def test_copies_are_found_and_different_pictures_are_not_merged(contrast, copy, monkeypatch):
    monkeypatch.setattr("data.duplicates.CHUNK", 7)
    originals = [picture(seed, contrast) for seed in range(12)]
    copies = [COPIES[copy](image) for image in originals]
    assert groups_of(originals + copies) == [*range(12), *range(12)]


@pytest.mark.parametrize("cut_first", [False, True])
def test_fine_detail_is_found_again_where_a_cut_strip_moved_it_by_its_own_size(cut_first):
    blobs = np.random.default_rng(0).normal(128, 30, (12, 24, 24)).clip(0, 255).astype(np.uint8)
    images = [Image.fromarray(blob).resize((288, 192)).convert("RGB") for blob in blobs]
    without_strip = [image.crop((0, 0, 288, 169)) for image in images]
    both = without_strip + images if cut_first else images + without_strip
    assert groups_of(both) == [*range(12), *range(12)]


def test_few_and_odd_photos():
    assert group_duplicates(np.zeros((0, 1024), np.uint8)).tolist() == []
    black, white = (Image.new("RGB", (300, 200), name) for name in ("black", "white"))
    odd = [Image.new("RGB", (1, 1)), picture(0, width=2000, height=2), white, black, white]
    assert groups_of(odd) == [0, 1, 2, 0, 2]


@given(st.permutations([number // 3 for number in range(9)]))
@settings(max_examples=20)
def test_groups_do_not_depend_on_the_order(order):
    drawn = np.stack([signature(picture(seed)) for seed in order])
    drawn[::2, 5:9] += 1
    assert group_duplicates(drawn).tolist() == [order.index(seed) for seed in order]


def check_split(labels, groups, part, fractions=FRACTIONS):
    """No group is divided; parts have one of each class and its share, to within a group."""
    assert part.dtype == np.int8
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    assert np.array_equal(part, part[first][group])
    for label in np.unique(labels):
        counts = np.bincount(part[labels == label], minlength=len(fractions))
        off = np.abs(counts - np.multiply(fractions, counts.sum())).max()
        assert off <= np.bincount(group[labels == label]).max()
        assert counts.min() >= 1


@st.composite
def grouped_classes(draw, least=4):
    """Labels and groups of 2 to 5 classes, each with `least` groups or more of 1 to 9 photos."""
    sizes = draw(st.lists(st.lists(st.integers(1, 9), min_size=least), min_size=2, max_size=5))
    labels = np.repeat(np.arange(len(sizes)), [sum(own) for own in sizes])
    return labels, np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))


@given(grouped_classes(), st.integers(0, 2**32))
def test_groups_stay_whole_and_every_class_is_within_one_group_of_its_fractions(drawn, seed):
    labels, groups = drawn
    check_split(labels, groups, make_split(labels, groups, "abcde"[: labels.max() + 1], seed))


def test_classes_that_share_most_of_their_photos_are_dealt_until_each_is_in_each_part():
    groups, labels = [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5], [1, 2, 0, 2, 2, 0, 1, 1, 0, 0, 1]
    for seed in range(10):
        part = make_split(np.array(labels), np.array(groups), "abc", seed)
        assert len(set(zip(labels, part.tolist(), strict=True))) == 9


def test_what_no_split_exists_for_is_refused():
    labels, groups = np.repeat([0, 1], [3, 30]), np.arange(33)
    assert set(make_split(labels, groups, ("hail", "rain"), 0)[:3]) == {0, 1, 2}
    groups[1] = 0
    says = r"'hail' has too few photos: 2 .*3 with.*; 3 are needed .*; --duplicates exact or off"
    with pytest.raises(UserError, match=says):
        make_split(labels, groups, ("hail", "rain"), 0)
    with pytest.raises(UserError, match=r"'hail' .* 2 different .* 10 are needed .*fewer --folds"):
        make_split(labels, groups, ("hail", "rain"), 0, (0.1,) * 10)


def test_the_split_is_drawn_by_the_seed_and_the_same_everywhere():
    labels, groups = np.repeat([0, 1], [12, 8]), np.arange(20)
    first = make_split(labels, groups, "ab", 0)
    assert "".join(map(str, first)) == "01000001120000210010"
    assert np.array_equal(first, make_split(labels, groups + 100, "ab", 0))
    assert not np.array_equal(first, make_split(labels, groups, "ab", 1))


@given(grouped_classes(least=10), st.integers(3, 10), st.integers(0, 2**32))
def test_over_all_folds_each_photo_is_a_test_photo_once(classes_in_groups, folds, seed):
    labels, groups = classes_in_groups
    tested = make_split(labels, groups, "abcde"[: labels.max() + 1], seed, (1 / folds,) * folds)
    photos = Photos(Path("photos"), tuple("abcde"[: labels.max() + 1]), ("",) * len(labels), labels)
    whole = Split(photos, tested, tuple(map(str, range(folds))))
    parts = np.stack([whole.fold(number).part for number in range(folds)])
    assert ((parts == 2).sum(0) == 1).all()
    assert np.array_equal((parts == 2).argmax(0), tested)
    check_split(labels, groups, tested, [1 / folds] * folds)
    for fold, part in enumerate(parts):  # the next ones are validated on
        following = (tested - fold) % folds
        assert np.array_equal(part == 1, (following > 0) & (following <= max(1, round(folds / 5))))


def test_the_manifest_is_these_bytes():
    paths = ("dew/1.jpg", 'dew/a "b", c.jpg', "rain/\udcff\r.png")
    photos = Photos(Path("photos"), ("dew", "rain"), paths, np.array([0, 0, 1]))
    split = Split(photos, np.array([0, 2, 1]))
    assert split.manifest == (
        b'path,class,split\ndew/1.jpg,dew,train\n"dew/a ""b"", c.jpg",dew,test\n'
        b'"rain/\xff\r.png",rain,val\n'
    )
    assert split.hash == "711f09c434e1e7a2"
    assert split.indices("test").tolist() == [1]


def test_copies_are_reported_and_the_seed_is_passed_on():
    split = Split(FORTY, np.zeros(40, np.int8))
    assert describe_duplicates(split, np.arange(40)) == []
    assert list_duplicates(split, np.arange(40)) == []
    groups = np.array([0, 0, *range(2, 20), 0, *range(21, 40)])
    drawn = split_photos(FORTY, groups, 0)
    assert drawn.hash != split_photos(FORTY, groups, 1).hash
    how_many, two_labels = describe_duplicates(split, groups)
    assert "3 photos show 1 pictures; photos of one picture are kept in one part" in how_many
    same = "such as 'fog/00.jpg' = 'fog/01.jpg' = 'rain/00.jpg'"
    assert f"pictures that have conflicting labels: 1, {same}" in two_labels
    assert len(describe_duplicates(drawn.with_labels(0.5, 0), groups)) == 2
    across = split_photos(replace(FORTY, given=np.array(["train", "test"] * 20)), groups, 0)
    how_many, _, in_parts = describe_duplicates(across, groups)
    assert how_many == "NOTE     duplicates: 3 photos show 1 pictures"
    assert f"pictures that are in several parts of the given split: 1, {same}" in in_parts
    copies = np.array([0, 1, 2, 2, *range(4, 40)])  # in folds 2 and 3, which both train in fold 0
    own = split_photos(replace(FORTY, given=np.array([*"0123"] * 10)), copies, 0, 4).fold(0)
    assert "several parts of the given split: 1" in describe_duplicates(own, copies)[1]
    assert [line[1:] for line in list_duplicates(across, groups)] == [
        ("fog/00.jpg", "fog", across.names[across.part[0]]),
        ("fog/01.jpg", "fog", "test"),
        ("rain/00.jpg", "rain", across.names[across.part[20]]),
    ]


def test_label_subsets_are_nested_drawn_per_class_and_affect_training_only():
    whole = split_photos(FORTY, np.arange(40), 0)
    kept = [set(whole.with_labels(n, 5).indices("train")) for n in (1, 3, 0.5, 0.9)]
    assert [len(one) for one in kept] == [2, 6, 14, 26]
    assert kept[0] < kept[1] < kept[2] < kept[3] < set(whole.indices("train"))
    with pytest.raises(UserError, match="--labels-per-class 14 keeps all labels"):
        whole.with_labels(14, 5)
    few = whole.with_labels(3, 5)
    assert np.bincount(FORTY.labels[few.indices("train")]).tolist() == [3, 3]
    assert len(few.indices("unlabelled")) == 22
    assert all(np.array_equal(few.indices(p), whole.indices(p)) for p in ("val", "test"))
    assert few.hash != whole.hash == whole.with_labels(None, 5).hash
    assert set(whole.with_labels(1, 6).indices("train")) != kept[0]


@pytest.mark.skipif(not WEATHER.is_dir(), reason="needs the weather photos")
def test_the_weather_photos_have_this_split(tmp_path):
    decoded = decode_photos(find_photos(WEATHER, tmp_path), 32, tmp_path)
    photos, groups = decoded.photos, decoded.groups
    assert (np.bincount(groups) > 1).sum() == 229
    split = split_photos(photos, groups, 0)
    assert split.hash == "ef3b928428787feb"
    assert split_photos(photos, groups, 0, folds=10).hash == "92bb8bf80cdbff9b"
    check_split(photos.labels, groups, split.part)
