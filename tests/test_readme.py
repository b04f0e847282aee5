"""README's commands are run as they stand there, with small settings added at the end."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.photo_folders import make_photos

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").exists() else ""
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
COMMANDS = [
    words
    for line in "".join(BLOCKS).splitlines()
    if (words := tuple(shlex.split(line, comments=True)))
]
# What installs, what needs the network, and what make, .ci/run and the other tests run.
ELSEWHERE = {
    ("make", "train"),
    ("make", "test"),
    ("poetry", "install"),
    ("poetry", "run", "python", "train.py"),
    ("conda", "env", "create", "-f", "environment.yml"),
    ("conda", "activate", "weather-kd"),
    ("pip", "install", "gdown"),
    ("python", "-m", "data.download"),
    ("tensorboard", "--logdir=output/logs"),
}
SMALL = ("--image-size", "32", "--batch-size", "8", "--epochs", "1", "--models", "resnet18")


def test_the_readme_shows_commands_and_each_is_known():
    assert ("make", "train") in COMMANDS
    assert ("make", "test") in COMMANDS
    for words in COMMANDS:
        assert words in ELSEWHERE or words[0] == "python", words


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("readme") / "photos")


@pytest.mark.parametrize(
    "words", [w for w in dict.fromkeys(COMMANDS) if w[:2] == ("python", "train.py")], ids=" ".join
)
def test_a_training_command_of_the_readme_runs(words, photos, tmp_path, monkeypatch):
    if "--help" in words:
        small: tuple[str, ...] = ()
    elif "--pretrained" in words:
        pytest.skip("downloads weights; tests/test_models.py gives it a file instead")
    else:
        small = ("--data", str(photos), *SMALL, "--warmup-epochs", "0", "--seeds", "0",
                 "--output", str(tmp_path), "--cache", str(photos.parent / "cache"))  # fmt: skip
    run = subprocess.run(
        [sys.executable, *words[1:], *small], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr
    assert "--epochs" in run.stdout or "| Test accuracy" in run.stdout


def test_the_file_named_for_each_purpose_exists():
    named = re.findall(r"`((?:[a-z]+/)?[a-z_]+\.py)`", README)
    named += re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert "config.py" in named
    for path in named:
        assert (ROOT / path).exists(), path
