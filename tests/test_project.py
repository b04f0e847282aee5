"""The files around the code agree: lock, requirements, Makefile, CI, README and what git sees."""

import hashlib
import json
import os
import re
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


def committed_files() -> list[Path]:
    """Every file that is tracked by git, or would be after `git add .`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


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
    lines = ["#!/usr/bin/env bash", "set -e", 'cd "$(dirname "$0")/.."', "make test"]
    assert runner.read_text(encoding="utf-8").splitlines() == lines
    assert os.access(runner, os.X_OK)
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


@needs_git
def test_no_file_is_large_holds_photos_or_weights_or_names_a_place_of_one_machine() -> None:
    private = re.compile(r"/(home|mnt|opt|private|root|Users|work)/\w|file:/{2}|index[-]url")
    for path in committed_files():
        name = path.relative_to(ROOT).as_posix()
        assert path.stat().st_size < 2**20, f"{name} is too large to commit"
        if path.suffix.lower() in PICTURES:
            assert name.startswith("docs/"), name
        else:  # what is no text, as weights and archives, fails here
            assert not private.search(path.read_text(encoding="utf-8")), name


@needs_git
def test_git_ignores_photos_and_output_but_no_code():
    code = "data/photos.py data/new.py models/checkpoint.py docs/experiment_1/result.json"
    ignored = (
        "data/weather/dew/1.jpg data/weather.zip data/__pycache__/photos.cpython-311.pyc "
        "output/checkpoints/run/best.pt output/results/run/result.json .venv/bin/python "
        ".hypothesis/examples/1 .mypy_cache/x .pytest_cache/x .ruff_cache/x"
    )
    command = ["git", "check-ignore", "--no-index", *code.split(), *ignored.split()]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert listed == ignored.split()


# Stands for Python in the test of the Makefile: notes what it is asked to do, makes a .venv whose
# python is itself, and fails where the words named in $FAIL are among its own.
FAKE_PYTHON = """#!/bin/sh
echo ${FAULTS:+FAULTS=$FAULTS} "$@" >> "$LOG"
case "$*" in
  *venv*--clear*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
case "$*" in *"$FAIL"*) exit 1 ;; esac
"""
CREATE = "-m venv --clear .venv"
INSTALL = "-m pip install --disable-pip-version-check --require-hashes -r requirements.txt"
INSTALL_TEST = INSTALL.replace(".txt", "-test.txt")
TRAIN = "train.py --data sample --resume"
DISTIL = "knowledge_distillation.py --data sample --resume"
CHECKS = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "-m pytest"]
SUITES = "tests/test_faults*.py tests/test_gpu_script.py tests/test_ranks.py"
# One after the other in the same folder: arguments of make, what fails, what Python is asked to do
# but for looking at itself, and advice.
STEPS: list[tuple[tuple[str, ...], str, list[str], str]] = [
    (("train",), "version_info", [], "3.11, 3.12 or 3.13"),
    (("train",), "ensurepip", [], "python3-venv"),
    (("train", "PYTHON=nowhere"), "nowhere", [], "there is no nowhere"),
    # An install that was interrupted is done again.
    *2 * [(("train",), CREATE, [CREATE], "")],
    *2 * [(("train",), INSTALL, [CREATE, INSTALL], "")],
    (("train", "ARGS=--epochs 3"), "", [CREATE, INSTALL, f"{TRAIN} --epochs 3"], ""),
    (("distill",), "", [DISTIL], ""),
    (("test",), INSTALL_TEST, [INSTALL_TEST], ""),
    (("test",), "", [INSTALL_TEST, *CHECKS], ""),
    (("test",), "mypy", CHECKS[:3], ""),
    (("test-faults", "ARGS=-x"), "", [f"FAULTS=whole -m pytest {SUITES} -x"], ""),
    (("clean", "test"), "", [CREATE, INSTALL, INSTALL_TEST, *CHECKS], ""),
]


@needs_make
def test_make_installs_once_and_then_runs_what_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    python, log = folder / "python", folder / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, folder)

    def check(words: tuple[str, ...], fail: str, expected: list[str], advice: str) -> None:
        log.write_text("")
        environment = {"PATH": os.environ["PATH"], "LOG": str(log), "FAIL": fail or "nothing"}
        command = ["make", f"PYTHON={python}", *words]
        made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        calls = [line for line in log.read_text().splitlines() if not line.startswith("-c")]
        assert (bool(made.returncode), calls) == (bool(fail), expected), (words, fail)
        assert advice in made.stderr if fail else not made.stderr

    for step in STEPS:
        check(*step)
    os.utime(folder / ".venv/.runtime-installed", (0, 0))  # older than the requirements
    check(("train",), "", [CREATE, INSTALL, TRAIN], "")
