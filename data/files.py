"""Files and folders that appear whole or not at all, csv, JSON, and locks between processes."""

import csv
import glob
import hashlib
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from config import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]


def atomic_write(path: Path, content: bytes | str | memoryview) -> None:
    """Write a file that appears under its name only when it is complete and on the disk; a killed
    process leaves at most a hidden file `.NAME.*.tmp` beside it. Raises OSError."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("xb") as file:  # never through a link that somebody has put there
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new empty folder to fill, which replaces `path` when the block ends without an error.
    Hold `lock(path.parent)` around it: what a killed process left unfinished is removed first."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder for this process; with `wait=False`, yields False where another one has it.

    Without a lock it yields True where the system or the disk knows none. A line on stderr tells
    that it waits. A killed process leaves nothing behind.
    """
    if fcntl is None:
        yield True  # type: ignore[unreachable]
        return
    handle, held = os.open(folder, os.O_RDONLY), True
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = wait
                if wait:
                    print(f"waiting for another process in {str(folder)!r} ...", file=sys.stderr)
                    fcntl.flock(handle, fcntl.LOCK_EX)
        yield held
    finally:
        os.close(handle)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as comma-separated values, one line each."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # before Python 3.13, its "\r\n" makes it quote a lone "\r"
    return text.getvalue().replace("\r\n", "\n")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON, with a checksum by which `read_json` sees that it is unchanged."""
    atomic_write(path, json.dumps(content | {"sum": _checksum(content)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; raises UserError when it is missing, damaged or edited."""
    with suppress(ValueError, TypeError, RecursionError):
        content = dict(json.loads(path.read_bytes())) if path.is_file() else {}
        if content.pop("sum", "") == _checksum(content):
            return content
    raise UserError(
        f"{path} is missing, damaged, edited or of another version: train its run again with "
        "--overwrite (baselines and teachers by train.py)"
    )


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
