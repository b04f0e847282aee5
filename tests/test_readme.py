"""The commands of README and docs/ are understood as they stand there, and some of each kind are
run, with small settings added at the end; code blocks are executed."""

import re
import shlex

import pytest

import knowledge_distillation
import train
from config import Config, UserError, parse
from tests.photo_folders import ROOT, training
from utils import distillation
from utils.distillation import METHODS
from utils.script import run_script

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", "\n".join([README, *PAGES]), re.M | re.S)
LINES = [tuple(shlex.split(line, comments=True)) for line in "".join(BLOCKS).splitlines()]
COMMANDS = list(dict.fromkeys(filter(None, LINES)))
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
TRAIN, DISTIL = ("python", "train.py"), ("python", "knowledge_distillation.py")
TRAINING = [words for words in COMMANDS if words[:2] in (TRAIN, DISTIL)]
RUN = (
    "train.py --models resnet18 --folds 10",
    "knowledge_distillation.py --reverse",
    "knowledge_distillation.py --data photos --teacher efficientnet_b0 --teacher-tag tuned"
    " --method fitnet --alpha 0.9 --epochs 30 --mixup 0.2 --tag 30epochs",
)
SMALL = ("--seeds", 0, "--warmup-epochs", 0)
# Other commands, which install, need the network, or are run by make, .ci/run and other tests.
ELSEWHERE = re.compile(
    r"make (train|test|distill|test-faults)( .*)?|source .venv/bin/activate|python -m venv .venv|"
    r"pip install .*|poetry (install|run python train.py)|conda (env create|activate) .*|"
    r"tensorboard --logdir=output/logs|torchrun .* train.py .*|docs/gpu.sh .*|"
    r"gdown .*|python -m (utils.(predict|report|evaluate|export)|docs.build)( .*)?|(run|weights)=.*"
)


def test_readme_is_short_and_starts_with_a_command():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("make train")) < 25


def test_each_command_is_known_and_understood():
    assert len(TRAINING) > 20
    for words in COMMANDS:
        if words not in TRAINING:
            assert ELSEWHERE.fullmatch(" ".join(words)), words
            continue
        methods = METHODS if words[:2] == DISTIL else None
        if "--help" in words:
            with pytest.raises(SystemExit, match=r"^0$"):
                parse(words[2:], "", methods)
        else:
            assert parse(words[2:], "", methods)


@pytest.mark.parametrize("line", RUN)
def test_a_training_command_runs(line, photos, tmp_path, capsys):
    words = ("python", *line.split())
    assert words in TRAINING
    small = training(photos, tmp_path, *SMALL)
    small += ("--folds", "3", "--fold", "1") if "--folds" in words else ()
    if "--teacher-tag" in words:  # the command before it trains this teacher
        assert run_script(train.main, [*small, "--models", words[5], "--tag", words[7]]) == 0
    main = knowledge_distillation.main if words[:2] == DISTIL else train.main
    status = run_script(main, [*words[2:], *small])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "| Test accuracy" in printed.out
    if "--reverse" in words:
        assert re.search(r"^### resnet18 .*teaches densenet169 ", printed.out, re.M)


def test_a_method_is_added_as_the_readme_shows(monkeypatch, photos, tmp_path, capsys):
    monkeypatch.setattr(distillation, "METHODS", dict(METHODS))
    monkeypatch.setattr(knowledge_distillation, "METHODS", distillation.METHODS)
    with pytest.raises(UserError, match="invalid choice: 'cosine'"):
        parse(["--method", "cosine"], "", distillation.METHODS)
    exec(PYTHON[1], vars(distillation))
    words = training(photos, tmp_path, *SMALL, "--teacher", "resnet18", "--method", "cosine")
    assert run_script(knowledge_distillation.main, words) == 0
    assert "cosine, α 0.7, T 2, weight 1" in capsys.readouterr().out


def test_every_setting_and_every_file_named_is_documented_or_exists():
    usage = (ROOT / "docs/usage.md").read_text("utf-8")
    for name in set(Config.__dataclass_fields__) - {"kd", "model", "seed"}:
        assert f"--{name.replace('_', '-')}" in usage, name
    named = re.findall(r"`((?:[a-z]+/)?[a-z_]+\.py)`", README)
    named += re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert "config.py" in named
    assert [path for path in named if not (ROOT / path).exists()] == []
