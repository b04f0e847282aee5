"""The files around the code agree: lock, requirements, Makefile, CI, README and what git sees."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.photo_folders import ROOT

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"}
needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout"
)
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def test_the_lock_was_made_from_this_pyproject_and_has_each_package_once() -> None:
    # The hash as Poetry 2.3 and later take it, over the parts that decide which versions fit.
    pyproject = read_toml("pyproject.toml")
    project, poetry = pyproject["project"], pyproject["tool"]["poetry"]
    relevant = {
        "project": {key: project[key] for key in ("requires-python", "dependencies")},
        "dependency-groups": pyproject["dependency-groups"],
        "tool": {"poetry": {"group": poetry["group"]}},
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    lock = read_toml("poetry.lock")
    assert lock["metadata"]["content-hash"] == digest, "run `make lock`"
    names = [package["name"] for package in lock["package"]]
    assert sorted(set(names)) == sorted(names)
    assert not [package for package in lock["package"] if "source" in package]  # a private place


@pytest.mark.parametrize(
    ("name", "group"), [("requirements.txt", "main"), ("requirements-test.txt", "test")]
)
def test_requirements_are_the_lock(name: str, group: str) -> None:
    locked = [
        (package["name"], package["version"], {file["hash"] for file in package["files"]})
        for package in read_toml("poetry.lock")["package"]
        if group in package["groups"]
    ]
    listed = []
    for entry in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        match = re.fullmatch(r"([a-z0-9-]+)==([^ ;]+) ;.*", requirement.strip())
        assert match, f"{name}: {requirement!r} is not a pinned package"
        listed.append((match[1], match[2], {text.strip() for text in hashes}))
    assert sorted(listed) == sorted(locked), "run `make lock`"


def test_conda_and_ci_use_the_same_requirements_and_test_command() -> None:
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert environment.rstrip().endswith("- pip:\n      - -r requirements.txt")
    runner = ROOT / ".ci/run"
    assert runner.read_text(encoding="utf-8").splitlines()[-1] == "make test"
    assert os.access(runner, os.X_OK)


@needs_git
def test_no_file_is_large_holds_photos_or_weights_or_names_a_place_of_one_machine() -> None:
    private = re.compile(r"/(home|mnt|opt|private|root|Users|work)/\w|file:/{2}|index[-]url")
    # What git tracks, or would after `git add .`.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for path in filter(Path.is_file, map(ROOT.joinpath, listed.split("\0")[:-1])):
        name = path.relative_to(ROOT).as_posix()
        assert path.stat().st_size < 2**20, f"{name} is too large to commit"
        if path.suffix.lower() in PICTURES:
            assert name.startswith("docs/"), name
        else:  # what is no text, as weights and archives, fails here
            assert not private.search(path.read_text(encoding="utf-8")), name


@needs_git
def test_git_ignores_photos_and_output_but_no_code():
    code = ["data/new.py", "models/checkpoint.py", "docs/experiment_1/result.json"]
    ignored = ["data/weather/dew/1.jpg", "output/results/run/result.json", ".mypy_cache/x"]
    command = ["git", "check-ignore", "--no-index", *code, *ignored]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert listed == ignored


@needs_make
def test_make_installs_once_and_then_runs_what_it_is_asked_for(tmp_path: Path) -> None:
    """With a fake Python that logs its arguments and copies itself into the .venv it makes."""
    python = tmp_path / "a python"
    python.write_text(
        '#!/bin/sh\necho "$@" >> "$LOG"\n'
        'case "$*" in *--clear*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;; esac\n'
        'case "$*" in *"$FAIL"*) exit 1 ;; esac\n'
    )
    python.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def made(words: str, fail: str = "nothing") -> tuple[int, list[str]]:
        (tmp_path / "log").write_text("")
        environment = {"PATH": os.environ["PATH"], "LOG": str(tmp_path / "log"), "FAIL": fail}
        command = ["make", f"PYTHON={python}", *shlex.split(words)]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        calls = [line for line in (tmp_path / "log").read_text().splitlines() if line[:2] != "-c"]
        return run.returncode, calls

    create, install = "-m venv --clear .venv", "-m pip install --disable-pip-version-check"
    install += " --require-hashes -r requirements.txt"
    install_test = install.replace(".txt", "-test.txt")
    train = "train.py --data sample --resume"
    pytest_call = "-m pytest --numprocesses 2 --dist loadfile"
    checks = ["-m ruff check .", "-m ruff format --check .", "-m mypy", pytest_call]
    for _ in range(2):  # an install that was interrupted is done again
        assert made("train", fail="-r requirements.txt") == (2, [create, install])
    assert made("train 'ARGS=--epochs 3'") == (0, [create, install, f"{train} --epochs 3 "[:-1]])
    assert made("test") == (0, [install_test, *checks])
    (call,) = made("test-faults ARGS=-x")[1]
    assert re.fullmatch(rf"{pytest_call}( tests/\S+)+ -x", call)
    assert made("distill")[1] == [train.replace("train.py", "knowledge_distillation.py")]
    os.utime(tmp_path / ".venv/.runtime-installed", (0, 0))  # older than the requirements
    assert made("clean train") == (0, [create, install, train])
