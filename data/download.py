"""Fetch the weather photos into data/weather.

    python -m data.download                                    # from Google Drive, needs gdown
    python -m data.download --archive ~/Downloads/weather.zip  # downloaded by hand in a browser
    python -m data.download --archive https://host/weather.zip

The folder appears when it is complete, with the eleven classes of weather in it.
"""

import argparse
import http.client
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from config import UserError
from data.photos import Photos, find_photos

WEATHER_CLASSES = (
    "dew", "fogsmog", "frost", "glaze", "hail", "lightning",
    "rain", "rainbow", "rime", "sandstorm", "snow",
)  # fmt: skip
GOOGLE_DRIVE_ID = "1fnJMMw0LvDgl-GS4FTou5qAgLxOE2KQ0"
BY_HAND = "download it in a browser, then: python -m data.download --archive FILE"


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
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


def fetch_photos(archive: str | None, into: Path, overwrite: bool) -> None:
    """Fetch the archive (None: Google Drive's), check it, and put its class folders into `into`.

    Prints the number of photos of each class. Does nothing if the photos are there already.
    Raises UserError: no network, not an archive, other classes, or something else in `into`.
    """
    into = into.expanduser().resolve()
    if into in (Path.home(), Path.cwd(), *Path.cwd().parents):
        raise UserError(f"--into {str(into)!r} would replace a folder in use: name a folder in it")
    try:
        if not overwrite and _is_complete(into):
            print(f"{str(into)!r} is complete already (--overwrite fetches it again)")
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            # Beside it, on the same disk, so that what is complete appears at once.
            with tempfile.TemporaryDirectory(dir=into.parent, prefix=".download-") as work:
                root = _fetch(archive, into, Path(work))
                if into.exists():
                    into.rename(Path(work) / "replaced")
                root.rename(into)
        _print_counts(find_photos(into, into))
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
    if archive is None:
        packed = _from_google_drive(work)
    elif archive.startswith(("http://", "https://")):
        packed = _from_url(archive, work)
    else:
        packed = Path(archive).expanduser()
    if not packed.is_file():
        raise UserError(f"--archive {archive!r} is no file and no http(s) address")
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
    return photos.root


def _from_google_drive(work: Path) -> Path:
    page = f"https://drive.google.com/file/d/{GOOGLE_DRIVE_ID}: {BY_HAND}"
    if find_spec("gdown") is None:
        raise UserError(f"Google Drive needs the package gdown: pip install gdown\nor {page}")
    from torchvision.datasets.utils import download_file_from_google_drive  # takes seconds

    try:
        download_file_from_google_drive(GOOGLE_DRIVE_ID, work, "archive")
    except Exception as error:  # gdown raises errors of its own, of requests, and of the system
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"Google Drive did not give the archive ({why})\n{page}") from error
    return work / "archive"


def _from_url(url: str, work: Path) -> Path:
    from torch.hub import download_url_to_file  # takes seconds

    try:
        download_url_to_file(url, str(work / "archive"), progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise UserError(f"cannot download {url!r} ({why})\n{BY_HAND}") from error
    return work / "archive"


if __name__ == "__main__":
    sys.exit(main())
