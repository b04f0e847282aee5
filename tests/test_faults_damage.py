"""Damage on disk gives one error line or the right numbers; FAULTS=whole runs all of it."""

import contextlib
import io
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import knowledge_distillation
import train
from data import files
from tests.faults import only_whole
from tests.photo_folders import make_photos, training
from utils import predict, report
from utils.script import run_script

remove: Any = files.remove
Damage = Callable[[Path, Path], Any]  # to a path; the other one is of the same kind


class Blocked(BaseException):
    """A command hangs."""


def stop(*_: object) -> Any:
    raise Blocked


def replace(path: Path, data: bytes) -> None:
    """As a new file: the other cases have links to the old one."""
    remove(path)
    path.write_bytes(data)


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes() or b"a")
    data[len(data) // 2] ^= 64
    replace(path, bytes(data))


def swap(path: Path, other: Path) -> None:
    path.rename(path.with_name("swapped"))
    other.rename(path)
    path.with_name("swapped").rename(other)


def another(make: Callable[[Path], Any]) -> Damage:
    """Put something else in the place of a path."""
    return lambda path, _: (remove(path), make(path))


OF_FILES: dict[str, Damage] = {
    "half": lambda path, _: replace(path, path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, _: replace(path, b""),
    "zeros": lambda path, _: replace(path, bytes(path.stat().st_size)),
    "one bit": flip,
    "folder": another(os.mkdir),
}
DAMAGES: dict[str, Damage] = {
    "gone": lambda path, _: remove(path),
    "text": lambda path, _: replace(path, b"something else"),
    "pipe": another(os.mkfifo),
    "broken link": another(lambda path: path.symlink_to("nowhere")),
    "link to a device": another(lambda path: path.symlink_to("/dev/zero")),
    "swapped": swap,
}
PAIR = "--teacher resnet18 --student resnet18"
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "baselines": (train.main, "--models resnet18 --seeds 0 1"),
    "unfinished": (train.main, "--models resnet18 --tag half"),
    "student": (knowledge_distillation.main, PAIR),
    "report": (report.main, ""),
    "predict": (predict.main, ""),
}


def run(name: str, folder: Path, how: str = "--resume") -> tuple[int, set[str], list[str]]:
    """Exit status of a command, the numbers that it gives, and the lines on its stderr."""
    main, more = COMMANDS[name]
    output = folder / "output"
    words = training(folder / "weather.zip", folder, "--batch-size", 6, "--precision", "float32")
    words += ["--epochs", "3", "--warmup-epochs", "0", *more.split(), how]
    if main is report.main:
        words = ["--output", str(output)]
    if main is predict.main:
        best = output / "checkpoints" / "weather-32px-resnet18-seed0" / "best.pt"
        words = [str(best), str(folder / "weather" / "rain"), "--top", "9"]
    streams = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            status = run_script(main, words, resumes=bool(more))
    finally:
        signal.alarm(0)
    printed, errors = (stream.getvalue().replace(str(folder), "") for stream in streams)
    lines = r"^\| (?:Best v|Final|Test|no teacher|kd,).*|^/weather/.*"
    numbers = set(re.findall(lines, printed, re.M))
    if main is report.main and status == 0:  # of whichever runs are there
        found = report.read_results(output / "results")
        numbers = {str([r["run"], r["digest"], r["table"], r["val"]["loss"]]) for r in found}
    return status, numbers, errors.splitlines()


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> tuple[Path, dict[str, set[str]]]:
    """Baselines of two seeds, a student of the first, a killed run, and what commands print."""
    folder = tmp_path_factory.mktemp("damage") / "before"
    photos = make_photos(folder / "weather", per_class=6)
    shutil.make_archive(str(photos), "zip", photos)
    assert [run(name, folder)[0] for name in ("baselines", "student")] == [0, 0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("utils.runs.Tracker.epoch", lambda _, row: row["epoch"] > 1 and stop())
        with pytest.raises(Blocked):
            run("unfinished", folder)
    whole = copy(folder, folder.with_name("whole"))
    expected = {}
    for command in COMMANDS:
        status, expected[command], errors = run(command, whole)
        assert (status, errors) == (0, [])
        assert len(expected[command]) > 3
    return folder, expected


copy = partial(shutil.copytree, copy_function=os.link)


def cases(folder: Path) -> list[tuple[Path, str, Path]]:
    """Each file and folder, what happens to it, and what it may be swapped with."""
    paths = sorted(p for top in ("output", "cache") for p in folder.glob(f"{top}/**/*"))
    paths = [path for path in paths if path.suffix != ".jpg" or path.stem in "03"]
    made = []
    for path in paths:
        kinds = (OF_FILES if path.is_file() else {}) | DAMAGES
        of_another = [p for p in paths if p != path and p.name == path.name]
        beside = [p for p in paths if p != path and p.parent == path.parent]
        for name in kinds:
            others = [*of_another[:2], *beside[:1]] if name == "swapped" else [path]
            for other in others:
                made.append((path.relative_to(folder), name, other.relative_to(folder)))
    return made


def failures(folder: Path, expected: dict[str, set[str]], others: bool) -> list[object]:
    """How the commands fail on a damaged folder. With `others`, predict may use another network."""
    found: list[object] = []
    for command, needed in expected.items():
        try:
            status, numbers, errors = seen = run(command, folder)
            problems = [line for line in errors if line[:4].upper() != "NOTE"]
            if status == 0:
                right = (not problems and numbers <= needed) or (command == "predict" and others)
                right &= len(numbers) == len(needed) or command == "report"
            else:
                right = status == 2 and len(problems) in (1, 2) and problems[0][:7] == "error: "
            # No command removes what stands in the place of a folder of all runs.
            way_on = "--overwrite" in str(errors) and (folder / "output" / "results").is_dir()
            if right and way_on and command not in ("report", "predict"):
                if command == "student":
                    run("baselines", folder, "--overwrite")
                seen = run(command, folder, "--overwrite")
                right = seen[:2] == (0, needed)
            if not right:
                found.append((command, status, errors, seen[0], seen[2], seen[1] - needed))
        except BaseException as problem:
            found.append((command, repr(problem)))
    return found


@only_whole
@pytest.mark.timeout(0)
def test_each_command_gives_one_error_line_or_the_right_numbers(before):
    (folder, expected), failed = before, {}
    made = cases(folder)
    random.Random(1).shuffle(made)
    for path, name, other in made[: int(os.environ.get("CASES", len(made)))]:
        damaged = copy(folder, folder.parent / "damaged")
        (OF_FILES | DAMAGES)[name](damaged / path, damaged / other)
        if found := failures(damaged, expected, name == "swapped"):
            failed[path, name, other] = found
            print((str(path), name, str(other)), *found, sep="\n    ", flush=True)
        shutil.rmtree(damaged)
    assert not failed, f"{len(failed)} of {len(made)} cases"
