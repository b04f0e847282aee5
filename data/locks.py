"""One process at a time, and files that are there as a whole."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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
    """Hold the lock file: one process at a time, where the disk knows locks. A killed process frees
    it, and the file goes when it is freed, unless the holder has given it another name."""
    while True:
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process in {str(lock.parent)!r} ...", file=sys.stderr)
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:
                pass
            # The former holder has removed its file: this must be the one of that name.
            if not _is_named(held, lock):
                continue
            try:
                yield
            finally:
                if _is_named(held, lock):
                    lock.unlink()
            return


def _is_named(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_whole(path: Path, content: bytes | str) -> None:
    """Write to another name, then rename: nobody ever reads half a file, two processes may write
    it at once, and what a killed one has begun is gone when the next has written it.

    Raises OSError where it cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with only_one(unfinished):
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
