"""What every script does around its work: report problems in a line, say where things are."""

import errno
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from config import UserError
from utils.ranks import joined
from utils.tracking import from_here, tensorboard_command

# A full disk, a quota, a file too large for its disk, a folder that may not be written or whose
# name a file has, a disk that fails or is gone.
OUT_OF_OUR_HANDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
                    errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
                    errno.ENODEV, errno.ENOTCONN)  # fmt: skip


def run_script(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run `main` and return the exit status: 2 for the user's mistakes, 130 or 143 when SIGINT
    (Ctrl-C) or SIGTERM (a scheduler's, before it kills) stops it.

    Whatever is being written then is either whole or not there.
    """
    before = signal.signal(signal.SIGTERM, terminate)
    # A log file is to be followed while the run goes on, and a terminal that lacks a letter is no
    # reason to stop.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with joined():
            main(arguments)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        if problem.errno not in OUT_OF_OUR_HANDS:
            raise
        what = f"{problem.filename}: " if problem.filename else ""
        print(f"error: {what}{problem.strerror}; once fixed, --resume goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        how = "the same command with --resume goes on"
        if "--overwrite" in arguments:
            how = "once an epoch is done, --resume instead of --overwrite goes on"
        print(f"\nstopped; {how}", file=sys.stderr)
        return 143 if isinstance(stopped, Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM has come; whoever lets Ctrl-C through lets this through."""


def terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the leaving
    raise Terminated


def say_where(output: Path) -> None:
    """Print where a command's results lie and how to look at its curves."""
    for what in ("results", "checkpoints"):
        print(f"{what:12} {from_here(output / what)}")
    print(f"{'curves':12} {tensorboard_command(output / 'logs')}")
