"""A script that gets a signal while it changes files.

    python -m tests.killed_program FOLDER SIGNAL NUMBER MILLISECONDS SCRIPT [WORDS ...]

Counts the changes below FOLDER: a file that is opened to be written, anything that is renamed or
removed, a folder that is made. MILLISECONDS after the one of that NUMBER, or just before it where
they are 0, comes SIGNAL, and FOLDER.changes says what the change was. With NUMBER 0 none comes,
and the last line on stderr is how many changes there were.
"""

import os
import runpy
import sys
import threading
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main(
    folder: str, sent: int, number: int, milliseconds: float, script: str, *words: str
) -> None:
    changes = 0

    def watch(event: str, about: tuple[Any, ...]) -> None:
        nonlocal changes
        if not (event in CHANGES or (event == "open" and about[2] & WRITES)):
            return
        # Where a folder is emptied, names come without it.
        path = "" if isinstance(about[0], int) else os.fsdecode(about[0])
        if not (path.startswith(folder + os.sep) or not os.path.isabs(path)):
            return
        changes += 1
        if changes != number:
            return
        line = f"{event} {path.removeprefix(folder)}\n".encode("utf-8", "surrogateescape")
        descriptor = os.open(folder + ".changes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line)
        if milliseconds:
            threading.Timer(milliseconds / 1000, os.kill, (os.getpid(), sent)).start()
        else:
            os.kill(os.getpid(), sent)

    sys.addaudithook(watch)
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        if not number:
            print(changes, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
