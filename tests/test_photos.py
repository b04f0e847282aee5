import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from config import UserError
from data.photos import Photos, UnreadablePhoto, find_photos, open_rgb
from tests.odd_photos import grey3
from tests.photo_folders import encoded

REPO = Path(__file__).parents[1]
ORIGINALS = Path(__file__).parents[2] / "shared" / "originals"

# pytest puts its own warning filters in the place of those that data.photos sets; that these keep
# stderr clean is tested in a process of its own.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def landscape(width=96, height=64, seed=0):
    """A smooth picture with some grain, (height, width, 3) uint8, different in each corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.stack([x, y, 1 - x * y], axis=2) * 200 + rng.normal(20, 12, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8)


def opened(folder, data, short_side=10_000):
    path = folder / "photo.jpg"
    path.write_bytes(data)
    return np.asarray(open_rgb(path, short_side))


def reason(folder, data):
    with pytest.raises(UnreadablePhoto) as error:
        opened(folder, data)
    return str(error.value)


def make(root, *names):
    """Create files with those names below root; those that end like images hold a small one."""
    photo = encoded(Image.new("RGB", (8, 8), "navy"), "PNG")
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo if path.suffix.lower() in (".png", ".jpg", "") else b"a,b\n1,2\n")


# ---- listing


def test_lists_photos_by_class_in_sorted_order(tmp_path):
    make(tmp_path, "snow/b.jpg", "snow/a.PNG", "rain/2.jpg", "rain/10.jpg", "rain/deep/er/1.png")
    photos = find_photos(tmp_path, tmp_path / "unused")
    assert photos.root == tmp_path
    assert photos.classes == ("rain", "snow")
    assert photos.paths == (
        "rain/10.jpg", "rain/2.jpg", "rain/deep/er/1.png", "snow/a.PNG", "snow/b.jpg",
    )  # fmt: skip
    assert photos.labels.tolist() == [0, 0, 0, 1, 1]
    assert photos.labels.dtype == np.int64
    assert not (tmp_path / "unused").exists()


@given(
    st.dictionaries(
        st.sampled_from(["rain", "rain 2", "Snow", "été", "a-b"]),
        st.sets(st.sampled_from(["1", "2", "sub/3", "sub-4", "sub/deep/5", "é"]), min_size=1),
        min_size=2,
    )
)
@settings(max_examples=25, deadline=None)
def test_listing_holds_exactly_what_is_there(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("photos")
    expected = {f"{name}/{photo}.png" for name, photos in names.items() for photo in photos}
    make(root, *expected)
    photos = find_photos(root, root)
    assert photos.classes == tuple(sorted(names))
    assert photos.paths == tuple(sorted(expected))
    owners = [photos.classes[label] for label in photos.labels]
    assert owners == [path.split("/")[0] for path in photos.paths]


def test_wrapper_folders_are_descended_through(tmp_path):
    make(tmp_path, "a/b/rain/1.jpg", "a/b/snow/1.jpg", "a/README.txt", "a/.cache/x/1.jpg")
    make(tmp_path, "__MACOSX/a/b/rain/._1.jpg", "__MACOSX/a/b/rain/1.jpg", "a/b/preview.png")
    photos = find_photos(tmp_path, tmp_path)
    assert photos.root == tmp_path / "a" / "b"
    assert photos.paths == ("rain/1.jpg", "snow/1.jpg")


def test_hidden_and_other_files_are_skipped_and_unnamed_photos_found(tmp_path):
    make(tmp_path, "rain/1.jpg", "snow/1.jpg", "snow/.hidden.jpg", "snow/.git/2.jpg", ".x/1.jpg")
    make(tmp_path, "snow/labels.csv", "snow/notes.txt", "snow/.DS_Store", "snow/Thumbs.db")
    make(tmp_path, "snow/no_suffix")  # an image for all its name
    (tmp_path / "snow" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (tmp_path / "snow" / "photo.jpg.part").write_bytes(encoded(Image.fromarray(landscape())))
    (tmp_path / "snow" / "empty").write_bytes(b"")
    (tmp_path / "snow" / "figure.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    photos = find_photos(tmp_path, tmp_path)
    assert photos.paths == ("rain/1.jpg", "snow/1.jpg", "snow/no_suffix", "snow/photo.jpg.part")


def test_odd_files_do_not_hang_and_are_listed_where_their_names_say_photo(tmp_path):
    make(tmp_path, "rain/1.jpg", "snow/1.jpg", "snow/x.jpg/inside.jpg", "elsewhere.png")
    snow = tmp_path / "snow"
    os.mkfifo(snow / "pipe.jpg")
    os.mkfifo(snow / "pipe")
    (snow / "dangling.jpg").symlink_to("nowhere")
    (snow / "self.jpg").symlink_to("self.jpg")
    (snow / "round").symlink_to("..")
    (snow / "above").symlink_to(tmp_path.parent)
    (snow / "here").symlink_to(".")
    (snow / "other").symlink_to("../rain")
    (snow / "linked.jpg").symlink_to(tmp_path / "elsewhere.png")
    with socket.socket(socket.AF_UNIX) as listening:
        cwd = os.getcwd()
        os.chdir(snow)  # the path of a socket must be short
        listening.bind("socket.jpg")
        os.chdir(cwd)
    photos = find_photos(tmp_path, tmp_path)
    odd = {
        "snow/dangling.jpg": "No such file or directory",
        "snow/pipe.jpg": "not a regular file",
        "snow/self.jpg": "Too many levels of symbolic links",
        "snow/socket.jpg": "not a regular file",
    }
    fine = {"snow/1.jpg", "snow/linked.jpg", "snow/x.jpg/inside.jpg"}
    assert set(photos.paths) == {"rain/1.jpg", *fine, *odd}
    for path in fine:
        assert open_rgb(photos.root / path, 8).size == (8, 8)
    for path, said in odd.items():
        with pytest.raises(UnreadablePhoto, match=said):
            open_rgb(photos.root / path, 8)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".jxl", ".CR3", ".nef"])
def test_photos_that_pillow_does_not_decode_are_listed_with_what_to_do(tmp_path, suffix):
    """Phones' and cameras' own formats: to pass over them would lose a class in silence."""
    make(tmp_path, "rain/1.jpg", "snow/1.jpg")
    (tmp_path / "snow" / f"2{suffix}").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(500))
    assert find_photos(tmp_path, tmp_path).paths == ("rain/1.jpg", "snow/1.jpg", f"snow/2{suffix}")
    with pytest.raises(UnreadablePhoto, match=f"{suffix.lower()} is not decoded.*JPEG"):
        open_rgb(tmp_path / "snow" / f"2{suffix}", 8)


@pytest.mark.parametrize("suffix", [".nef", ".DNG"])
def test_the_preview_in_a_raw_file_is_not_taken_for_the_photo(tmp_path, suffix):
    """Such a file is a TIFF whose first image is a thumbnail."""
    path = tmp_path / f"raw{suffix}"
    path.write_bytes(encoded(Image.fromarray(landscape()), "TIFF"))
    with pytest.raises(UnreadablePhoto, match=f"{suffix} holds no more than a preview"):
        open_rgb(path, 8)
    path.write_bytes(encoded(Image.fromarray(landscape()), "JPEG"))  # whatever its name says
    assert open_rgb(path, 8).mode == "RGB"


def test_linked_class_folders_are_followed(tmp_path):
    make(tmp_path, "store/one/1.jpg", "store/two/1.jpg")
    root = tmp_path / "photos"
    root.mkdir()
    (root / "rain").symlink_to(tmp_path / "store" / "one")
    (root / "snow").symlink_to(tmp_path / "store" / "two")
    assert find_photos(root, tmp_path).paths == ("rain/1.jpg", "snow/1.jpg")


def test_odd_names(tmp_path):
    names = ["two words.jpg", "new\nline.jpg", "x" * 251 + ".jpg", "quote'\".jpg", "雪.jpg"]
    make(tmp_path, "rain/1.jpg", *(f"snow/{name}" for name in names))
    with open(os.fsencode(tmp_path) + b"/snow/\xff\xfe.jpg", "wb") as file:
        file.write(encoded(Image.new("RGB", (4, 4))))
    photos = find_photos(tmp_path, tmp_path)
    assert len(photos) == 7
    assert os.fsdecode(b"snow/\xff\xfe.jpg") in photos.paths
    for path in photos.paths:
        open_rgb(photos.root / path, 4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no class folders"),
        (["1.jpg", "2.jpg"], "one sub-folder per class"),
        (["rain/1.jpg"], "only one class, 'rain'"),
        (["data/rain/1.jpg"], "only one class, 'rain'"),
        (["rain/1.jpg", "snow/notes.txt"], "class folder 'snow'"),
        (["rain/1.jpg", "snow/.hidden/1.jpg"], "class folder 'snow'"),
        (["train/rain/1.jpg", "test/rain/2.jpg"], "divided into test, train, not into classes"),
        (["all/Train/rain/1.jpg", "all/Val/rain/2.jpg", "all/Test/rain/3.jpg"], "Test, Train, Val"),
    ],
)
def test_folders_without_classes_are_errors(tmp_path, names, said):
    make(tmp_path, *names)
    with pytest.raises(UserError, match=said):
        find_photos(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["missing", "nul\0byte", "x" * 5000])
def test_a_path_that_is_not_there_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        find_photos(tmp_path / name, tmp_path)


def test_a_pipe_instead_of_a_folder_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a folder nor"):
        find_photos(tmp_path / "pipe", tmp_path)


def test_an_archive_is_unpacked_once_and_listed(tmp_path):
    make(tmp_path / "raw", "rain/1.jpg", "snow/1.jpg")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for name in ("rain/1.jpg", "snow/1.jpg"):
            packed.write(tmp_path / "raw" / name, f"weather/{name}")
    first = find_photos(tmp_path / "photos.zip", tmp_path / "unpacked")
    again = find_photos(tmp_path / "photos.zip", tmp_path / "unpacked")
    assert first.paths == again.paths == ("rain/1.jpg", "snow/1.jpg")
    assert first.root == again.root
    assert first.root.is_relative_to(tmp_path / "unpacked")


def test_keep():
    photos = Photos(Path("x"), ("a", "b"), ("a/1", "a/2", "b/1"), np.array([0, 0, 1]))
    kept = photos.keep(np.array([True, False, True]))
    assert (kept.paths, kept.labels.tolist(), kept.classes) == (("a/1", "b/1"), [0, 1], ("a", "b"))
    assert len(photos.keep(np.zeros(3, bool))) == 0
    with pytest.raises(ValueError, match="mask"):
        photos.keep(np.array([0, 2]))


# ---- decoding


def test_formats_are_told_by_content(tmp_path):
    picture = landscape()
    for name in ("PNG", "BMP", "TIFF", "PPM", "TGA"):
        assert np.array_equal(opened(tmp_path, encoded(Image.fromarray(picture), name)), picture)
    webp = opened(tmp_path, encoded(Image.fromarray(picture), "WEBP", lossless=True))
    assert np.array_equal(webp, picture)
    jpeg = opened(tmp_path, encoded(Image.fromarray(picture), quality=95)).astype(int)
    assert np.abs(jpeg - picture).mean() < 8


def test_grey_and_one_bit(tmp_path):
    grey = landscape()[..., 0]
    assert np.array_equal(opened(tmp_path, encoded(Image.fromarray(grey), "PNG")), grey3(grey))
    bits = Image.fromarray(grey).convert("1")
    assert np.array_equal(
        opened(tmp_path, encoded(bits, "PNG")), grey3(np.asarray(bits) * np.uint8(255))
    )


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(tmp_path, name):
    grey = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    expected = np.round(grey / 65535 * 255).astype(np.uint8)
    assert np.array_equal(opened(tmp_path, encoded(Image.fromarray(grey), name)), grey3(expected))


def test_16_bits_of_the_other_byte_order(tmp_path):
    grey = (np.arange(64 * 96).reshape(64, 96) * 10).astype(np.uint16)
    values = grey.astype(">u2").tobytes()
    entries = [
        (256, 3, 1, 96 << 16), (257, 3, 1, 64 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16),
        (262, 3, 1, 1 << 16), (273, 4, 1, 122), (278, 3, 1, 64 << 16), (279, 4, 1, len(values)),
    ]  # fmt: skip
    directory = struct.pack(">H", 9) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    directory += struct.pack(">HHII", 277, 3, 1, 1 << 16) + bytes(4)
    tiff = b"MM\0*" + struct.pack(">I", 8) + directory
    assert len(tiff) == 122
    expected = np.round(grey / 65535 * 255).astype(np.uint8)
    assert np.array_equal(opened(tmp_path, tiff + values), grey3(expected))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e9])
def test_float_tiff(tmp_path, white):
    unit = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(64, 96)
    shown = opened(tmp_path, encoded(Image.fromarray(unit * np.float32(white)), "TIFF"))
    assert np.abs(shown.astype(float) - grey3(unit * 255)).max() <= 0.51


def test_float_tiff_with_odd_values(tmp_path):
    values = np.array([[-1, 0, 1], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    shown = opened(tmp_path, encoded(Image.fromarray(values), "TIFF"))[..., 0]
    assert shown.tolist() == [[0, 128, 255], [0, 255, 0]]
    for constant in (0, np.nan, np.inf, 7e8):
        odd = np.full((2, 3), constant, dtype=np.float32)
        assert len(np.unique(opened(tmp_path, encoded(Image.fromarray(odd), "TIFF")))) == 1
    wide = np.array([[-3e38, 3e38]], dtype=np.float32)
    assert opened(tmp_path, encoded(Image.fromarray(wide), "TIFF"))[0, :, 0].tolist() == [0, 255]


def test_32_bit_integers(tmp_path):
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    shown = opened(tmp_path, encoded(Image.fromarray(values), "TIFF"))[0, :, 0]
    assert shown.tolist() == [0, 1, 255]
    signed = np.array([[-100, 0, 100]], dtype=np.int32)
    shown = opened(tmp_path, encoded(Image.fromarray(signed), "TIFF"))[0, :, 0]
    assert shown.tolist() == [0, 128, 255]


def test_transparency_is_laid_over_white(tmp_path):
    alpha = np.linspace(0, 255, 96, dtype=np.uint8) * np.ones((64, 1), np.uint8)
    picture = landscape()
    rgba = np.dstack([picture, alpha])
    share = alpha[..., None] / 255
    expected = picture * share + 255 * (1 - share)
    for name in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if name == "WEBP" else {}
        shown = opened(tmp_path, encoded(Image.fromarray(rgba), name, **options))
        assert np.abs(shown - expected).max() <= 1.01
    la = np.dstack([picture[..., 0], alpha])
    shown = opened(tmp_path, encoded(Image.fromarray(la, "LA"), "PNG"))
    assert np.abs(shown - expected[..., :1]).max() <= 1.01


def test_palettes(tmp_path):
    picture = Image.fromarray(landscape()).quantize(16)
    colours = np.asarray(picture.convert("RGB"))
    assert np.array_equal(opened(tmp_path, encoded(picture, "PNG")), colours)
    white = np.where((np.asarray(picture) == 3)[..., None], np.uint8(255), colours)
    assert (white != colours).any()
    for name in ("PNG", "GIF"):
        shown = opened(tmp_path, encoded(picture, name, transparency=3))
        assert np.array_equal(shown, white)
    half = bytes(128 if n == 3 else 255 for n in range(16))
    shown = opened(tmp_path, encoded(picture, "PNG", transparency=half))
    assert np.abs(shown - (white.astype(int) + colours) / 2).max() <= 1.01


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour(tmp_path, mode):
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((1, 2), 9 if mode == "L" else (9, 9, 9))
    black = 0 if mode == "L" else (0, 0, 0)
    shown = opened(tmp_path, encoded(image, "PNG", transparency=black))
    assert shown[2, 1].tolist() == [9, 9, 9]
    assert (np.delete(shown.reshape(16, 3), 9, axis=0) == 255).all()


def test_cmyk_and_ycck(tmp_path):
    picture = landscape()
    cmyk = encoded(Image.fromarray(picture).convert("CMYK"), quality=95)
    assert np.abs(opened(tmp_path, cmyk).astype(int) - picture).mean() < 8
    tiff = encoded(Image.fromarray(picture).convert("CMYK"), "TIFF")
    assert np.array_equal(opened(tmp_path, tiff), picture)
    # The same channels stored as YCCK: Adobe's marker says so with a 2 in its last byte.
    adobe = cmyk.index(b"Adobe")
    inverted = Image.fromarray(255 - picture).convert("YCbCr")
    ycck = Image.merge("CMYK", (*inverted.split(), Image.new("L", inverted.size, 255)))
    data = bytearray(encoded(Image.eval(ycck, lambda value: 255 - value), quality=95))
    data[adobe + 11] = 2
    assert np.abs(opened(tmp_path, bytes(data)).astype(int) - picture).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(tmp_path, name, orientation):
    """A picture stored turned, by the EXIF standard's numbers, comes back upright."""
    upright = landscape()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if name == "WEBP" else {"quality": 95}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif, **options)
    shown = opened(tmp_path, data).astype(int)
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).mean() < 8
    assert open_rgb(tmp_path / "photo.jpg", 8).getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_broken_exif_is_ignored(tmp_path):
    picture = Image.fromarray(landscape())
    plain = opened(tmp_path, encoded(picture))
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + bytes(range(200))):
        for dpi in ({}, {"dpi": (72, 72)}):  # without them Pillow looks for them in the EXIF block
            assert np.array_equal(opened(tmp_path, encoded(picture, exif=exif, **dpi)), plain)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames(tmp_path, name):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "WEBP" else {}
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        image.seek(2)  # there are three
    assert np.abs(opened(tmp_path, data).astype(int) - [255, 0, 0]).max() <= 3


@given(width=st.integers(1, 300), height=st.integers(1, 300), short_side=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_reduced_jpegs_keep_the_short_side(tmp_path_factory, width, height, short_side):
    path = tmp_path_factory.getbasetemp() / "reduced.jpg"
    path.write_bytes(encoded(Image.new("RGB", (width, height), "teal")))
    size = open_rgb(path, short_side).size
    assert min(size) >= min(short_side, width, height)
    scale = next(n for n in (8, 4, 2, 1) if min(width, height) // n >= short_side or n == 1)
    assert size == (-(-width // scale), -(-height // scale))


def test_a_reduced_jpeg_is_the_same_picture(tmp_path):
    large = Image.fromarray(landscape()).resize((960, 640), Image.Resampling.BICUBIC)
    for progressive in (False, True):
        small = opened(tmp_path, encoded(large, quality=95, progressive=progressive), 80)
        assert small.shape == (80, 120, 3)
        assert np.abs(small - np.asarray(large.reduce(8)).astype(int)).mean() < 2


def test_extreme_shapes(tmp_path):
    assert opened(tmp_path, encoded(Image.new("RGB", (1, 1), "red"), "PNG")).shape == (1, 1, 3)
    wide = Image.new("RGB", (20000, 2), "red")
    assert opened(tmp_path, encoded(wide), 64).shape == (2, 20000, 3)
    assert opened(tmp_path, encoded(wide, "PNG"), 64).shape == (2, 20000, 3)


# ---- what cannot be decoded


def test_files_that_are_no_photos(tmp_path):
    assert reason(tmp_path, b"") == "empty file"
    assert "not an image" in reason(tmp_path, b"hello, I am a text\n" * 20)
    assert reason(tmp_path, b"\xff\xd8\xff") == "truncated"
    assert "not an image" in reason(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    cases = {"missing.jpg": "No such file", ".": "not a regular file", "pipe": "not a regular"}
    os.mkfifo(tmp_path / "pipe")
    for name, said in cases.items():
        with pytest.raises(UnreadablePhoto, match=said):
            open_rgb(tmp_path / name, 8)


def test_bombs_are_too_large(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS or 0
    for pixels in (limit + 10_000, 3 * limit):  # where Pillow warns, and where it refuses
        header = encoded(Image.new("1", (1, 1)), "PNG")
        size = struct.pack(">II", 10_000, pixels // 10_000)
        chunk = b"IHDR" + size + header[24:29]
        crc = struct.pack(">I", zlib.crc32(chunk))
        bomb = header[:12] + chunk + crc + header[33:]
        assert reason(tmp_path, bomb).startswith("too large")
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadablePhoto, match="too large"):
        open_rgb(path, 8)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_truncated_files_of_other_formats(tmp_path, name):
    data = encoded(Image.fromarray(landscape()), name)
    opened(tmp_path, data)
    for quarter in (1, 2, 3):
        assert reason(tmp_path, data[: len(data) * quarter // 4])


def test_broken_data(tmp_path):
    jpeg = bytearray(encoded(Image.fromarray(landscape())))
    table = jpeg.index(b"\xff\xc4")
    jpeg[table + 5 : table + 21] = b"\xff" * 16  # more codes than there can be
    assert reason(tmp_path, bytes(jpeg))
    png = bytearray(encoded(Image.fromarray(landscape()), "PNG"))
    png[len(png) // 2] ^= 0xFF
    assert reason(tmp_path, bytes(png))


def test_reasons_are_short(tmp_path):
    rng = np.random.default_rng(0)
    reasons = set()
    for name in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = bytearray(encoded(Image.fromarray(landscape()), name))
        for _ in range(40):
            broken = data.copy()
            for position in rng.integers(0, len(data), 5):
                broken[position] = rng.integers(256)
            try:
                opened(tmp_path, bytes(broken), 64)
            except UnreadablePhoto as error:
                reasons.add(str(error))
    assert len(reasons) > 3
    assert all(0 < len(text) < 160 and "\n" not in text for text in reasons)


# ---- JPEGs without their end

JPEGS = {
    "baseline": {"quality": 85},
    "grey": {"quality": 75},
    "fine": {"quality": 98, "subsampling": 0},
    "restarts": {"quality": 60, "restart_marker_blocks": 3},
    "progressive": {"quality": 85, "progressive": True},
    "progressive restarts": {"quality": 40, "progressive": True, "restart_marker_rows": 1},
}


def jpeg_without_end(kind):
    picture = Image.fromarray(landscape(150, 100))
    jpeg = encoded(picture.convert("L") if kind == "grey" else picture, **JPEGS[kind])
    assert jpeg.endswith(b"\xff\xd9")
    return jpeg[:-2]


@pytest.mark.parametrize("kind", JPEGS)
def test_what_follows_the_end_marker_of_a_jpeg_changes_nothing(tmp_path, kind):
    body = jpeg_without_end(kind)
    whole = opened(tmp_path, body + b"\xff\xd9")
    for trailer in (bytes(1000), b"made by a camera"):
        assert np.array_equal(opened(tmp_path, body + b"\xff\xd9" + trailer), whole)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_whose_data_are_cut_off_is_truncated(tmp_path, kind):
    body = jpeg_without_end(kind)
    start = body.index(b"\xff\xda")
    markers = [n for n in range(start, len(body) - 4) if body[n] == 255 and body[n + 1] != 0]
    cuts = {len(body) - n for n in (0, 3, 4, 5, 8, 13, 30, 100)}
    cuts |= {start + 20 + (len(body) - start - 20) * n // 7 for n in range(7)}
    cuts |= {marker + n for marker in markers[1::6] + markers[-2:] for n in (0, 1, 2)}
    cuts = {cut for cut in cuts if start + 16 < cut <= len(body)}
    for cut in sorted(cuts):
        said = reason(tmp_path, body[:cut]).lower()
        assert "truncated" in said, (cut - len(body), said)
        assert "truncated" in reason(tmp_path, body[:cut] + bytes(5000)).lower()


# ---- as it is used


def test_threads_and_no_word_on_stderr(tmp_path):
    """Odd files, decoded in threads by a process in which every warning is an error."""
    picture = Image.fromarray(landscape())
    make(tmp_path, "rain/1.jpg")
    samples = struct.pack("<HHIB", 277, 3, 1, 3)  # the number of channels
    odd = {
        "exif.jpg": encoded(picture, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(range(40))),
        "palette.png": encoded(picture.quantize(8), "PNG", transparency=bytes(range(8))),
        "grey.png": encoded(picture.convert("I;16"), "PNG"),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 12_000, 12_000) + bytes(40),
        "cut.jpg": encoded(picture)[:-100],
        "text.jpg": b"no photo",
        "some.tif": b"II*\0\x08\0\0\0" + bytes(range(100)),
        "samples.tif": encoded(picture, "TIFF").replace(samples, samples[:-1] + b"\x4d"),
        "unknown": b"II*\0\x08\0\0\0" + bytes(range(100)),
    }
    (tmp_path / "snow").mkdir()
    for name, data in odd.items():
        (tmp_path / "snow" / name).write_bytes(data)
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from data.photos import *\n"
        "photos = find_photos(Path(sys.argv[1]), Path())\n"
        "def decoded(path):\n"
        "    try:\n"
        "        return open_rgb(photos.root / path, 8).mode == 'RGB'\n"
        "    except UnreadablePhoto:\n"
        "        return False\n"
        "paths = photos.paths * 20\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    results = list(pool.map(decoded, paths))\n"
        "assert results == [decoded(path) for path in paths]\n"
        "print(sorted({p for p, ok in zip(paths, results) if not ok}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        cwd=REPO, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    unreadable = ["bomb.gif", "cut.jpg", "samples.tif", "some.tif", "text.jpg"]
    assert done.stdout.strip() == str([f"snow/{name}" for name in unreadable])


def test_a_file_that_changes_while_it_is_decoded(tmp_path):
    """Whatever state of the file is read, the outcome is a photo or UnreadablePhoto."""
    path = tmp_path / "photo.jpg"
    versions = [encoded(Image.fromarray(landscape(seed=n)), name) for n, name in
                enumerate(("JPEG", "PNG"))]  # fmt: skip
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for data in (*versions, b"", versions[0][:200]):
                path.write_bytes(data)
            path.unlink()

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda _: outcome(path), range(150)))
    finally:
        stop.set()
        writer.join()
    assert set(outcomes) <= {"photo", "unreadable"}


def outcome(path):
    try:
        open_rgb(path, 16)
    except UnreadablePhoto:
        return "unreadable"
    return "photo"


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="needs the original photos")
def test_original_photos_decode_like_pillow():
    photos = find_photos(ORIGINALS, ORIGINALS)
    assert len(photos) == 167
    assert len(photos.classes) == 11
    for path in photos.paths:
        full = open_rgb(photos.root / path, 10_000)
        with Image.open(photos.root / path) as image:
            expected = image.convert("RGB")
            if image.mode == "RGBA":
                white = Image.new("RGBA", image.size, "white")
                expected = Image.alpha_composite(white, image).convert("RGB")
        assert full.tobytes() == expected.tobytes()
        small = open_rgb(photos.root / path, 64)
        assert 64 <= min(small.size) <= min(full.size)
