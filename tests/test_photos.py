"""Which files of a folder are photos, and what each shows or why it cannot be read."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config import UserError
from data.photos import UnreadablePhoto, decode_rgb, find_photos, open_rgb, read_photo
from tests.odd_photos import readable, unreadable
from tests.photo_folders import CLASSES, ROOT, encoded, make_photos, python, training

ORIGINALS = ROOT.parent / "shared" / "originals"
READABLE, UNREADABLE = readable(), unreadable()

# pytest puts its own warning filters in the place of those that data.photos sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@given(
    st.dictionaries(
        st.sampled_from(["rain", "rain 2", "Snow", "été", "a-b", "test"]),
        st.sets(st.sampled_from(["1", "2", "sub/3", "sub-4", "sub/d.jpg/5", "é\n"]), min_size=1),
        min_size=2,
    )
)
@settings(max_examples=25)
def test_listing_holds_exactly_what_is_there_in_sorted_order(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("photos")
    expected = {f"{name}/{photo}.PnG" for name, photos in names.items() for photo in photos}
    photos = find_photos(make(root, *expected), root / "unused")
    assert photos.classes == tuple(sorted(names))
    assert photos.paths == tuple(sorted(expected))
    assert [photos.classes[n] for n in photos.labels] == [p.split("/")[0] for p in photos.paths]
    assert photos.labels.dtype == np.int64


def test_wrappers_are_descended_through_and_what_is_no_photo_is_skipped(tmp_path):
    make(tmp_path / "a" / "b", "rain/1.jpg", "snow/1.jpg", "snow/2.heic", "snow/3.NEF")
    make(tmp_path / "a" / "b" / "snow", ".hidden.jpg", ".git/2.jpg", "labels.csv", "@eaDir/x.jpg")
    make(tmp_path, "a/README.txt", "a/.x/1.jpg", "__MACOSX/a/1.jpg", "a/b/1.png", "#recycle/1.jpg")
    photos = find_photos(tmp_path, tmp_path)
    assert photos.root == tmp_path / "a" / "b"
    assert photos.paths == ("rain/1.jpg", "snow/1.jpg", "snow/2.heic", "snow/3.NEF")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1.jpg", "2.jpg"], "no class folders .* rain/1.jpg"),
        (["data/rain/1.jpg"], "only one class, 'rain'"),
        (["rain/1.jpg", "snow/notes.txt"], "no photo .* class folder .*snow"),
        (["all/Train/rain/1.jpg", "all/val/rain/2.jpg"], "divided into Train, val, not"),
        (["training_set/a/1.jpg", "test-data/a/2.jpg", "dev2/a/3.jpg"], "divided into"),
    ],
)
def test_folders_without_classes_are_errors(tmp_path, names, said):
    with pytest.raises(UserError, match=said):
        find_photos(make(tmp_path, *names), tmp_path)


@pytest.mark.parametrize("name", ["missing", "nul\0byte", "x" * 5000, "pipe", "rain/1.jpg/x"])
def test_a_path_that_is_no_folder_is_an_error(tmp_path, name):
    os.mkfifo(make(tmp_path, "rain/1.jpg") / "pipe")
    with pytest.raises(UserError, match="does not exist, or is neither"):
        find_photos(tmp_path / name, tmp_path)


def test_links_and_what_is_no_file(tmp_path):
    """Linked classes and photos are followed; a photo's name that is no file is reported by it."""
    make(tmp_path / "store", "one/1.jpg", "2.jpg")
    snow = make(tmp_path / "photos", "snow/1.jpg") / "snow"
    (snow.parent / "rain").symlink_to(tmp_path / "store" / "one")
    (snow / "2.jpg").symlink_to("../../store/2.jpg")
    (snow / "zero.jpg").symlink_to("/dev/zero")
    (snow / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(snow / "pipe.jpg")
    photos = find_photos(snow.parent, tmp_path)
    names = [f"snow/{name}.jpg" for name in ("1", "2", "gone", "pipe", "zero")]
    assert photos.paths == ("rain/1.jpg", *names)
    for name, said in zip(names[2:], ("No such file", "not a reg", "not a reg"), strict=True):
        with pytest.raises(UnreadablePhoto, match=said):
            read_photo(snow.parent / name)
    (snow / "others").symlink_to("../rain")
    with pytest.raises(UserError, match="others' is a link to a folder: only class folders"):
        find_photos(snow.parent, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    make(tmp_path, "rain/1.jpg", "snow/1.jpg", "snow/deep/2.jpg")
    (tmp_path / "snow" / "deep").chmod(0)
    with pytest.raises(UserError, match=r"cannot read folder .*deep': Permission denied"):
        find_photos(tmp_path, tmp_path)


@pytest.mark.parametrize("name", READABLE, ids=ascii)
def test_a_photo_shows_what_it_shows(name):
    data, corners = READABLE[name]
    image = decode_rgb(data, Path(name).suffix, 10_000)
    assert image.mode == "RGB"
    pixels = np.asarray(image).reshape(2, image.height // 2, 2, image.width // 2, 3)
    error = np.abs(pixels - corners[:, None, :, None].astype(float))
    assert error.max() <= 1.01 if name.endswith((".png", ".tif", ".bmp")) else error.mean() < 6


@pytest.mark.parametrize("name", UNREADABLE, ids=ascii)
def test_what_cannot_be_decoded_has_a_short_reason(name):
    data, said = UNREADABLE[name]
    with pytest.raises(UnreadablePhoto, match=said) as error:
        decode_rgb(data, Path(name).suffix, 10_000)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 160


def test_errors_of_the_machine_are_not_the_photos():
    """A photo on a disk that fails for a moment must not be remembered as unreadable."""
    with pytest.raises(OSError, match="Input/output error"):
        open_rgb(Path("/proc/self/mem"), 8)  # as nothing lies at its beginning


def test_too_little_memory_to_turn_a_photo_is_not_a_broken_exif_block(monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fails)
    with pytest.raises(MemoryError):
        decode_rgb(encoded(Image.new("RGB", (8, 8))), ".jpg", 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_too_little_memory_is_not_the_photos(tmp_path, form):
    """In a process of its own that may not have as much as this photo takes."""
    large = encoded(Image.new("RGB", (6000, 6000)), form, progressive=True, method=0)
    (tmp_path / "large.png").write_bytes(large)
    code = (
        "import resource, sys; from pathlib import Path; from data.photos import open_rgb\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)\n"
        "try:\n    open_rgb(Path(sys.argv[1]), 8)\n"
        "except MemoryError:\n    print('of the machine')\n"
    )
    done = python("-c", code, tmp_path / "large.png", timeout=60)
    assert (done.stdout, done.stderr) == ("of the machine\n", "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_jpeg_that_is_cut_off_anywhere_is_truncated(options):
    """Zeros behind are what a broken download leaves; without the marker Pillow shows them grey."""
    y, x = np.mgrid[0:1:100j, 0:1:150j]
    smooth = Image.fromarray((np.stack([x, y, 1 - x * y], axis=2) * 255).astype(np.uint8))
    jpeg = encoded(smooth, exif=b"Exif\0\0" + encoded(smooth.resize((32, 24))), **options)
    # At the smallest of the scales 1/1, 1/2, 1/4 and 1/8 that keeps the shorter side.
    assert decode_rgb(jpeg + bytes(5000), ".jpg", 25).size == (38, 25)
    assert decode_rgb(jpeg, ".jpg", 26).size == (75, 50)
    start = jpeg.rindex(b"\xff\xda") + 16
    for cut in {*range(start, len(jpeg), 97), *range(len(jpeg) - 8, len(jpeg))}:
        for behind in (b"", bytes(5000)):
            with pytest.raises(UnreadablePhoto, match="truncated"):
                decode_rgb(jpeg[:cut] + behind, ".jpg", 10_000)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="needs the original photos")
def test_original_photos_decode_like_pillow():
    photos = find_photos(ORIGINALS, ORIGINALS)
    assert (len(photos), len(photos.classes)) == (167, 11)
    for path in photos.paths:
        with Image.open(photos.root / path) as image:
            rgba = image.convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        assert open_rgb(photos.root / path, 10_000).tobytes() == expected.convert("RGB").tobytes()


def test_training_writes_down_every_file_that_is_left_out(tmp_path):
    """In a terminal that knows ASCII alone, too. Every other file is decoded."""
    folder = make_photos(tmp_path / "weather", per_class=24)
    names = (os.fsdecode(b"f\xf6g"), "ha\nil | x", "rain", "雪")
    for plain, odd in zip(CLASSES, names, strict=True):
        (folder / plain).rename(folder / odd)
    paths = {name: f"{names[n % 4]}/{name}" for n, name in enumerate(READABLE | UNREADABLE)}
    for name, (data, _) in (READABLE | UNREADABLE).items():
        (folder / paths[name]).write_bytes(data)
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    words = training(folder, tmp_path, "--models", "resnet18")
    done = python("train.py", *words, env=ascii_only, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f": {4 * 24 + len(READABLE)} in 4 classes" in done.stdout
    assert f"{len(UNREADABLE)} files cannot be read" in done.stdout
    (listed,) = tmp_path.glob("output/results/*/unreadable.csv")
    text = listed.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    assert [path for path, _ in rows] == ["path", *sorted(paths[name] for name in UNREADABLE)]
