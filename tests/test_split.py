"""Duplicates are found and stay together, the split is stratified, the manifest is exact."""

import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from config import UserError
from data.batches import cached_side
from data.cache import decode_photos
from data.duplicates import group_duplicates, signature
from data.photos import Photos, find_photos, open_rgb
from data.split import (
    Split,
    make_split,
    read_manifest,
    split_photos,
)

WEATHER = Path(__file__).parents[2] / "shared" / "weather"


@cache
def picture(seed: int, contrast: float = 55, width: int = 288, height: int = 192) -> Image.Image:
    """Coloured clouds with detail at all scales, as photos have, around a smooth gradient."""
    draw = np.random.default_rng(seed)
    down, across = np.meshgrid(
        np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij", sparse=True
    )
    frequency = np.maximum(np.hypot(down, across), 2 / width)
    waves = draw.normal(size=(3, height, frequency.shape[1], 2)) @ [1, 1j]
    waves[1:] = 0.8 * waves[0] + 0.6 * waves[1:]
    clouds = np.fft.irfft2(waves / frequency**1.5, s=(height, width))
    clouds *= contrast / clouds.std((1, 2), keepdims=True)
    fog = np.linspace(170, 100, height)[:, None]
    return Image.fromarray((fog + clouds).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    """The image as it comes back from a file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, factor: float, more_width: int = 0) -> Image.Image:
    width, height = (round(side * factor) for side in image.size)
    return image.resize((width + more_width, height), Image.Resampling.BICUBIC)


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The image without these shares of its width and height."""
    width, height = image.size
    return image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))


def watermarked(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((120, 160), "weather.example", fill="white", font_size=18)
    return image


def groups_of(images: list[Image.Image]) -> list[int]:
    return group_duplicates(np.stack([signature(image) for image in images])).tolist()


COPIES = {
    "same": lambda image: image,
    "jpeg 20": lambda image: saved(image, "JPEG", quality=20),
    "jpeg 95": lambda image: saved(image, "JPEG", quality=95),
    "webp": lambda image: saved(image, "WEBP", quality=60),
    "quarter": lambda image: saved(scaled(image, 0.25, more_width=1), "JPEG", quality=40),
    "double": lambda image: saved(scaled(image, 2, more_width=-2), "PNG", compress_level=1),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "darker": lambda image: image.point(lambda level: level**1.3 / 255**0.3),
    "watermark": watermarked,
    "strip cut off": lambda image: cut(image, 0, 0, 0, 0.1),
    "cropped": lambda image: saved(cut(image, 0.06, 0.1, 0.04, 0.02), "JPEG", quality=70),
}


@pytest.mark.parametrize("contrast", [55, 12], ids=["clear", "foggy"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_copies_are_found_and_different_pictures_are_not_merged(copy, contrast):
    originals = [picture(seed, contrast) for seed in range(12)]
    assert groups_of(originals + [copy(image) for image in originals]) == [*range(12), *range(12)]


def test_photos_of_one_gradient_are_not_merged():
    """Fog gives different photos the same brightness, top to bottom."""
    images = [picture(seed, contrast=5) for seed in range(40)]
    assert groups_of(images) == list(range(40))
    again = [saved(image, "JPEG", quality=75) for image in images]
    assert groups_of(images + again) == [*range(40), *range(40)]


def test_jpeg_noise_does_not_hide_detail_of_one_grey_level():
    images = [picture(seed, contrast=1) for seed in range(12)]
    again = [saved(image, "JPEG", quality=75) for image in images]
    assert groups_of(images + again) == [*range(12), *range(12)]


@pytest.mark.parametrize("cut_first", [False, True])
def test_fine_detail_is_found_again_where_a_cut_strip_moved_it_by_its_own_size(cut_first):
    blobs = [np.random.default_rng(seed).normal(128, 30, (24, 24)) for seed in range(12)]
    images = [
        Image.fromarray(blob.clip(0, 255).astype(np.uint8)).resize((288, 192)).convert("RGB")
        for blob in blobs
    ]
    without_strip = [cut(image, 0, 0, 0, 0.12) for image in images]
    both = without_strip + images if cut_first else images + without_strip
    assert groups_of(both) == [*range(12), *range(12)]


def test_frames_without_a_picture_are_one_if_of_one_level():
    black, grey, white = (Image.new("RGB", (300, 200), (level,) * 3) for level in (0, 90, 255))
    nearly = Image.new("RGB", (500, 281), (91, 90, 91))
    copies = [saved(image, "JPEG", quality=30) for image in (black, grey, white)]
    assert groups_of([black, grey, white, nearly, *copies]) == [0, 1, 2, 1, 0, 1, 2]


def test_few_and_odd_photos():
    assert group_duplicates(np.zeros((0, 1024), np.uint8)).tolist() == []
    assert groups_of([picture(0)]) == [0]
    assert groups_of([Image.new("RGB", (1, 1)), picture(0, width=2000, height=2)]) == [0, 1]
    assert groups_of([picture(1), picture(0), picture(1), picture(1)]) == [0, 1, 0, 0]


@given(st.permutations(range(9)))
@settings(max_examples=20)
def test_groups_do_not_depend_on_the_order(order):
    drawn = np.stack([signature(picture(seed // 3, width=96, height=64)) for seed in range(9)])
    drawn[1::3, 5:9] += 1
    groups = group_duplicates(drawn[order])
    assert groups.tolist() == [
        min(other for other in range(9) if order[other] // 3 == order[one] // 3) for one in range(9)
    ]


def test_copies_are_found_among_many_photos(monkeypatch):
    """As with more photos than are compared each with each; half of them are foggy."""
    monkeypatch.setattr("data.duplicates.EXHAUSTIVE", 100)
    monkeypatch.setattr("data.duplicates.LEAF", 60)
    draw = np.random.default_rng(0)
    pictures = np.kron(draw.integers(0, 200, (600, 16, 16)), np.ones((1, 2, 2), int))
    pictures = pictures // np.repeat([1, 12], 300)[:, None, None] + np.arange(32)[:, None]
    copied = draw.choice(600, 100, replace=False)
    copies = pictures[copied] + draw.integers(0, 2, (100, 32, 32))
    groups = group_duplicates(np.concatenate([pictures, copies]).reshape(-1, 1024).astype(np.uint8))
    assert groups.dtype == np.int64
    assert groups.tolist() == [*range(600), *copied.tolist()]


def counts_of(labels, part, classes):
    return np.stack([np.bincount(labels[part == number], minlength=classes) for number in range(3)])


@st.composite
def grouped_classes(draw, least=4):
    """Labels and groups of 2 to 5 classes, each with `least` groups or more of 1 to 9 photos."""
    sizes = draw(st.lists(st.lists(st.integers(1, 9), min_size=least), min_size=2, max_size=5))
    labels = np.repeat(np.arange(len(sizes)), [sum(own) for own in sizes])
    groups = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))
    return labels, groups, tuple("abcde"[: len(sizes)])


@given(grouped_classes(), st.integers(0, 2**32))
def test_every_class_is_within_one_group_of_its_fractions(classes_in_groups, seed):
    labels, groups, classes = classes_in_groups
    part = make_split(labels, groups, classes, seed)
    assert part.dtype == np.int8
    assert all(len(set(part[groups == group])) == 1 for group in np.unique(groups))
    counts = counts_of(labels, part, len(classes))
    assert counts.min() >= 1
    for label in range(len(classes)):
        largest = np.bincount(groups[labels == label]).max()
        wanted = np.array([0.7, 0.2, 0.1]) * (labels == label).sum()
        assert np.abs(counts[:, label] - wanted).max() <= largest


@given(grouped_classes(least=6), st.integers(0, 2**32), st.data())
def test_groups_with_two_labels_stay_whole_and_the_fractions_hold(classes_in_groups, seed, data):
    """Some photos' labels are exchanged, as in folders where one photo lies in two classes."""
    labels, groups, classes = classes_in_groups
    relabelled = data.draw(st.lists(st.integers(0, len(labels) - 1), max_size=len(labels) // 6))
    labels = labels.copy()
    for photo in relabelled:
        labels[photo] = data.draw(st.integers(0, len(classes) - 1))
    own = [len(np.unique(groups[labels == label])) for label in range(len(classes))]
    assume(min(own) >= 6)
    part = make_split(labels, groups, classes, seed)
    assert all(len(set(part[groups == group])) == 1 for group in np.unique(groups))
    counts = counts_of(labels, part, len(classes))
    assert counts.min() >= 1
    sizes = np.bincount(groups)
    for label in range(len(classes)):
        wanted = np.array([0.7, 0.2, 0.1]) * (labels == label).sum()
        assert np.abs(counts[:, label] - wanted).max() <= sizes[groups[labels == label]].max()


def test_single_photos_are_split_to_within_one():
    labels = np.repeat([0, 1, 2], [1000, 333, 41])
    counts = counts_of(labels, make_split(labels, np.arange(1374), "abc", 0), 3)
    assert np.abs(counts - np.outer([0.7, 0.2, 0.1], [1000, 333, 41])).max() < 1


def test_three_photos_are_enough_and_two_are_not():
    labels = np.repeat([0, 1], [3, 30])
    groups = np.arange(33)
    assert counts_of(labels, make_split(labels, groups, ("hail", "rain"), 0), 2).min() == 1
    groups[1] = 0
    with pytest.raises(UserError, match=r"'hail' has too few photos: 2 .*3 with.*; 3 are needed"):
        make_split(labels, groups, ("hail", "rain"), 0)


def test_a_class_that_lies_wholly_in_the_groups_of_another():
    """Three classes share four photos in pairs: no part can hold all of them unless dealt well."""
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5])
    labels = np.array([0, 1, 1, 2, 2, 0, 0, 1, 2])
    for seed in range(20):
        assert counts_of(labels, make_split(labels, groups, "abc", seed), 3).min() >= 1
    groups, labels = np.repeat([0, 1, 2, 3], 3), np.tile([0, 1, 2], 4)
    assert counts_of(labels, make_split(labels, groups, "abc", 0), 3).min() >= 1


def test_several_draws_are_tried_where_one_leaves_a_class_out_of_a_part():
    labels = np.array([1, 2, 0, 2, 2, 0, 1, 1, 0, 0, 1])
    groups = np.array([0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5])
    for seed in range(10):
        assert counts_of(labels, make_split(labels, groups, "abc", seed), 3).min() == 1


def test_classes_that_share_their_photos_so_that_no_split_exists():
    """The Petersen graph: each class has three photos, each the duplicate of another class's."""
    edges = [(n, (n + 1) % 5) for n in range(5)] + [(n, n + 5) for n in range(5)]
    edges += [(5 + n, 5 + (n + 2) % 5) for n in range(5)]
    labels, groups = np.array(edges).reshape(-1), np.repeat(np.arange(15), 2)
    with pytest.raises(UserError, match=r"class '[a-j]' has too few photos of its own"):
        make_split(labels, groups, "abcdefghij", 0)


def test_the_split_is_drawn_by_the_seed_and_the_same_everywhere():
    labels, groups = np.repeat([0, 1], [12, 8]), np.arange(20)
    first = make_split(labels, groups, "ab", 0)
    assert "".join(map(str, first)) == "01000001120000210010"
    assert np.array_equal(first, make_split(labels, groups + 100, "ab", 0))
    assert not np.array_equal(first, make_split(labels, groups, "ab", 1))


def folds_of(labels, groups, classes, seed, folds):
    """(folds, N) the part of each photo in each fold."""
    tested = make_split(labels, groups, classes, seed, (1 / folds,) * folds)
    names = tuple(map(str, range(folds)))
    whole = Split(tuple(map(str, range(len(labels)))), ("a",) * len(labels), tested, names)
    return np.stack([whole.fold(number).part for number in range(folds)])


@given(grouped_classes(least=10), st.integers(3, 10), st.integers(0, 2**32))
def test_over_all_folds_each_photo_is_a_test_photo_once(classes_in_groups, folds, seed):
    labels, groups, classes = classes_in_groups
    parts = folds_of(labels, groups, classes, seed, folds)
    assert ((parts == 2).sum(0) == 1).all()
    assert ((parts == 1).sum(0) == max(1, round(folds / 5))).all()
    for part in parts:
        assert all(len(set(part[groups == group])) == 1 for group in np.unique(groups))
        assert counts_of(labels, part, len(classes)).min() >= 1
        for label in range(len(classes)):
            largest = np.bincount(groups[labels == label]).max()
            wanted = (labels == label).sum() / folds
            assert abs((labels[part == 2] == label).sum() - wanted) <= largest


def test_ten_folds_are_70_20_10_and_the_next_two_are_validated_on():
    labels, groups = np.repeat([0, 1], [300, 100]), np.arange(400)
    parts = folds_of(labels, groups, "ab", 0, 10)
    for fold, part in enumerate(parts):
        assert counts_of(labels, part, 2).tolist() == [[210, 70], [60, 20], [30, 10]]
        following = (parts[(fold + 1) % 10] == 2) | (parts[(fold + 2) % 10] == 2)
        assert np.array_equal(part == 1, following)
    with pytest.raises(UserError, match=r"'hail' .* 9 different ones .* 10 are needed, .*fewer"):
        folds_of(np.repeat([0, 1], [9, 40]), np.arange(49), ("hail", "rain"), 0, 10)


def test_a_division_into_folds_has_one_manifest_for_all_of_them(tmp_path):
    photos, signatures = some_photos()
    manifest = tmp_path / "split.csv"
    division = split_photos(photos, signatures, manifest, seed=0, folds=5)
    assert division.names == ("0", "1", "2", "3", "4")
    again = split_photos(photos, signatures, manifest, seed=0, folds=5)
    assert again.hash == division.hash
    folds = [division.fold(number) for number in range(5)]
    assert len({fold.hash for fold in folds} | {division.hash}) == 6
    tested = np.concatenate([fold.indices("test") for fold in folds])
    assert sorted(tested.tolist()) == list(range(40))
    # What somebody edits changes all folds, and what they are a division of.
    manifest.write_text(manifest.read_text().replace(",4\n", ",3\n", 1))
    edited = split_photos(photos, signatures, manifest, seed=0, folds=5)
    assert edited.hash != division.hash
    assert sum(len(edited.fold(number).indices("test")) for number in range(5)) == 40


def test_the_manifest_is_these_bytes(tmp_path):
    names = ("dew/1.jpg", 'dew/a "b", c.jpg', "rain/\udcff\n.png")
    split = Split(names, ("dew", "dew", "rain"), np.array([0, 2, 1], np.int8))
    split.write_manifest(tmp_path / "new" / "split.csv")
    expected = (
        b'path,class,split\ndew/1.jpg,dew,train\n"dew/a ""b"", c.jpg",dew,test\n'
        b'"rain/\xff\n.png",rain,val\n'
    )
    assert (tmp_path / "new" / "split.csv").read_bytes() == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["split.csv"]
    assert split.hash == "9648cdd576b8ba8d"
    assert split.indices("test").tolist() == [1]
    with pytest.raises(ValueError, match="tuple"):
        split.indices("valid")


file_names = st.binary(min_size=1).filter(lambda name: b"\0" not in name)
file_names = st.one_of(file_names, st.text("a,\"'\r\n\t;é\u2028\x85 ", min_size=1).map(str.encode))


@given(st.dictionaries(file_names, st.tuples(file_names, st.integers(0, 2)), min_size=1))
def test_any_file_names_come_back_from_the_manifest(tmp_path_factory, drawn):
    photos = {os.fsdecode(path): (os.fsdecode(name), part) for path, (name, part) in drawn.items()}
    paths = tuple(sorted(photos))
    part = np.array([photos[path][1] for path in paths], np.int8)
    split = Split(paths, tuple(photos[path][0] for path in paths), part)
    manifest = tmp_path_factory.mktemp("manifest") / "split.csv"
    split.write_manifest(manifest)
    back = read_manifest(manifest)
    assert (back.paths, back.class_names) == (split.paths, split.class_names)
    assert back.part.tolist() == split.part.tolist()
    assert back.hash == split.hash


def test_a_manifest_saved_by_a_spreadsheet_is_the_same_split(tmp_path):
    plain, edited = tmp_path / "a.csv", tmp_path / "b.csv"
    plain.write_bytes(b"path,class,split\na/1.jpg,a,val\nb/1.jpg,b,test\n")
    edited.write_bytes(b'\xef\xbb\xbfpath,class,split\r\nb/1.jpg,b,test\r\n"a/1.jpg","a","val"\r\n')
    assert read_manifest(plain).hash == read_manifest(edited).hash


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 0, "columns"),
        ("path,split,class\n", 1, "columns"),
        ("path,class,split\na/1.jpg,a,train\na/2.jpg,a,validation\n", 3, "'validation'"),
        ("path,class,split\na/1.jpg,a\n", 2, ""),
        ("path,class,split\na/1.jpg,a,train\na/1.jpg,a,test\n", 3, "twice"),
        ('path,class,split\n"a/1.jpg,a,train\n', 2, ""),
    ],
)
def test_a_malformed_manifest_is_refused_with_its_line(tmp_path, text, line, what):
    manifest = tmp_path / "split.csv"
    manifest.write_text(text)
    with pytest.raises(UserError, match=rf"split\.csv', line {line}: .*{what}") as error:
        read_manifest(manifest)
    assert len(str(error.value).splitlines()) <= 2
    with pytest.raises(UserError, match="cannot read"):
        read_manifest(tmp_path)


def some_photos(per_class=20):
    """Photos of two classes and their signatures: 0, 1 and a photo of the other class are one."""
    paths = [f"{name}/{number:02}.jpg" for name in ("fog", "rain") for number in range(per_class)]
    seeds = [0, 0, *range(2, per_class), 0, *range(100, 99 + per_class)]
    signatures = np.stack([signature(picture(seed, width=96, height=64)) for seed in seeds])
    labels = np.repeat([0, 1], per_class)
    return Photos(Path("photos"), ("fog", "rain"), tuple(paths), labels), signatures


def test_photos_are_split_and_the_split_is_used_again(tmp_path):
    photos, signatures = some_photos()
    manifest = tmp_path / "split.csv"
    split = split_photos(photos, signatures, manifest, seed=0)
    assert split.conflicts == (
        (("fog/00.jpg", "fog"), ("fog/01.jpg", "fog"), ("rain/00.jpg", "rain")),
    )
    assert len(set(split.part[[0, 1, 20]])) == 1
    assert "3 photos show 1 picture" in split.notes[0]
    assert "'fog/00.jpg' = 'fog/01.jpg' = 'rain/00.jpg'" in split.notes[1]
    again = split_photos(photos, signatures, manifest, seed=1)
    assert (again.hash, again.notes, again.conflicts) == (split.hash, split.notes, split.conflicts)
    elsewhere = split_photos(photos, signatures, tmp_path / "other.csv", seed=1)
    assert elsewhere.hash != split.hash
    assert manifest.read_bytes() != (tmp_path / "other.csv").read_bytes()


def test_a_split_of_other_photos_is_replaced_with_a_note(tmp_path):
    photos, signatures = some_photos()
    manifest = tmp_path / "split.csv"
    old = split_photos(photos, signatures, manifest, seed=0)
    kept = np.arange(40) != 7
    split = split_photos(photos.keep(kept), signatures[kept], manifest, seed=0)
    assert [note for note in split.notes if "made anew" in note]
    assert split.hash != old.hash
    assert read_manifest(manifest).paths == tuple(np.array(photos.paths)[kept])


def test_an_edited_split_is_used_but_divided_duplicates_are_told(tmp_path):
    photos, signatures = some_photos()
    manifest = tmp_path / "split.csv"
    split = split_photos(photos, signatures, manifest, seed=0)
    part = split.part.copy()
    part[1] = (part[0] + 1) % 3
    Split(split.paths, split.class_names, part).write_manifest(manifest)
    edited = split_photos(photos, signatures, manifest, seed=0)
    assert edited.part.tolist() == part.tolist()
    assert "divides the duplicates of 1 picture" in edited.notes[-1]
    part[part == 2] = 0
    Split(split.paths, split.class_names, part).write_manifest(manifest)
    with pytest.raises(UserError, match="no photo of class 'fog' in test"):
        split_photos(photos, signatures, manifest, seed=0)


def test_photos_that_changed_under_their_names_are_compared_again(tmp_path):
    photos, signatures = some_photos()
    manifest = tmp_path / "split.csv"
    split = split_photos(photos, signatures, manifest, seed=0)
    one, other = split.indices("train")[-1], split.indices("test")[-1]
    signatures[one] = signatures[other]
    assert "divides the duplicates" in split_photos(photos, signatures, manifest, seed=0).notes[-1]


def test_a_split_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    photos, signatures = some_photos()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        split_photos(photos, signatures, tmp_path / "file" / "split.csv", seed=0)
    (tmp_path / "split.csv").mkdir()
    with pytest.raises(UserError, match=r"split\.csv"):
        Split((), (), np.zeros(0, np.int8)).write_manifest(tmp_path / "split.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "split.csv"]


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 64) ±1: signs of the lowest 8 × 8 DCT coefficients about their median (pHash)."""
    n = thumbnails.shape[1]
    waves = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(n) + 1) / (2 * n))
    low = (waves @ thumbnails @ waves.T).reshape(-1, 64)
    return np.where(low > np.median(low, axis=1, keepdims=True), 1.0, -1.0).astype(np.float32)


@pytest.mark.skipif(not WEATHER.is_dir(), reason="needs the weather photos")
def test_real_photos_keep_duplicates_together_by_another_detector(tmp_path):
    photos = find_photos(WEATHER, tmp_path)
    images = [open_rgb(photos.root / path, 64) for path in photos.paths]
    thumbnails = np.stack(
        [np.asarray(image.convert("L").resize((32, 32)), dtype=np.float32) for image in images]
    )
    signatures = np.stack(list(map(signature, images)))
    split = split_photos(photos, signatures, tmp_path / "split.csv", 0)

    hashes = perceptual_hashes(thumbnails)
    rows = thumbnails.reshape(len(thumbnails), -1)
    rows = rows - rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = (hashes @ hashes.T >= 64 - 2 * 4) | (rows @ rows.T > 0.9965)
    one, other = np.nonzero(np.triu(near, 1))
    assert len(one) > 100

    sizes = np.bincount(photos.labels)
    groups = group_duplicates(signatures)
    for part in (
        split.part,
        *folds_of(photos.labels, groups, photos.classes, 0, 10),
    ):
        assert part[one].tolist() == part[other].tolist()
        off = counts_of(photos.labels, part, len(sizes)) - np.outer([0.7, 0.2, 0.1], sizes)
        assert np.abs(off).max() <= 3


@pytest.mark.skipif(not WEATHER.is_dir(), reason="needs the weather photos")
def test_the_split_of_the_weather_photos_is_that_of_all_runs_so_far(tmp_path):
    photos = find_photos(WEATHER, tmp_path)
    decoded = decode_photos(photos, cached_side(64), tmp_path, workers=2, strict=True)
    split = split_photos(decoded.photos, decoded.signatures, tmp_path / "split.csv", 0)
    assert split.hash == "6c579cc059eecde2"
