"""Run a script and send it a signal while it changes files.

    python -m tests.killed_program FOLDER NAME SIGNAL NUMBER MILLISECONDS SCRIPT [WORDS ...]

Counts the changes to paths under FOLDER that contain NAME: a file opened for writing, anything
renamed or removed, a folder created. SIGNAL is sent MILLISECONDS after change NUMBER, or just
before it if MILLISECONDS is 0; if NUMBER is 0, never, and stderr ends with the number of changes.
"""

import os
import runpy
import sys
import threading
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

folder, name = sys.argv[1:3]
ending, number = map(int, sys.argv[3:5])
seconds = float(sys.argv[5]) / 1000
changes = 0


def watch(event: str, about: tuple[Any, ...]) -> None:
    global changes
    if not (event in CHANGES or (event == "open" and about[2] & WRITES)):
        return
    # Where a folder is emptied, names come without it.
    path = "" if isinstance(about[0], int) else os.fsdecode(about[0])
    if name not in path or (os.path.isabs(path) and not path.startswith(folder + os.sep)):
        return
    changes += 1
    if changes == number and seconds:
        threading.Timer(seconds, os.kill, (os.getpid(), ending)).start()
    elif changes == number:
        os.kill(os.getpid(), ending)


sys.addaudithook(watch)
sys.argv = sys.argv[6:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if not number:
        print(changes, file=sys.stderr)
