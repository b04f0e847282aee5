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

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"}
WEIGHTS_AND_ARCHIVES = re.compile(
    r"\.(7z|bin|ckpt|gz|np[yz]|onnx|pkl|pth?|rar|safetensors|tar|tgz|whl|zip)", re.I
)
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


def read_requirements(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by package, from a requirements file in which nothing else stands."""
    packages = {}
    for entry in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        match = re.fullmatch(r"([a-z0-9-]+)==([^ ;]+) ;.*", requirement.strip())
        assert match, f"{name}: {requirement!r} is not a pinned package"
        assert match[1] not in packages, f"{name}: {match[1]} stands twice"
        packages[match[1]] = (match[2], {text.strip() for text in hashes})
    return packages


def test_the_lock_was_made_from_this_pyproject() -> None:
    # The hash as Poetry 2.3 and later take it, over the parts that decide which versions fit.
    pyproject = read_toml("pyproject.toml")
    project, poetry = pyproject["project"], pyproject["tool"]["poetry"]
    relevant = {
        "project": {key: project[key] for key in ("requires-python", "dependencies")},
        "dependency-groups": pyproject["dependency-groups"],
        "tool": {"poetry": {"group": poetry["group"]}},
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    assert read_toml("poetry.lock")["metadata"]["content-hash"] == digest, "run `make lock`"


def test_no_package_is_locked_twice_or_from_a_private_place() -> None:
    packages = read_toml("poetry.lock")["package"]
    names = [package["name"] for package in packages]
    assert sorted(set(names)) == sorted(names)
    assert not [package["name"] for package in packages if "source" in package]


@pytest.mark.parametrize(
    ("name", "group"), [("requirements.txt", "main"), ("requirements-test.txt", "test")]
)
def test_requirements_are_the_lock(name: str, group: str) -> None:
    locked = {
        package["name"]: (package["version"], {file["hash"] for file in package["files"]})
        for package in read_toml("poetry.lock")["package"]
        if group in package["groups"]
    }
    assert read_requirements(name) == locked, "run `make lock`"


def test_conda_installs_the_same_requirements() -> None:
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert environment.rstrip().endswith("- pip:\n      - -r requirements.txt")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE))
    commands = {line.split("#")[0].strip() for line in code.splitlines()}
    runner = ROOT / ".ci/run"
    shebang, *lines = runner.read_text(encoding="utf-8").splitlines()
    assert shebang == "#!/usr/bin/env bash"
    assert lines == ["set -e", 'cd "$(dirname "$0")/.."', "make test"]
    assert lines[-1] in commands, "README.md shows no `make test` in a block of code"
    assert os.access(runner, os.X_OK)


@needs_git
def test_no_file_is_large_or_holds_photos_or_weights() -> None:
    for path in committed_files():
        name = path.relative_to(ROOT).as_posix()
        assert path.stat().st_size < MEBIBYTE, f"{name} is too large to commit"
        assert not WEIGHTS_AND_ARCHIVES.fullmatch(path.suffix), name
        assert path.suffix.lower() not in PICTURES or name.startswith("docs/"), name


@needs_git
def test_no_file_names_a_place_of_one_machine() -> None:
    private = re.compile(r"/(home|mnt|opt|private|root|Users|work)/\w|file:/{2}|index[-]url")
    for path in committed_files():
        if path.suffix.lower() not in PICTURES:
            found = private.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} names {found}"


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
    # The user's top level, in a fresh clone as well.
    tracked = {path.relative_to(ROOT).parts[0] for path in committed_files()}
    assert {"README.md", "config.py", "train.py", "knowledge_distillation.py", "pyproject.toml",
            "poetry.lock", "data", "models", "utils", "output", "docs"} <= tracked  # fmt: skip


# Stands for Python in the tests of the Makefile: notes what it is asked to do, makes a .venv whose
# python is itself, and fails where the file named in $FAIL says so.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *venv*--clear*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
case "$*" in *"$FAIL"*) exit 1 ;; esac
"""


class Folder:
    """A copy of the Makefile in an empty folder, with a Python that only notes its calls."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.python = path / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
            shutil.copy(ROOT / name, path)

    def make(self, *words: str, fail: str = "nothing") -> tuple[int, str, list[str]]:
        """Exit status, error text and what Python was asked to do, checks left out."""
        log = self.path / "log"
        log.write_text("")
        result = subprocess.run(
            ["make", f"PYTHON={self.python}", *words],
            cwd=self.path,
            env={"PATH": os.environ["PATH"], "LOG": str(log), "FAIL": fail},
            capture_output=True,
            text=True,
        )
        calls = [line for line in log.read_text().splitlines() if not line.startswith("-c")]
        return result.returncode, result.stderr, calls


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "a folder")


CREATE = "-m venv --clear .venv"
INSTALL = "-m pip install --disable-pip-version-check --require-hashes -r requirements.txt"
INSTALL_TEST = INSTALL.replace(".txt", "-test.txt")
TRAIN = "train.py --data sample --resume"
CHECKS = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "-m pytest"]


@needs_make
def test_make_train_installs_once_and_then_trains(folder: Folder) -> None:
    assert folder.make("train", "ARGS=--epochs 3") == (
        0,
        "",
        [CREATE, INSTALL, TRAIN + " --epochs 3"],
    )
    assert folder.make("train") == (0, "", [TRAIN])
    later = (folder.path / ".venv/.runtime-installed").stat().st_mtime + 1
    os.utime(folder.path / "requirements.txt", (later, later))
    assert folder.make("train")[2] == [CREATE, INSTALL, TRAIN]


@needs_make
def test_make_test_adds_the_packages_for_testing(folder: Folder) -> None:
    assert folder.make("train")[0] == 0
    assert folder.make("test") == (0, "", [INSTALL_TEST, *CHECKS])
    assert folder.make("test") == (0, "", CHECKS)
    status, _, calls = folder.make("test", fail="mypy")
    assert status != 0
    assert calls == CHECKS[:3]


@needs_make
def test_make_test_faults_runs_the_fault_suites_in_full(folder: Folder) -> None:
    (folder.path / "tests").mkdir()
    (folder.path / "tests/test_faults_load.py").touch()
    folder.python.write_text(FAKE_PYTHON + 'echo "FAULTS=$FAULTS" >> "$LOG"\n')
    assert folder.make("test-faults", "ARGS=-x")[2][-2:] == [
        "-m pytest tests/test_faults_load.py tests/test_gpu_script.py tests/test_ranks.py "
        "tests/test_benchmark.py -x",
        "FAULTS=whole",
    ]


@needs_make
@pytest.mark.parametrize("step", [CREATE, INSTALL])
def test_an_interrupted_install_is_done_again(folder: Folder, step: str) -> None:
    for _ in range(2):
        status, _, calls = folder.make("train", fail=step)
        assert status != 0
        assert calls[0] == CREATE
        assert calls[-1] == step
    assert folder.make("train") == (0, "", [CREATE, INSTALL, TRAIN])


@needs_make
def test_a_missing_or_unfit_python_is_named_with_advice(folder: Folder) -> None:
    for fail, message in (("version_info", "3.11, 3.12 or 3.13"), ("ensurepip", "python3-venv")):
        status, errors, calls = folder.make("train", fail=fail)
        assert status != 0
        assert message in errors
        assert calls == []
    status, errors, _ = folder.make("train", "PYTHON=python-of-nowhere")
    assert status != 0
    assert "there is no python-of-nowhere" in errors
    assert not (folder.path / ".venv").exists()
