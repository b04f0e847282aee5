import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.files import atomic_folder, atomic_write, csv_text, lock

HEAD = """
import os, sys; from pathlib import Path
if sys.argv[1] == "hidden": sys.modules["fcntl"] = None  # as on Windows
from data.files import *
path, word = Path(sys.argv[2]), sys.argv[3]
"""


def start(code, *arguments):
    run = [sys.executable, "-c", HEAD + code, *arguments]
    return subprocess.Popen(run, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE)


def test_a_file_is_written_with_the_usual_permissions_or_not_at_all(tmp_path):
    path, plain = tmp_path / "new" / "file", tmp_path / "plain"
    plain.touch()
    for content in (b"bytes", memoryview(b"memory"), "text \udcff"):
        atomic_write(path, content)
        assert path.stat().st_mode == plain.stat().st_mode
    assert path.read_bytes() == b"text \xff"
    with pytest.raises(OSError, match="directory"):
        atomic_write(path.parent, "over a folder")
    path.unlink()
    path.symlink_to(plain)
    atomic_write(path, "in place of the link")
    assert (path.read_text(), plain.read_text()) == ("in place of the link", "")
    assert sorted(os.listdir(tmp_path)) == ["new", "plain"]


@pytest.mark.parametrize("fcntl", ["there", "hidden"])
def test_what_several_processes_write_at_once_is_always_whole(tmp_path, fcntl):
    code = """for number in range(100):
        atomic_write(path / "file", word * (1 + number % 7 * 5000))
        assert len(set((path / "file").read_text())) == 1
    with lock(path) as held, atomic_folder(path / word) as folder:
        (folder / str(held)).touch()
    """.replace("\n    ", "\n")
    writers = [start(code, fcntl, tmp_path, letter) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"file", "a", "b", "c", "a/True", "b/True", "c/True"}


def test_a_folder_replaces_another_only_when_it_is_complete(tmp_path):
    path = tmp_path / "[folder]"
    for number in "12":
        with atomic_folder(path) as new:
            (new / number).touch()
        assert os.listdir(path) == [number]
    for problem in (KeyError, FileNotFoundError):
        with pytest.raises(problem), atomic_folder(path) as new:  # noqa: PT012
            new.rmdir()  # so that there is nothing to replace the old one
            if problem is KeyError:
                raise KeyError
    with start("with atomic_folder(path): os.kill(os.getpid(), 9)", "there", path, ""):
        pass
    assert (os.listdir(path), len(os.listdir(tmp_path))) == (["2"], 2)
    with atomic_folder(path):  # clears away what the killed process has left
        pass
    assert os.listdir(tmp_path) == [path.name]


def test_a_process_holds_a_lock_until_it_ends(tmp_path):
    code = "with lock(path): (path / word).touch(); input()"
    with start(code, "there", tmp_path, "held") as holder:
        while not (tmp_path / "held").exists():
            assert holder.poll() is None
        with lock(tmp_path, wait=False) as held:
            assert not held
        holder.kill()
    with lock(tmp_path, wait=False) as held:
        assert held


@given(st.lists(st.lists(st.text(), min_size=2)))
def test_csv_reads_as_it_was_written(rows):
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows
