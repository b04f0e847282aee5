"""Fetch the weather photos into data/weather, which appears when it is complete.

    python -m data.download                                    # from Google Drive, needs gdown
    python -m data.download --archive ~/Downloads/weather.zip  # downloaded by hand in a browser
    python -m data.download --archive https://host/weather.zip

An archive of other classes than the eleven of weather changes nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from config import UserError
from data.archives import unpack
from data.files import atomic_folder, lock
from data.photos import Photos, find_photos
from data.sample import CLASSES

GOOGLE_DRIVE_ID = "1fnJMMw0LvDgl-GS4FTou5qAgLxOE2KQ0"
BY_HAND = (
    f"or download https://drive.google.com/file/d/{GOOGLE_DRIVE_ID} in a browser, then: "
    "python -m data.download --archive FILE"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the photos as the command line says; the exit status: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m data.download", allow_abbrev=False)
    parser.add_argument("--archive", metavar="FILE_OR_URL", help="zip or tar of the photos")
    parser.add_argument("--into", type=Path, default="data/weather", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the photos in --into")
    args = parser.parse_args(argv)
    try:
        photos = fetch_photos(args.archive, args.into.expanduser().resolve(), args.overwrite)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    print(f"{len(photos)} photos of {len(photos.classes)} classes in {str(photos.root)!r}")
    return 0


def fetch_photos(archive: str | None, into: Path, overwrite: bool) -> Photos:
    """Put the class folders of an archive (None: Google Drive's) into `into`, all or none.

    Raises UserError: no network, no archive, other classes, or something else in `into`; OSError.
    """
    inside = {path.name for path in into.iterdir()} if into.exists() else set()
    if other := sorted(name for name in inside.difference(CLASSES) if not name.startswith(".")):
        raise UserError(f"{str(into)!r} holds {other[0]!r}: move it away or choose another --into")
    if inside and not overwrite:
        try:
            photos = _find_weather(into)
        except UserError as error:
            raise UserError(f"{error}\nreplace what is there with --overwrite") from error
        print("already there (--overwrite fetches them again):")
        return photos
    into.parent.mkdir(parents=True, exist_ok=True)
    with lock(into.parent), tempfile.TemporaryDirectory(".tmp", ".weather", into.parent) as work:
        photos = _find_weather(_unpack(archive, Path(work)))
        with atomic_folder(into) as folder:
            for name in photos.classes:
                (photos.root / name).rename(folder / name)
    return _find_weather(into)


def _find_weather(folder: Path) -> Photos:
    photos = find_photos(folder, folder)
    if wrong := set(CLASSES).symmetric_difference(photos.classes):
        raise UserError(f"missing or unknown classes of weather in {str(folder)!r}: {wrong}")
    return photos


def _unpack(archive: str | None, work: Path) -> Path:
    """Get the archive, and unpack it below work."""
    try:
        if archive is None:
            from torchvision.datasets.utils import download_file_from_google_drive  # takes seconds

            download_file_from_google_drive(GOOGLE_DRIVE_ID, work, "weather")
        elif archive.startswith(("http://", "https://")):
            from torch.hub import download_url_to_file  # takes seconds

            download_url_to_file(archive, str(work / "weather"), progress=sys.stderr.isatty())
        else:
            return unpack(Path(archive).expanduser(), work)
        return unpack(work / "weather", work)
    except Exception as error:  # of gdown, urllib, http.client, the disk
        source = archive or "Google Drive"
        raise UserError(f"{source!r}: {' '.join(str(error).split())[:300]}\n{BY_HAND}") from error


if __name__ == "__main__":
    sys.exit(main())
