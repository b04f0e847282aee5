"""The cache: decoded once, right, whole, and made again when the photos change or it is damaged."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import UserError
from data.cache import Decoded, decode_photos, read_square
from data.files import lock
from data.photos import find_photos
from tests.photo_folders import start

SIDE = 16
PER_CLASS = {"fog": 140, "hail": 3, "rain": 60}
COUNT = sum(PER_CLASS.values())


def picture(number: int) -> np.ndarray:
    """A photo of its own for every number, different in all four corners."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write(path: Path, number: int) -> None:
    """The photo in a file of the same size and time as any other's."""
    Image.fromarray(picture(number)).save(path)
    os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "weather"
    names = [f"{name}/{index:03}.bmp" for name, n in PER_CLASS.items() for index in range(n)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, number)
    return folder


def decode(photos: Path, side: int = SIDE, cache: Path | None = None) -> Decoded:
    cache = cache or photos.parent / "cache"
    return decode_photos(find_photos(photos, cache), side, cache, workers=2)


def ready(decoded: Decoded) -> Path:
    """The folder with the pixels."""
    return Path(str(getattr(decoded.pixels, "filename", None))).parent


def made(decoded: Decoded) -> int:
    """Changes whenever the pixels are written anew."""
    return ready(decoded).stat().st_mtime_ns


@pytest.mark.parametrize("side", [40, 300])
def test_a_photo_is_squashed_upright_and_close_to_its_exact_reduction(tmp_path, side):
    """Also at 300, which takes a second decode: stripes of five pixels are seen, which the
    signatures' decode has lost."""
    levels = np.random.default_rng(0).integers(0, 200, (6, 9, 3)).astype(np.uint8)
    photo = np.array(Image.fromarray(levels).resize((900, 560), Image.Resampling.BICUBIC))
    photo[:, (np.arange(900) // 5) % 2 == 0] += 50
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back to the right before looking at it
    stored = Image.fromarray(photo).rotate(90, expand=True)
    paths = [tmp_path / "w" / name / "a.jpg" for name in ("dew", "rime")]
    for path in paths:
        path.parent.mkdir(parents=True)
        stored.save(path, exif=exif, quality=95, subsampling=0)
    exact = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
    decoded = decode(tmp_path / "w", side)
    assert np.abs(decoded.pixels[0].astype(int) - np.asarray(exact, int)).mean() < 1
    assert np.array_equal(read_square(paths[0], side), decoded.pixels[0])
    assert decoded.groups.tolist() == [0, 0]


def test_the_second_time_nothing_is_decoded_wherever_it_is_started(photos, monkeypatch, capfd):
    cache, first = photos.parent / "cache", decode(photos)
    other_side = decode(photos, 8)
    monkeypatch.chdir(photos)
    assert made(decode(Path(), cache=cache)) == made(first)
    assert made(decode(Path("../weather"), 8, cache=cache)) == made(other_side)
    assert capfd.readouterr().err == ""
    # Another folder of that name has a cache of its own, and the same digest.
    elsewhere = decode(shutil.copytree(photos, photos.parent / "b" / "weather"), cache=cache)
    assert ready(elsewhere) != ready(first)
    assert elsewhere.digest == other_side.digest == first.digest


def swap_classes(folder: Path) -> None:
    for old, new in (("rain", "x"), ("fog", "rain"), ("x", "fog")):
        (folder / old).rename(folder / new)


CHANGES = {
    "content": lambda folder: write(folder / "hail" / "001.bmp", 999),
    "one less": lambda folder: (folder / "rain" / "000.bmp").unlink(),
    "classes swapped": swap_classes,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_photos_that_change_are_decoded_again_and_the_old_pixels_go(photos, change):
    old, other_side = decode(photos), decode(photos, 8)
    change(photos)
    new = decode(photos)
    assert new.digest != old.digest
    for row, path in zip(new.pixels, new.photos.paths, strict=True):
        assert np.array_equal(row, np.asarray(Image.open(photos / path)))
    assert np.array_equal(old.pixels[0], picture(0))  # whoever reads it still can
    assert set(ready(new).parent.glob("w*")) == {ready(new), ready(other_side)}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def other_photos(path: Path) -> None:
    """What another folder of as many photos has left, whole."""
    shutil.copytree(path.parents[2] / "weather", path.parents[2] / "other")
    write(path.parents[2] / "other" / "hail" / "001.bmp", 999)
    shutil.copytree(ready(decode(path.parents[2] / "other")), path.parent, dirs_exist_ok=True)


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip,
    "of others": other_photos,
}


@pytest.mark.parametrize("name", ["pixels.raw", "index.npz"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_decoded_anew_with_a_note(photos, name, damage, capfd):
    (photos / "rain" / "007.bmp").write_text("no photo")
    whole = decode(photos)
    before = np.array(whole.pixels)
    damage(ready(whole) / name)
    again = decode(photos)
    assert np.array_equal(again.pixels, before)
    assert np.array_equal(again.groups, whole.groups)
    assert (again.digest, again.unreadable) == (whole.digest, whole.unreadable)
    note = capfd.readouterr().err
    assert note.startswith("NOTE: ")
    assert note.endswith("is damaged: the photos are decoded anew\n")
    assert made(decode(photos)) == made(again)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_photo_is_in_its_row_and_what_cannot_be_read_is_listed(photos, workers, monkeypatch):
    monkeypatch.setattr("data.cache.ROUND", 50)
    (photos / "fog" / "000.bmp").write_bytes(b"")
    (photos / "rain" / "007.bmp").write_text("no photo")
    cut = photos / "hail" / "002.bmp"
    cut.write_bytes(cut.read_bytes()[:-200])
    found = find_photos(photos, photos.parent)
    (photos / "fog" / "003.bmp").unlink()
    left = [number for number in range(COUNT) if number not in (0, 3, 142, 150)]
    for _ in range(2):  # decoded, and read from the cache
        decoded = decode_photos(found, SIDE, photos.parent / "c", workers=workers)
        paths, reasons = zip(*decoded.unreadable, strict=True)
        assert paths == ("fog/000.bmp", "fog/003.bmp", "hail/002.bmp", "rain/007.bmp")
        assert reasons[:2] == ("not an image, or broken in its first bytes", os.strerror(2))
        assert decoded.rows.tolist() == left
        assert decoded.photos.paths == tuple(found.paths[number] for number in left)
        assert (len(decoded.pixels), decoded.pixels.flags.writeable) == (COUNT, False)
        assert np.array_equal(decoded.pixels[left], [picture(number) for number in left])
        assert decoded.groups.tolist() == [*range(len(left))]
    for path in (photos / "hail").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 'hail': no photo .*'hail/000.bmp' \(not an image"):
        decode(photos)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_an_error_of_the_machine_stops_the_run_and_is_not_remembered(photos, monkeypatch, error):
    def fails(path):
        if path.name == "002.bmp":
            raise error
        return path.read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr("data.cache.read_photo", fails)
        with pytest.raises(UserError, match=r"002\.bmp' could not be read"):
            decode(photos)
    assert decode(photos).unreadable == ()


DECODE = """
import os, sys; from pathlib import Path
from data.cache import decode_photos
from data.photos import find_photos

photos, cache, ending = find_photos(Path(sys.argv[1]), Path()), Path(sys.argv[2]), int(sys.argv[3])
opened = []

def watch(event, arguments):
    if event == "open" and arguments[1] and str(arguments[0]).endswith(".bmp"):
        opened.append(arguments)
        if len(opened) == 100 and ending:
            os.kill(os.getpid(), ending)

sys.addaudithook(watch)
try:
    decode_photos(photos, 16, cache, workers=1)
finally:
    print(len(opened))
"""


def decoding(photos: Path, ending: int = 0):
    """A process that decodes, and gets a signal in the middle of it."""
    return start("-c", DECODE, photos, photos.parent / "cache", ending)


def test_a_run_that_is_interrupted_stops_at_once_and_leaves_nothing(photos):
    out, err = decoding(photos, signal.SIGINT).communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert 100 <= int(out) < COUNT  # those that have not begun are not waited for
    assert not list(photos.parent.rglob("pixels.raw"))


def test_two_at_once_decode_once(photos):
    made = ready(decode(photos))
    shutil.rmtree(made)
    folder = made.parent
    with lock(folder, made.name[:-16]):  # as if a third one were decoding, until both wait for it
        processes = [decoding(photos) for _ in range(2)]
        waiting = [process.stderr and process.stderr.readline() for process in processes]
        assert waiting == [f"waiting for another process in {str(folder)!r} ...\n"] * 2
    opened = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert opened == ["0\n", f"{COUNT}\n"]


def test_a_cache_on_a_full_disk_is_named_and_what_was_begun_is_removed(photos):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cache.* could not be written or .*--cache"):
            decode(photos)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (photos.parent / "cache").rglob("*")] == [".lock"]
