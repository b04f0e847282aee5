"""The cache: decoded once, right, whole, and made again when the photos change."""

import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import UserError
from data.cache import PHOTOS_PER_TASK, Decoded, decode_photos
from data.duplicates import signature
from data.photos import find_photos, open_rgb

ROOT = Path(__file__).parents[1]
SIDE = 16
PER_CLASS = {"fog": 140, "hail": 3, "rain": 60}  # more than the decoder works on at once
FOG, HAIL, RAIN = 0, 140, 143  # the number of the first photo of each


def picture(number: int, side: int = SIDE) -> np.ndarray:
    """A photo of its own for every number, different in all four corners."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3)).astype(np.uint8)


def make_photos(folder: Path) -> Path:
    number = 0
    for name, count in PER_CLASS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(number)).save(folder / name / f"{index:03}.png")
            number += 1
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "weather")


def decode(
    photos: Path, side: int = SIDE, *, strict: bool = False, cache: Path | None = None, workers=1
) -> Decoded:
    cache = cache or photos.parent / "cache"
    found = find_photos(photos, cache / "unpacked")
    return decode_photos(found, side, cache, workers=workers, strict=strict)


def pixel_file(decoded: Decoded) -> Path:
    assert isinstance(decoded.pixels, np.memmap)
    return Path(str(decoded.pixels.filename))


def inode(decoded: Decoded) -> int:
    """Changes whenever the pixels are written anew."""
    return pixel_file(decoded).stat().st_ino


def folders(decoded: Decoded) -> list[str]:
    return sorted(path.name.split("-")[0] for path in decoded.folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("workers", [1, 3])
def test_every_photo_is_in_its_row_with_its_label(photos, workers):
    decoded = decode(photos, workers=workers)
    count = sum(PER_CLASS.values())
    assert decoded.pixels.shape == (count, SIDE, SIDE, 3)
    assert decoded.pixels.dtype == np.uint8
    for number in range(count):
        assert np.array_equal(decoded.pixels[decoded.rows[number]], picture(number)), number
    expected = [label for label, n in enumerate(PER_CLASS.values()) for _ in range(n)]
    assert decoded.photos.labels.tolist() == expected
    assert decoded.unreadable == ()
    assert not decoded.pixels.flags.writeable


@pytest.mark.parametrize("side", [40, 300])
def test_a_photo_is_squashed_to_a_square_whole_and_upright(tmp_path, side):
    """Also where it takes a second decode, since the side is larger than the signatures'."""
    quarters = np.kron(np.array([[0, 60], [120, 250]]), np.ones((300, 200))).astype(np.uint8)
    stored = Image.fromarray(quarters).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back to the right before looking at it
    for name in ("dew", "rime"):
        (tmp_path / "w" / name).mkdir(parents=True)
    stored.save(tmp_path / "w" / "dew" / "a.jpg", exif=exif, quality=95)
    Image.fromarray(quarters).save(tmp_path / "w" / "rime" / "a.png")
    expected = np.kron(np.array([[0, 60], [120, 250]]), np.ones((side // 2, side // 2)))
    for decoded in decode(tmp_path / "w", side).pixels:
        difference = np.abs(decoded.astype(int) - expected[:, :, None])
        middle = slice(side // 2 - side // 20, side // 2 + side // 20)
        difference[middle] = difference[:, middle] = 0  # the edges between the quarters are blurred
        assert difference.max() <= 3


@pytest.mark.parametrize("side", [64, 300])
def test_a_jpeg_comes_close_to_its_exact_reduction(tmp_path, side):
    """Stripes of five pixels are seen at 300, though the signatures' decode has lost them."""
    levels = np.random.default_rng(0).integers(0, 200, (6, 9, 3)).astype(np.uint8)
    photo = np.array(Image.fromarray(levels).resize((900, 560), Image.Resampling.BICUBIC))
    photo[:, (np.arange(900) // 5) % 2 == 0] += 50
    for name in ("dew", "rime"):
        (tmp_path / "w" / name).mkdir(parents=True)
        Image.fromarray(photo).save(tmp_path / "w" / name / "a.jpg", quality=95, subsampling=0)
    exact = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
    difference = np.asarray(decode(tmp_path / "w", side).pixels[0], int) - np.asarray(exact, int)
    assert np.abs(difference).mean() < 1


def test_signatures_are_those_of_the_photos_and_do_not_depend_on_the_side(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("dew", "rime"):
        (tmp_path / "w" / name).mkdir(parents=True)
        coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3)).astype(np.uint8))
        coarse.resize((1200, 900)).save(tmp_path / "w" / name / "a.jpg")
    small, large = decode(tmp_path / "w", 64), decode(tmp_path / "w", 300)
    assert np.array_equal(small.signatures, large.signatures)
    for path, signed in zip(small.photos.paths, small.signatures, strict=True):
        assert np.array_equal(signed, signature(open_rgb(small.photos.root / path, 256)))
    assert not np.array_equal(small.signatures[0], small.signatures[1])


def test_the_second_time_nothing_is_decoded(photos):
    first = decode(photos)
    before = inode(first), np.array(first.pixels)
    for path in photos.rglob("*.png"):  # the same size and time, and no photo any more
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = decode(photos)
    assert inode(again) == before[0]
    assert np.array_equal(again.pixels, before[1])
    assert again.unreadable == ()


def test_a_relative_path_leads_to_the_same_cache(photos, monkeypatch):
    cache, first = photos.parent / "cache", inode(decode(photos))
    monkeypatch.chdir(photos.parent)
    assert inode(decode(Path("weather"), cache=cache)) == first
    monkeypatch.chdir(photos)
    assert inode(decode(Path(), cache=cache)) == first


def test_folders_of_one_name_do_not_share_a_cache(photos, tmp_path):
    other = make_photos(tmp_path / "elsewhere" / "weather")
    cache = tmp_path / "cache"
    assert decode(photos, cache=cache).folder != decode(other, cache=cache).folder


def test_a_photo_with_other_content_is_decoded_again_and_the_old_pixels_go(photos):
    old, other_side = decode(photos), decode(photos, 8)
    assert folders(old) == ["16px", "8px"]
    changed = photos / "hail" / "001.png"
    Image.fromarray(picture(999)).save(changed)
    new = decode(photos)
    assert np.array_equal(new.pixels[new.photos.paths.index("hail/001.png")], picture(999))
    assert np.array_equal(old.pixels[0], picture(0))  # whoever reads it still can
    assert folders(new) == ["16px", "8px"]
    assert not pixel_file(old).exists()
    assert pixel_file(other_side).exists()


def test_a_time_or_a_file_more_or_less_makes_another_cache(photos):
    names = set()

    def name_of_cache() -> str:
        return pixel_file(decode(photos)).parent.name

    names.add(name_of_cache())
    os.utime(photos / "fog" / "000.png", ns=(0, 1))
    names.add(name_of_cache())
    Image.fromarray(picture(999)).save(photos / "rain" / "new.png")
    names.add(name_of_cache())
    (photos / "rain" / "000.png").unlink()
    names.add(name_of_cache())
    (photos / "rain" / "001.png").rename(photos / "hail" / "from rain.png")
    names.add(name_of_cache())
    assert len(names) == 5


def test_the_digest_is_that_of_the_readable_files_wherever_they_lie(photos, tmp_path):
    first = decode(photos).digest
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert decode(photos, 8).digest == first
    copy = shutil.copytree(photos, tmp_path / "elsewhere" / "weather")
    os.utime(copy / "fog" / "000.png", ns=(0, 1))
    assert decode(copy).digest == first
    # The same pixels and the same number of bytes: only the bytes tell.
    path = copy / "fog" / "000.png"
    path.write_bytes(path.read_bytes() + b"0")
    longer = decode(copy).digest
    path.write_bytes(path.read_bytes()[:-1] + b"1")
    other = decode(copy).digest
    path.write_bytes(b"")
    assert len({first, longer, other, decode(copy).digest}) == 4


def test_what_cannot_be_read_is_listed_and_left_out_without_shifting_the_others(photos):
    (photos / "fog" / "000.png").write_bytes(b"")
    (photos / "rain" / "007.png").write_text("no photo")
    cut = photos / "hail" / "002.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    for _ in range(2):  # decoded, and read from the cache
        decoded = decode(photos)
        assert [path for path, _ in decoded.unreadable] == [
            "fog/000.png", "hail/002.png", "rain/007.png",
        ]  # fmt: skip
        assert decoded.unreadable[0][1] == "empty file"
        assert all(reason for _, reason in decoded.unreadable)
        left = [n for n in range(sum(PER_CLASS.values())) if n not in (FOG, HAIL + 2, RAIN + 7)]
        assert len(decoded.photos) == len(decoded.rows) == len(decoded.signatures) == len(left)
        for row, number in zip(decoded.rows, left, strict=True):
            assert np.array_equal(decoded.pixels[row], picture(number))
        assert np.bincount(decoded.photos.labels).tolist() == [139, 2, 59]
        assert decoded.photos.paths[139:141] == ("hail/000.png", "hail/001.png")
        expected = signature(Image.fromarray(picture(HAIL)))
        assert np.array_equal(decoded.signatures[139], expected)


def test_a_photo_that_vanishes_after_the_listing_is_one_that_cannot_be_read(photos):
    found = find_photos(photos, photos.parent / "unpacked")
    (photos / "fog" / "003.png").unlink()
    decoded = decode_photos(found, SIDE, photos.parent / "cache", workers=1, strict=False)
    assert [path for path, _ in decoded.unreadable] == ["fog/003.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_be_read_at_last_is_decoded(photos):
    locked = photos / "hail" / "001.png"
    locked.chmod(0)
    assert decode(photos).unreadable == (("hail/001.png", "Permission denied"),)
    locked.chmod(0o400)
    decoded = decode(photos)
    assert decoded.unreadable == ()
    assert np.array_equal(decoded.pixels[HAIL + 1], picture(HAIL + 1))


def test_strict_stops_at_photos_that_cannot_be_read_also_from_the_cache(photos):
    decode(photos, strict=True)
    (photos / "fog" / "000.png").write_bytes(b"")
    (photos / "fog" / "001.png").write_bytes(b"")
    decode(photos)
    with pytest.raises(UserError, match=r"--strict: 2 photos .*'fog/000.png' \(empty file\)"):
        decode(photos, strict=True)


def test_a_class_without_a_readable_photo_is_named(photos):
    for path in (photos / "hail").iterdir():
        path.write_bytes(b"x")
    says = r"weather/hail: none of its photos can be read \(not an image"
    with pytest.raises(UserError, match=says):
        decode(photos)


DECODE = """
import os, signal, sys
from pathlib import Path
import data.cache
from data.photos import find_photos

root, cache, side, fatal = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
count, decode_rgb = 0, data.cache.decode_rgb

def counted(*arguments):
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_rgb(*arguments)

data.cache.decode_rgb = counted
photos = find_photos(root, cache / "unpacked")
decoded = data.cache.decode_photos(photos, side, cache, workers=1, strict=False)
print(count, int(decoded.pixels.sum(dtype="int64")), decoded.rows.tolist())
"""


def start(photos: Path, side: int, fatal: int = 0) -> subprocess.Popen[str]:
    """A process that decodes, and kills itself at one of the photos."""
    command = [sys.executable, "-uc", DECODE, photos, photos.parent / "cache", side, fatal]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_after_a_run_that_was_killed_everything_is_decoded_and_nothing_is_left(photos):
    killed = start(photos, SIDE, fatal=190)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    folder = next(path for path in (photos.parent / "cache").iterdir() if path.is_dir())
    begun = [path for path in folder.iterdir() if path.is_dir()]
    assert len(begun) == 1  # it was killed half-way, not before
    decoded = decode(photos)
    assert decoded.folder == folder
    assert np.array_equal(decoded.pixels[202], picture(202))
    assert folders(decoded) == ["16px"]


def test_two_at_once_decode_once_and_agree(photos):
    folder = decode(photos, 8).folder
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as if a third one were decoding, until both wait for it
        processes = [start(photos, SIDE) for _ in range(2)]
        for process in processes:
            assert process.stderr is not None
            assert "waiting" in process.stderr.readline()
    ends = [process.communicate() for process in processes]
    assert [errors for _, errors in ends] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    counts, results = zip(*(out.split(maxsplit=1) for out, _ in ends), strict=True)
    assert sorted(map(int, counts)) == [0, sum(PER_CLASS.values())]
    assert results[0] == results[1]
    expected = sum(int(picture(number).sum()) for number in range(sum(PER_CLASS.values())))
    assert results[0].startswith(f"{expected} ")


def refused(photos: Path, cache: Path) -> str:
    with pytest.raises(UserError, match=r"could not be written .*--cache") as problem:
        decode_photos(find_photos(photos, cache), SIDE, cache, workers=2, strict=False)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_a_cache_that_is_no_folder_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(photos, tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_read_only_is_named(photos, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    assert str(cache) in refused(photos, cache)


def test_a_disk_that_is_full_is_told_and_what_was_begun_is_removed(photos, tmp_path):
    cache = tmp_path / "cache"
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        assert str(cache) in refused(photos, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert np.array_equal(decode(photos, cache=cache).pixels[5], picture(5))


def test_a_folder_with_a_very_long_name_is_decoded(tmp_path):
    decoded = decode(make_photos(tmp_path / ("ß" * 126)))
    assert np.array_equal(decoded.pixels[5], picture(5))


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from data.cache import decode_photos
from data.photos import find_photos

opened = 0

def interrupt(event, arguments):
    global opened
    if event == "open" and str(arguments[0]).endswith(".png"):
        opened += 1
        if opened == 40:
            os.kill(os.getpid(), signal.SIGINT)

photos, cache = find_photos(Path(sys.argv[1]), Path()), Path(sys.argv[2])
sys.addaudithook(interrupt)
try:
    decode_photos(photos, 16, cache, workers=1, strict=False)
except KeyboardInterrupt:
    print(opened)
"""


def test_an_interrupt_does_not_wait_for_photos_that_are_not_begun(photos, tmp_path):
    """It comes in the second of seven tasks: that one is finished, perhaps one more."""
    run = [sys.executable, "-c", INTERRUPTED, photos, tmp_path / "cache"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert 40 <= int(done.stdout) <= 3 * PHOTOS_PER_TASK
    assert not list(tmp_path.rglob("unfinished"))
