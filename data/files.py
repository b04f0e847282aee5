"""Files and folders that are written atomically, CSV, JSON, and locks between processes."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from config import UserError, one_line

FREE_SPACE = "point --cache to a folder with enough space that you can write"
try:
    import fcntl
except ImportError:  # Windows: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read bytes. Raises FileNotFoundError for devices and pipes, which block."""
    with suppress(NotADirectoryError):  # its folder is a file
        if stat.S_ISREG(path.stat().st_mode):
            return path.open("rb")
    raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder and what is in it, if it exists. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


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
    except OSError as error:
        error.filename = str(path)  # on a full disk, the error names no file
        raise
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new empty folder to fill, which replaces `path` when the block ends without an error.
    Hold a lock around it: what a killed process left unfinished is removed first."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        remove(stale)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        remove(path)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def locks(folder: Path) -> Iterator[Callable[..., bool]]:
    """Yields `hold(name, shared=False, wait=False)`, which locks a name in this folder until the
    block ends, exclusively or shared; a second call changes the mode. It returns False if another
    process has the lock or, with `wait`, prints a line on stderr and waits. A killed process leaves
    no lock behind. Within one process, open a folder once at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with suppress(OSError):  # the file belongs to another user
        os.chmod(handle, 0o666)

    def hold(name: str, shared: bool = False, wait: bool = False) -> bool:
        if fcntl is None:
            return True  # type: ignore[unreachable]
        byte = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7])
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(handle, kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # systems differ
            if not wait:
                return False
            print(f"waiting for another process in {str(folder)!r} ...", file=sys.stderr)
            fcntl.lockf(handle, kind, 1, byte)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"NOTE: the disk of {str(folder)!r} does not support locks", file=sys.stderr)
        return True

    try:
        yield hold
    finally:
        os.close(handle)


@contextmanager
def lock(folder: Path, name: str = "") -> Iterator[None]:
    """Wait until no other process holds the folder, or a name in it, and hold it."""
    with ExitStack() as until_done:
        try:
            until_done.enter_context(locks(folder))(name, wait=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise  # a read-only folder cannot change, so it needs no lock
        yield


def build_once(folder: Path, make: Callable[[Path], None], key: str = "") -> Path:
    """A folder of files that `make` fills, once for all processes, and again for another key or
    where one of the files is missing or has another size or time. Raises what `make` raises."""
    files, manifest = folder / "files", folder / "manifest"
    with lock(folder.parent):
        with suppress(FileNotFoundError), open_regular(manifest) as file:
            if file.read() == key.encode() + _list_files(files):
                return files
        with atomic_folder(folder) as new:
            (new / files.name).mkdir()
            make(new / files.name)
            atomic_write(new / manifest.name, key.encode() + _list_files(new / files.name))
    return files


def _list_files(folder: Path) -> bytes:
    lines = []
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            status = os.lstat(path)
            about = status.st_mode, status.st_size, status.st_mtime_ns
            lines.append(f"{os.path.relpath(path, folder)!a} {about}\n")
    return "".join(sorted(lines)).encode()


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as comma-separated values, one line each."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # before Python 3.13, its "\r\n" makes it quote a lone "\r"
    return text.getvalue().replace("\r\n", "\n")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON, with a checksum by which `read_json` sees that it is unchanged."""
    atomic_write(path, json.dumps(content | {"sum": _checksum(path, content)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; raises UserError when it is missing, damaged or edited."""
    with suppress(ValueError, TypeError, RecursionError, FileNotFoundError):
        with open_regular(path) as file:
            content = dict(json.loads(file.read(1 << 28)))
        if content.pop("sum", "") == _checksum(path, content):
            return content
    hint = "train its run again with --overwrite (baselines and teachers by train.py)"
    raise UserError(f"{path} is missing, damaged, edited or of another version: {hint}")


def _checksum(path: Path, content: dict[str, Any]) -> str:
    """Covers the file's name, too, so that one file copied over another is noticed."""
    return hashlib.sha256(json.dumps([path.name, content]).encode()).hexdigest()[:16]


def lacks_memory(problem: Exception) -> bool:
    """Whether memory or threads ran out, for which torch and Python may raise a RuntimeError."""
    text = "out of memory|alloc_failed|allocate memory|start new thread|create a primitive"
    return isinstance(problem, MemoryError) or bool(re.search(text, str(problem), re.I))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise UserError for any exception inside, such as torch's on files it did not write, except
    UserError itself, disk errors and lack of memory, which pass through."""
    try:
        yield
    except Exception as problem:
        of_disk = isinstance(problem, OSError) and problem.errno != errno.EINVAL  # of a bad offset
        if of_disk or lacks_memory(problem) or isinstance(problem, UserError):
            raise
        hint = "; pip install it" * isinstance(problem, ModuleNotFoundError)
        raise UserError(f"{what} ({one_line(problem)}{hint})") from problem
