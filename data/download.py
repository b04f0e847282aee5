"""Fetch the weather photos: python -m data.download

They become data/weather.zip, which the scripts use where --data is not given. Needs gdown.
"""

import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from config import ROOT, UserError

GOOGLE_DRIVE_ID = "1fnJMMw0LvDgl-GS4FTou5qAgLxOE2KQ0"


def fetch_photos(target: Path) -> None:
    """Download the archive from Google Drive to `target`, where it appears complete. Raises
    UserError when it cannot be had; says how to get it by hand."""
    page = f"https://drive.google.com/file/d/{GOOGLE_DRIVE_ID}"
    by_hand = f"or download {page} in a browser, save it as {target}"
    if target.exists():
        raise UserError(f"{target} exists already; delete it to fetch it again")
    from torchvision.datasets.utils import download_file_from_google_drive  # takes seconds

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as work:
        try:
            download_file_from_google_drive(GOOGLE_DRIVE_ID, work, "archive")
        except Exception as error:  # of gdown, requests and the system; or gdown is missing
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"Google Drive did not give the archive ({why})\n{by_hand}") from error
        archive = Path(work) / "archive"
        if not (zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)):
            raise UserError(f"Google Drive gave a page instead of the archive\n{by_hand}")
        archive.rename(target)


def main() -> int:
    target = ROOT / "data" / "weather.zip"
    try:
        fetch_photos(target)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target} is complete: train.py and knowledge_distillation.py use it from now on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
