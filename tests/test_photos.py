"""Which files of a folder are photos, and what each shows or why it cannot be read."""

import csv
import os
import struct
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import ExifTags, Image

from config import UserError
from data.listing import find_photos
from data.photos import UnreadablePhoto, decode_rgb, open_rgb, read_photo
from tests.photo_folders import encoded, make_photos, python, training

# pytest puts its own warning filters in the place of those that data.photos sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def picture(corners: np.ndarray) -> Image.Image:
    """The corners as quarters of a picture, in the mode that their shape and type have."""
    return Image.fromarray(corners.repeat(24, axis=0).repeat(32, axis=1))


CORNERS = np.array([[[0, 90, 180], [250, 180, 40]], [[180, 0, 90], [200, 255, 250]]], np.uint8)
ALPHA = np.array([[[255], [128]], [[64], [0]]], np.uint8)
HOLE = CORNERS.copy()
HOLE[1, 0] = 255
GREY = np.array([[5, 80], [160, 240]], np.uint8)
IMAGE, GREY_IMAGE = picture(CORNERS), picture(GREY)
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 3  # by half a turn
# Turned as well, and with a number for the camera's name, which Pillow fails to write back.
BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\2\1\x12\0\3\0\0\0\1\0\3\0\0"
BROKEN_EXIF += b"\1\x0f\0\x0c\0\0\0\1\0\0\0\x08\0\0\0\0"
PALETTE = picture(np.array([[0, 1], [2, 3]], np.uint8))
PALETTE.putpalette(CORNERS.tobytes())
SERIES = {"save_all": True, "append_images": [picture(255 - CORNERS)]}  # the first counts
COLOURED = {
    "new\nline\x1b[31m.jpg": encoded(IMAGE),
    "cmyk.jpg": encoded(IMAGE.convert("CMYK")),
    "upside down.jpg": encoded(IMAGE.rotate(180), exif=TURNED),
    "exif.jpg": encoded(IMAGE.rotate(180), exif=BROKEN_EXIF),
    "video behind.jpg": encoded(IMAGE) + b"\xff\xda video",
    "jpeg inside.heic": encoded(IMAGE),
    "png inside.jpg": encoded(IMAGE, "PNG"),
    "a.webp": encoded(IMAGE, "WEBP"),
    "moving.gif": encoded(IMAGE, "GIF", **SERIES),
    "two.mpo": encoded(IMAGE, "MPO", **SERIES),
}
READABLE = {name: (data, CORNERS) for name, data in COLOURED.items()} | {
    "grey.jpg": (encoded(GREY_IMAGE), GREY[..., None]),
    "16 bits.png": (encoded(picture(GREY.astype(np.uint16) * 257), "PNG"), GREY[..., None]),
    "float.tif": (encoded(picture(GREY.astype(np.float32) / 255), "TIFF"), GREY[..., None]),
    "rgba.png": (  # laid over white
        encoded(picture(np.dstack([CORNERS, ALPHA])), "PNG"),
        CORNERS * (ALPHA / 255) + (255.0 - ALPHA),
    ),
    "palette.png": (encoded(PALETTE, "PNG", transparency=2), HOLE),
}
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
PNG = encoded(Image.fromarray(NOISE), "PNG")
HUGE = b"IHDR" + struct.pack(">II", 50_000, 50_000) + PNG[24:29]
UNREADABLE = {
    "half.png": (PNG[:5000], "truncated"),
    "zeros.png": (PNG[:5000] + bytes(5000), "truncated"),  # as a broken download leaves
    "flipped.png": (PNG[:5000] + b"flipped" + PNG[5007:], "broken"),
    "bomb.png": (PNG[:12] + HUGE + struct.pack(">I", zlib.crc32(HUGE)) + PNG[33:], "exceeds"),
    "page.jpg": (b"<!DOCTYPE html><html>", "not an image"),
    "figure.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not decoded.*pillow-heif"),
    "raw.nef": (encoded(GREY_IMAGE, "TIFF"), "nef is not decoded.*as JPEG"),
}


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_listing_holds_every_photo_in_order_and_nothing_else(tmp_path):
    root, classes = tmp_path / "a" / "b", ("Snow", "a-b", "rain", "rain 2", "test", "été")
    inside = ("1.PnG", "sub/3.jpg", "sub-4.heic", "sub/d.jpg/5.NEF", "é\n.jpg")
    expected = sorted(f"{name}/{photo}" for name in classes for photo in inside)
    make(root, *expected, "rain/.hidden.jpg", "rain/.git/2.jpg", "rain/a.csv", "rain/@eaDir/x.jpg")
    make(tmp_path, "a/README.txt", "a/.x/1.jpg", "__MACOSX/a/1.jpg", "a/b/1.png", "#recycle/1.jpg")
    make(tmp_path, "lost+found/1.jpg", "$RECYCLE.BIN/1.jpg", "System Volume Information/1.jpg")
    photos = find_photos(tmp_path, tmp_path)
    assert (photos.root, photos.classes, photos.paths) == (root, classes, tuple(expected))
    left_out = "files left out: 2, such as 'a/README.txt'"
    assert photos.notes == ("'test' is a class here, not a part of a split", left_out)
    assert [classes[label] for label in photos.labels] == [p.split("/")[0] for p in expected]


def test_links_and_special_files(tmp_path, monkeypatch):
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
    for name, said in ("gone", "No such file"), ("pipe", "not a reg"), ("zero", "not a reg"):
        with pytest.raises(UnreadablePhoto, match=said):
            read_photo(snow / f"{name}.jpg")
    for path in (tmp_path / "missing", snow / "pipe.jpg", snow / "1.jpg" / "x"):
        with pytest.raises(UserError, match="does not exist, or is neither"):
            find_photos(path, tmp_path)
    only = "links to a folder, as only class folders may: copy it"
    for name, what in (("snow/others", only), ("sleet", "is a broken link: restore it")):
        (snow.parent / name).symlink_to("../rain")
        with pytest.raises(UserError, match=f"{name}' {what}"):
            find_photos(snow.parent, tmp_path)
    monkeypatch.setattr("os.scandir", Mock(side_effect=PermissionError(13, "forbidden", "deep")))
    with pytest.raises(UserError, match="cannot read folder 'deep': forbidden"):
        find_photos(snow.parent, tmp_path)


@pytest.mark.parametrize("name", READABLE, ids=ascii)
def test_each_format_decodes_to_the_right_pixels(name):
    data, corners = READABLE[name]
    image = decode_rgb(data, Path(name).suffix, 10_000)
    assert image.mode == "RGB"
    pixels = np.asarray(image).reshape(2, image.height // 2, 2, image.width // 2, 3)
    error = np.abs(pixels - corners[:, None, :, None].astype(float))
    assert error.max() <= 1.01 if name[-3:] in ("png", "tif") else error.mean() < 6


def test_a_photo_of_200_megapixels_is_decoded():
    size = struct.pack(">HH", 12_240, 16_320)
    data = encoded(Image.fromarray(NOISE)).replace(struct.pack(">HH", 48, 64), size)
    assert decode_rgb(data, ".jpg", 256).size == (2040, 1530)


@pytest.mark.parametrize("name", UNREADABLE, ids=ascii)
def test_what_cannot_be_decoded_has_a_short_reason(name):
    data, said = UNREADABLE[name]
    with pytest.raises(UnreadablePhoto, match=f"^.{{,80}}{said}.{{,80}}$"):
        decode_rgb(data, Path(name).suffix, 10_000)


def test_system_errors_are_not_blamed_on_the_photo(monkeypatch):
    """A photo on a disk that fails for a moment must not be remembered as unreadable."""
    with pytest.raises(OSError, match="Input/output error"):
        open_rgb(Path("/proc/self/mem"), 8)  # as nothing lies at its beginning
    # Lack of memory to rotate a photo is no broken EXIF block.
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        decode_rgb(encoded(Image.new("RGB", (8, 8))), ".jpg", 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_too_little_memory_is_not_the_photos(tmp_path, form):
    """In a separate process, whose memory limit is below what this photo needs."""
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
    assert decode_rgb(jpeg[:2] + b"\xff" + jpeg[2:], ".jpg", 26).size == (75, 50)  # a fill byte
    start = jpeg.rindex(b"\xff\xda") + 16
    for cut in {*range(start, len(jpeg), 97), *range(len(jpeg) - 8, len(jpeg))}:
        for behind in (b"", bytes(5000)):
            with pytest.raises(UnreadablePhoto, match="truncated"):
                decode_rgb(jpeg[:cut] + behind, ".jpg", 10_000)


def test_training_writes_down_every_file_that_is_left_out(tmp_path):
    """In a terminal that knows ASCII alone, too. Every other file is decoded."""
    folder = make_photos(tmp_path / "weather")
    odd = (folder / "rain").rename(folder / os.fsdecode(b"f\xf6g |\n"))
    for name, (data, _) in (READABLE | UNREADABLE).items():
        (odd / name).write_bytes(data)
    words = training(folder, tmp_path, "--models", "resnet18")
    done = python("train.py", *words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f": {4 * 14 + len(READABLE)} in 4 classes" in done.stdout
    assert f"{len(UNREADABLE)} files cannot be read" in done.stdout
    (listed,) = tmp_path.glob("output/results/*/unreadable.csv")
    rows = csv.reader(listed.read_text("utf-8", "surrogateescape").splitlines(keepends=True))
    paths = [f"{odd.name}/{name}" for name in sorted(UNREADABLE)]
    assert [path for path, _ in rows] == ["path", *paths]
