"""Files and folders that appear whole or not at all, csv, and locks between processes."""

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]


def atomic_write(path: Path, content: bytes | str | memoryview) -> None:
    """Write a file that appears under its name only when it is complete and on the disk.

    A killed process leaves at most a hidden file `.NAME.*.tmp` beside it. Raises OSError.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(".tmp", f".{path.name[:200]}.", path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o666 & ~UMASK)  # mkstemp's files are for their owner only
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new empty folder to fill, which replaces `path` when the block ends without an error.

    Hold `lock(path.parent)` around it: what a killed process left unfinished is removed first.
    """
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    try:
        (work / "new").mkdir()
        yield work / "new"
        if path.exists():
            path.rename(work / "old")
        (work / "new").rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder for this process; with `wait=False`, yields False where another one has it.

    Nothing is written, and the lock of a killed process is gone. Yields True without a lock where
    the system or the disk knows none.
    """
    if fcntl is None:
        yield True  # type: ignore[unreachable]
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(handle)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as comma-separated values, one line each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


UMASK = os.umask(0)
os.umask(UMASK)
