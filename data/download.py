"""Fetch the weather photos into data/weather.

    python -m data.download                                    # from Google Drive, needs gdown
    python -m data.download --archive ~/Downloads/weather.zip  # downloaded by hand in a browser
    python -m data.download --archive https://host/weather.zip

The download goes on where it was interrupted, if the server can do that. The folder appears when
it is complete, with the eleven classes of weather in it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import UserError
from data.locks import only_one
from data.photos import Photos, find_photos

WEATHER_CLASSES = (
    "dew", "fogsmog", "frost", "glaze", "hail", "lightning",
    "rain", "rainbow", "rime", "sandstorm", "snow",
)  # fmt: skip
GOOGLE_DRIVE_ID = "1fnJMMw0LvDgl-GS4FTou5qAgLxOE2KQ0"
BY_HAND = "download it in a browser, then: python -m data.download --archive FILE"
TIMEOUT_SECONDS = 60
_CHUNK = 1 << 18


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the photos as the command line says; the exit status: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m data.download", description="Fetch the weather photos.", allow_abbrev=False
    )
    parser.add_argument(
        "--archive",
        metavar="PATH_OR_URL",
        help="zip or tar archive of the photos: a file, or an http(s) address "
        f"(default: the file {GOOGLE_DRIVE_ID} on Google Drive)",
    )
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("data/weather"),
        help="folder for the class folders (default: %(default)s, where train.py looks)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in that folder")
    args = parser.parse_args(argv)
    try:
        fetch_photos(args.archive, args.into, args.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def fetch_photos(archive: str | None, into: Path, overwrite: bool) -> None:
    """Fetch the archive (None: Google Drive's), check it, and put its class folders into `into`.

    Prints the number of photos of each class. Does nothing if the photos are there already.
    Raises UserError: no network, not an archive, other classes, or something else in `into`.
    """
    into = into.expanduser().resolve()
    if into in (Path(os.path.expanduser("~")), Path.cwd(), *Path.cwd().parents):
        raise UserError(f"--into {str(into)!r} would replace a folder in use: name a folder in it")
    work = into.with_name(f".{into.name}-download")
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with only_one(into.with_name(f".{into.name}-download.lock")):
            if not overwrite and _is_complete(into):
                print(f"{str(into)!r} is complete already (--overwrite fetches it again)")
            else:
                _replace(into, _fetch(archive, into, work), work)
            shutil.rmtree(work, ignore_errors=True)
        _print_counts(find_photos(into, work))
    except OSError as error:
        raise UserError(f"cannot write {str(into)!r}: {error.strerror or error}") from error


def _is_complete(folder: Path) -> bool:
    """Whether the photos are there; UserError if something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        _check_classes(find_photos(folder, folder))
    except UserError as error:
        raise UserError(
            f"{str(folder)!r} holds something else ({error}): "
            "move it away, choose another --into, or replace it with --overwrite"
        ) from error
    return True


def _check_classes(photos: Photos) -> None:
    found, known = {name.casefold() for name in photos.classes}, set(WEATHER_CLASSES)
    if found != known:
        raise UserError(
            "these are not the eleven classes of weather: "
            f"missing {sorted(known - found)}, unknown {sorted(found - known)}; "
            "photos of other classes can be given to train.py with --data"
        )


def _print_counts(photos: Photos) -> None:
    counts = np.bincount(photos.labels, minlength=len(photos.classes))
    for name, count in zip(photos.classes, counts, strict=True):
        print(f"  {name:<10}{count:>6}")
    print(f"{len(photos)} photos of {len(photos.classes)} classes in {str(photos.root)!r}")


def _fetch(archive: str | None, into: Path, work: Path) -> Path:
    """Get the archive and unpack it below work; return the folder of its class folders."""
    packed = _locate(archive, work)
    try:
        if packed.resolve().is_relative_to(into):
            raise UserError(f"{str(packed)!r} lies in the folder that it would replace: move it")
        with packed.open("rb") as file:
            if file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html")):
                raise UserError(
                    f"{archive or 'Google Drive'} gave a web page, not an archive (Google Drive "
                    f"does so when a file was fetched too often that day): {BY_HAND}"
                )
        photos = find_photos(packed, work / "unpacked")
        _check_classes(photos)
    except UserError:
        shutil.rmtree(work, ignore_errors=True)  # nothing in it is worth going on from
        raise
    return photos.root


def _replace(into: Path, root: Path, work: Path) -> None:
    """Put the folder root in the place of into, which goes into work."""
    shutil.rmtree(work / "replaced", ignore_errors=True)
    if into.exists():
        into.rename(work / "replaced")
    root.rename(into)


def _locate(archive: str | None, work: Path) -> Path:
    """The archive as a file on this machine, downloaded into work if it is not there yet."""
    if archive is None:
        return _from_google_drive(work)
    if archive.startswith(("http://", "https://")):
        return _from_url(archive, work)
    path = Path(archive).expanduser()
    if not path.is_file():
        raise UserError(f"--archive {archive!r} is no file and no http(s) address")
    return path


def _from_google_drive(work: Path) -> Path:
    page = f"https://drive.google.com/file/d/{GOOGLE_DRIVE_ID}: {BY_HAND}"
    if find_spec("gdown") is None:
        raise UserError(f"Google Drive needs the package gdown: pip install gdown\nor {page}")
    from torchvision.datasets.utils import download_file_from_google_drive  # takes seconds

    packed = work / "google-drive-archive"
    try:
        download_file_from_google_drive(GOOGLE_DRIVE_ID, work, packed.name)
    except Exception as error:  # gdown raises errors of its own, of requests, and of the system
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"Google Drive did not give the archive ({why})\n{page}") from error
    return packed


def _from_url(url: str, work: Path) -> Path:
    """Download url, on from where an earlier try stopped if the same file is still there."""
    part, note = work / "archive.part", work / "archive.json"
    start, version = _resumable(url, part, note)
    headers = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    print(f"downloading {url!r}" + (f", on from byte {start}" if start else ""), flush=True)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "python", **headers})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            if not (start and response.status == HTTPStatus.PARTIAL_CONTENT):
                start = 0
                part.unlink(missing_ok=True)
                work.mkdir(exist_ok=True)
                note.write_text(json.dumps({"url": url, "version": _version(response.headers)}))
            _save(response, part, start)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            if error.headers["Content-Range"] == f"bytes */{start}":
                return part  # it was complete
            part.unlink()
            return _from_url(url, work)
        raise UserError(f"cannot download {url!r} ({error})\n{BY_HAND}") from error
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise UserError(f"cannot download {url!r} ({why})\n{BY_HAND}") from error
    return part


def _resumable(url: str, part: Path, note: Path) -> tuple[int, str]:
    """How many bytes of url are here, and of which version of it; (0, "") if that is not known."""
    try:
        known = json.loads(note.read_text())
        if known["url"] == url and known["version"]:
            return part.stat().st_size, known["version"]
    except (OSError, ValueError):
        pass
    return 0, ""


def _version(headers: http.client.HTTPMessage) -> str:
    """What a server calls this version of a file, fit for If-Range, which takes no weak ETag."""
    tag = headers["ETag"] or "W/"
    return headers["Last-Modified"] or "" if tag.startswith("W/") else tag


def _save(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    """Append the response to part, of which start bytes are there; UserError if it ends early."""
    length = response.headers["Content-Length"]
    total = start + int(length) if length else None
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None)
    with bar, part.open("ab") as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise UserError(
            f"the connection broke after {size} of {total} bytes: "
            "the same command goes on from there"
        )


if __name__ == "__main__":
    sys.exit(main())
