"""The cache: decoded once, right, whole, and rebuilt when the photos change or it is damaged."""

import os
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from config import UserError
from data.cache import Decoded, decode_photos, read_square
from data.files import lock
from data.listing import find_photos
from data.photos import UnreadablePhoto
from tests.photo_folders import start

SIDE = 16
PER_CLASS = {"fog": 70, "hail": 3, "rain": 30}
COUNT = sum(PER_CLASS.values())
GONE = UnreadablePhoto(os.strerror(2))


def picture(number: int) -> np.ndarray:
    """A photo of its own for every number, different in all four corners."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write(path: Path, number: int) -> None:
    """The photo in a file of the same size and time as any other's."""
    Image.fromarray(picture(number)).save(path)
    os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def photos(tmp_path) -> Path:
    names = [f"{name}/{index:03}.bmp" for name, n in PER_CLASS.items() for index in range(n)]
    for number, name in enumerate(names):
        (tmp_path / "weather" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "weather" / name, number)
    return tmp_path / "weather"


def decode(photos: Path, side: int = SIDE, cache: Path | None = None) -> Decoded:
    cache = cache or photos.parent / "cache"
    return decode_photos(find_photos(photos, cache), side, cache)


def ready(decoded: Decoded) -> Path:
    """The folder with the pixels."""
    return Path(str(getattr(decoded.pixels, "filename", None))).parent


def made(decoded: Decoded) -> int:
    """Changes whenever the pixels are written anew."""
    return ready(decoded).stat().st_mtime_ns


@pytest.mark.parametrize("side", [40, 300])
def test_a_photo_is_squashed_close_to_its_exact_reduction(tmp_path, side):
    """At 300 px a second decode is needed: the one for signatures loses the five-pixel stripes."""
    levels = np.random.default_rng(0).integers(0, 200, (6, 9, 3)).astype(np.uint8)
    photo = np.array(Image.fromarray(levels).resize((900, 560), Image.Resampling.BICUBIC))
    photo[:, (np.arange(900) // 5) % 2 == 0] += 50
    image = Image.fromarray(photo)
    paths = [tmp_path / "w" / name / "a.jpg" for name in ("dew", "rime")]
    for path in paths:
        path.parent.mkdir(parents=True)
        image.save(path, quality=95, subsampling=0)
    exact = image.resize((side, side), Image.Resampling.BILINEAR)
    decoded = decode(tmp_path / "w", side)
    assert np.abs(decoded.pixels[0].astype(int) - np.asarray(exact, int)).mean() < 1
    assert np.array_equal(read_square(paths[0], side), decoded.pixels[0])
    assert decoded.groups.tolist() == [0, 0]


def test_photos_are_decoded_once_and_again_when_they_change(photos, monkeypatch, capfd):
    cache, old, other_side = photos.parent / "cache", decode(photos), decode(photos, 8)
    monkeypatch.chdir(photos)
    assert made(decode(Path(), cache=cache)) == made(old)
    assert find_photos(Path(), cache).notes == ()
    assert made(decode(Path("../weather"), 8, cache=cache)) == made(other_side)
    assert capfd.readouterr().err == ""
    # Another folder of that name has a cache of its own, and the same digest.
    elsewhere = decode(shutil.copytree(photos, photos.parent / "b" / "weather"), cache=cache)
    assert elsewhere.digest == other_side.digest == old.digest
    for change in (
        partial(write, photos / "hail" / "001.bmp", 999),
        partial((photos / "rain").rename, photos / "dew"),
    ):
        change()
        new = decode(photos)
        assert new.digest != old.digest
        for row, path in zip(new.pixels, new.photos.paths, strict=True):
            assert np.array_equal(row, np.asarray(Image.open(photos / path)))
        assert set(cache.glob("w*")) == {ready(new), ready(other_side), ready(elsewhere)}
    assert np.array_equal(old.pixels[0], picture(0))  # whoever reads it still can


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def other_photos(path: Path) -> None:
    """Replace the cache with an intact one of another folder with the same number of photos."""
    shutil.copytree(path.parents[2] / "weather", path.parents[2] / "other")
    write(path.parents[2] / "other" / "hail" / "001.bmp", 999)
    shutil.copytree(ready(decode(path.parents[2] / "other")), path.parent, dirs_exist_ok=True)


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
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
    assert re.fullmatch("NOTE: .* is damaged: decoding the photos again\n", capfd.readouterr().err)
    assert made(decode(photos)) == made(again)


def test_every_photo_is_in_its_row_and_what_cannot_be_read_is_listed(photos, monkeypatch):
    monkeypatch.setattr("data.cache.ROUND", 50)
    (photos / "fog" / "000.bmp").write_bytes(b"")
    (photos / "rain" / "007.bmp").write_text("no photo")
    (cut := photos / "hail" / "002.bmp").write_bytes(cut.read_bytes()[:-200])
    found = find_photos(photos, photos.parent)
    (photos / "fog" / "003.bmp").unlink()
    left = [number for number in range(COUNT) if number not in (0, 3, 72, 80)]
    for _ in range(2):  # decoded, and read from the cache
        decoded = decode_photos(found, SIDE, photos.parent / "c")
        paths, reasons = zip(*decoded.unreadable, strict=True)
        assert paths == ("fog/000.bmp", "fog/003.bmp", "hail/002.bmp", "rain/007.bmp")
        assert reasons[:2] == ("not an image, or a corrupt header", os.strerror(2))
        assert decoded.rows.tolist() == left
        assert decoded.photos.paths == tuple(found.paths[number] for number in left)
        assert (len(decoded.pixels), decoded.pixels.flags.writeable) == (COUNT, False)
        assert np.array_equal(decoded.pixels[left], [picture(number) for number in left])
        assert decoded.groups.tolist() == [*range(len(left))]
    parts = np.where(np.arange(COUNT) == 0, "test", "train")
    with pytest.raises(UserError, match=r"part 'test': no photo .*'fog/000.bmp'"):
        decode_photos(replace(found, given=parts), SIDE, photos.parent / "c")
    for path in (photos / "hail").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 'hail': no photo .*'hail/000.bmp' \(not an image"):
        decode(photos)


@pytest.mark.parametrize("why", [OSError(5, "no"), MemoryError, KeyboardInterrupt, GONE])
def test_a_system_error_stops_decoding_at_once_and_is_not_cached(photos, monkeypatch, why):
    read = []

    def fails(path):
        time.sleep(0.01)
        read.append(path)
        if path.name == "010.bmp":
            raise why
        return path.read_bytes()

    says = r"^no permission to read 103 photos, such as .*000\.bmp'$"
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda *_: False)
        with pytest.raises(UserError, match=says):
            decode(photos)
    with monkeypatch.context() as patched:
        patched.setattr("data.cache.read_photo", fails)
        says = r"010\.bmp' could not be read: (no|out of memory)$|^$"
        says += r"|^2 photos disappeared, such as .*fog/010\.bmp': restore them$"
        with pytest.raises((UserError, KeyboardInterrupt), match=says):
            decode(photos)
    # Those that have not begun are not waited for; that photos disappeared is seen at the end.
    assert (len(read) < COUNT) == (why is not GONE)
    assert not list(photos.parent.rglob("pixels.raw"))
    assert decode(photos).unreadable == ()


def test_two_at_once_decode_once(photos):
    code = f"from tests.test_cache import *; print(made(decode(Path({str(photos)!r}))))"
    before = ready(decode(photos))
    shutil.rmtree(before)
    with lock(before.parent, before.name[:-16]):  # as if a third one were decoding
        processes: list[Any] = [start("-c", code) for _ in range(2)]
        assert all(p.stderr.readline().startswith("waiting for another") for p in processes)
    first, second = (process.communicate(timeout=60) for process in processes)
    assert first == second != ("", "")


def test_on_a_full_disk_the_error_names_the_cache_and_partial_files_are_removed(photos):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    with pytest.raises(UserError, match=r"cache.* could not be written or .*--cache"):
        decode(photos)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (photos.parent / "cache").rglob("*")] == [".lock"]
