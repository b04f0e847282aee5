"""The commands of README, of the experiments' pages and of the recipe are understood as they stand
there, and some of each kind are run, with small settings added at the end. The scripts' own tests
start them as processes; here they run in this one, which need not import torch for each."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision

import knowledge_distillation
import train
from config import Config, pair, parse
from models.checkpoint import save_checkpoint
from models.factory import create_model
from tests.photo_folders import make_photos
from utils.script import run_script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").exists() else ""
PAGES = [
    path.read_text("utf-8")
    for path in (*sorted(ROOT.glob("docs/experiment_*/README.md")), ROOT / "docs" / "recipe.md")
]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", "\n".join([README, *PAGES]), re.M | re.S)
COMMANDS = [
    words
    for line in "".join(BLOCKS).splitlines()
    if (words := tuple(shlex.split(line, comments=True)))
]
# What installs, what needs the network, and what make, .ci/run and the other tests run.
ELSEWHERE = {
    ("make", "train"),
    ("make", "distill"),
    ("make", "test"),
    ("poetry", "install"),
    ("poetry", "run", "python", "train.py"),
    ("conda", "env", "create", "-f", "environment.yml"),
    ("conda", "activate", "weather-kd"),
    ("pip", "install", "gdown"),
    ("python", "-m", "data.download"),
    ("tensorboard", "--logdir=output/logs"),
    ("torchrun", "--nproc-per-node=2", "train.py", "--models", "resnet18"),
    (
        "python",
        "-m",
        "utils.predict",
        "output/checkpoints/RUN/best.pt",
        "photos/rain/1.jpg",
        "photos/snow",
    ),
}
DISTIL = ("knowledge_distillation.py",)
SMALL = ("--image-size", "32", "--batch-size", "8", "--epochs", "1", "--seeds", "0",
         "--warmup-epochs", "0")  # fmt: skip


def test_commands_are_shown_and_each_is_known():
    assert ("make", "train") in COMMANDS
    assert ("make", "test") in COMMANDS
    for words in COMMANDS:
        assert words in ELSEWHERE or words[0] == "python", words


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("readme") / "photos")


TRAINING = [w for w in dict.fromkeys(COMMANDS) if w[1:2] in (("train.py",), DISTIL)]
RUN = (
    "train.py --models resnet18 --folds 10",
    "train.py --models resnet18 --image-size 128 --grow-from 0.25 --tag grow",
    "knowledge_distillation.py --reverse",
    "knowledge_distillation.py --experiment experiment_2 --teacher-tag patient --seeds 0 1 2",
)


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_a_training_command_is_understood(words):
    if "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(words[2:], "", distils=words[1:2] == DISTIL)
    else:
        config = parse(words[2:], "", distils=words[1:2] == DISTIL)
        assert (config == Config()) == (len(words) == 2)


@pytest.mark.parametrize("line", RUN)
def test_a_training_command_runs(line, photos, tmp_path, capsys):
    words = ("python", *line.split())
    assert words in TRAINING
    small = ["--data", str(photos), "--cache", str(photos.parent / "cache"), *SMALL]
    small += ["--output", str(tmp_path)]
    small += ("--folds", "3", "--fold", "1") if "--folds" in words else ()
    if "--teacher-tag" in words:  # such a teacher is there before
        given = parse(words[2:], "", distils=True)
        of_it = ("--models", pair(given)[0], "--tag", str(given.teacher_tag))
        assert run_script(train.main, [*small, *of_it]) == 0
    main = knowledge_distillation.main if words[1:2] == DISTIL else train.main
    status = run_script(main, [*words[2:], *small])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "| Test accuracy" in printed.out


def test_the_student_loads_as_the_readme_shows(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(code.splitlines()) == 2
    path = Path(re.findall(r'"(output/.*?)"', code)[0])
    model = create_model("resnet18", 11, pretrained=False, seed=3)
    save_checkpoint(tmp_path / path, {"model": model.state_dict(), "lesson": None})
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "torchvision": torchvision}
    exec(code, names)
    student = names["student"].state_dict()
    assert all(torch.equal(value, student[key]) for key, value in model.state_dict().items())


def test_the_file_named_for_each_purpose_exists():
    named = re.findall(r"`((?:[a-z]+/)?[a-z_]+\.py)`", README)
    named += re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert "config.py" in named
    for path in named:
        assert (ROOT / path).exists(), path
