"""One process at a time."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def taken(folder: Path) -> Iterator[bool]:
    """Keep a folder for this process, and tell whether that worked or another process has it.

    Nothing is written, and a killed process frees it. True where the disk knows no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(handle)


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold the lock file: one process at a time. A killed process frees it."""
    while True:
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process in {str(lock.parent)!r} ...", file=sys.stderr)
                fcntl.flock(held, fcntl.LOCK_EX)
            try:  # the former holder has removed its file: this must be the one of that name
                if not os.path.samestat(os.fstat(held.fileno()), lock.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
