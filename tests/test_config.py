"""The command line is Config, and nothing that is wrong gets past it."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import (
    DISTILLATION,
    EXPERIMENTS,
    METHODS,
    MODELS,
    Config,
    UserError,
    model_names,
    pair,
    parse,
    recipe,
)

ROOT = Path(__file__).parents[1]
FIELDS = {item.name: item for item in dataclasses.fields(Config)}
LESSONS = {name for name, item in FIELDS.items() if item.metadata["group"] == DISTILLATION}
# The flags of the two scripts, by whether it distils.
FLAGS = {False: FIELDS.keys() - LESSONS, True: FIELDS.keys() - {"models"}}

# A value for each setting that is not its default: the words of the command line, what they mean.
OTHERS: dict[str, tuple[list[str], Any]] = {
    "experiment": (["experiment_2"], "experiment_2"),
    "models": (["resnet50", "densenet169"], ("resnet50", "densenet169")),
    "seeds": (["3", "0", "2147483647"], (3, 0, 2147483647)),
    "tag": (["lr_0.1"], "lr_0.1"),
    "reverse": ([], True),
    "teacher": (["resnet50"], "resnet50"),
    "student": (["resnet50"], "resnet50"),
    "teacher_checkpoint": (["some/best.pt"], Path("some/best.pt")),
    "teacher_tag": (["60epochs.mixup"], "60epochs.mixup"),
    "teacher_epochs": (["60"], 60),
    "allow_other_split": ([], True),
    "method": (["dist", "rkd"], ("dist", "rkd")),
    "alpha": (["0", "0.5", "1"], (0.0, 0.5, 1.0)),
    "temperature": (["1", "2.5"], (1.0, 2.5)),
    "weight": (["0", "30"], (0.0, 30.0)),
    "data": (["some folder"], "some folder"),
    "image_size": (["96"], 96),
    "grow_from": (["0.5"], 0.5),
    "split_seed": (["7"], 7),
    "folds": (["10"], 10),
    "fold": (["9", "0"], (9, 0)),
    "strict": ([], True),
    "epochs": (["30"], 30),
    "batch_size": (["2"], 2),
    "lr": (["3e-2"], 0.03),
    "optimizer": (["sgd"], "sgd"),
    "weight_decay": (["0.0321"], 0.0321),
    "schedule": (["constant"], "constant"),
    "warmup_epochs": (["1.25"], 1.25),
    "label_smoothing": (["0.99"], 0.99),
    "mixup": (["0.456"], 0.456),
    "crop_scale": (["0.987"], 0.987),
    "clip_norm": (["4"], 4.0),
    "pretrained": ([], True),
    "device": (["cuda:10"], "cuda:10"),
    "precision": (["bf16"], "bf16"),
    "eager": ([], True),
    "photos_on": (["host"], "host"),
    "workers": (["3"], 3),
    "output": (["runs/here"], Path("runs/here")),
    "cache": (["/scratch"], Path("/scratch")),
    "resume": ([], True),
    "overwrite": ([], True),
}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def needed(name: str) -> list[str]:
    """What some flags cannot do without."""
    others = {"allow_other_split": ["--teacher-checkpoint", "x.pt"], "weight": ["--method", "sp"]}
    others |= {"fold": ["--folds", "10"]}
    return others.get(name, [])


def refused(*words: str, distils: bool | None = None) -> str:
    """The one line with which these words are refused, by the script that has the first flag."""
    if distils is None:
        name = words[0].partition("=")[0].removeprefix("--").replace("-", "_")
        distils = name in LESSONS
    with pytest.raises(UserError) as problem:
        parse(words, "", distils=distils)
    message = str(problem.value)
    assert "\n" not in message
    return message


def test_every_setting_is_tried_below():
    assert OTHERS.keys() == FIELDS.keys()


@pytest.mark.parametrize(
    ("name", "distils"), [(n, distils) for distils in FLAGS for n in FIELDS if n in FLAGS[distils]]
)
def test_a_flag_sets_its_setting_and_no_other(name, distils):
    words, value = OTHERS[name]
    plain = parse(needed(name), "", distils=distils)
    config = parse([flag_of(name), *words, *needed(name)], "", distils=distils)
    assert config == dataclasses.replace(plain, **{name: value})
    assert config != plain


@pytest.mark.parametrize("distils", FLAGS)
def test_each_script_has_its_own_flags_and_refuses_the_others(distils):
    assert {"epochs", "seeds", "experiment"} <= FLAGS[distils]
    for name in FIELDS.keys() - FLAGS[distils]:
        words, _ = OTHERS[name]
        message = refused(flag_of(name), *words, distils=distils)
        assert message.startswith(f"unknown argument '{flag_of(name)}'")


@pytest.mark.parametrize("name", [n for n, item in FIELDS.items() if item.metadata["many"]])
def test_settings_of_several_words_are_tuples_of_them(name):
    words, value = OTHERS[name]
    config = parse([flag_of(name), words[0], *needed(name)], "", distils=name in LESSONS)
    assert getattr(config, name) == value[:1]


def test_no_words_give_the_defaults():
    assert parse([], "") == Config()


@pytest.mark.parametrize("name", FIELDS)
def test_a_default_given_as_a_word_is_the_default(name):
    default = FIELDS[name].default
    if default is None or default is False or default == "":
        assert FIELDS[name].metadata["shown"] or default is False
        return
    words = [str(v) for v in default] if isinstance(default, tuple) else [str(default)]
    config = parse([flag_of(name), *words], "", distils=name in LESSONS)
    assert config == Config()
    assert type(getattr(config, name)) is type(default)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--epoch", "--epochs"),  # abbreviations are not guessed
        ("--epoch=3", "--epochs"),
        ("--see", "--seeds"),
        ("--batch_size", "--batch-size"),
        ("--lr_rate=0.0000000001", "--lr"),
        ("--weight-deacy", "--weight-decay"),
        ("experimentt", "--experiment"),
    ],
)
def test_a_mistyped_flag_is_refused_with_the_nearest_one(word, meant):
    message = refused(word)
    assert repr(word.partition("=")[0]) in message
    assert message.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("word", ["--zzzzzzz", "7", "", " ", "two\nlines", "-q"])
def test_a_word_like_no_flag_is_refused_with_where_to_look(word):
    assert refused("--epochs", "3", word) == f"unknown argument {word!r}: --help lists the flags"


NOT_WHOLE = ["-1", "1.5", "nan", "inf", "-inf", "", "two", "1e3", "0x10", "99999999999"]
NOT_NUMBERS = ["-0.1", "nan", "inf", "-inf", "", "much", "1e999"]
BAD = [
    ("experiment", ["experiment_3", "", "Experiment_1"], "one of experiment_1, experiment_2"),
    ("models", ["vgg11", "", "resnet18,resnet50", "ResNet18"], "one of " + ", ".join(MODELS)),
    ("seeds", NOT_WHOLE, "a whole number from 0"),
    ("tag", ["a/b", "a b", "..\\", "ä", "x" * 61, "-"], "letters, digits, '.' and '_', 60 at most"),
    ("teacher", ["vgg11", ""], "one of " + ", ".join(MODELS)),
    ("student", ["vgg11", ""], "one of " + ", ".join(MODELS)),
    ("teacher_checkpoint", [""], "a path"),
    ("teacher_tag", [""], "a tag"),
    ("teacher_tag", ["a/b", "x" * 61], "letters, digits, '.' and '_', 60 at most"),
    ("teacher_epochs", [*NOT_WHOLE, "0"], "a whole number from 1"),
    ("method", ["", "KD", "crd", "kd,dkd"], "one of " + ", ".join(METHODS)),
    ("alpha", [*NOT_NUMBERS, "1.01", "2"], "a number from 0 to 1"),
    ("temperature", [*NOT_NUMBERS, "0", "0.001", "1001"], "a number from 0.01 to 1000"),
    ("weight", NOT_NUMBERS, "a number from 0"),
    ("data", [""], "a path"),
    ("image_size", [*NOT_WHOLE, "0", "7", "4097"], "a whole number from 8 to 4096"),
    ("split_seed", NOT_WHOLE, "a whole number from 0"),
    ("folds", [*NOT_WHOLE, "2", "101"], "a whole number from 3 to 100"),
    ("fold", [*NOT_WHOLE, "100"], "a whole number from 0 to 99"),
    ("grow_from", [*NOT_NUMBERS, "0", "1.5"], "a number above 0 to 1"),
    ("epochs", [*NOT_WHOLE, "0"], "a whole number from 1"),
    ("batch_size", [*NOT_WHOLE, "0", "1"], "a whole number from 2"),
    ("lr", [*NOT_NUMBERS, "0"], "a number above 0"),
    ("optimizer", ["adam", "SGD", ""], "one of adamw, sgd"),
    ("weight_decay", NOT_NUMBERS, "a number from 0"),
    ("schedule", ["linear", ""], "one of cosine, constant"),
    ("warmup_epochs", NOT_NUMBERS, "a number from 0"),
    ("label_smoothing", [*NOT_NUMBERS, "1", "0.991"], "a number from 0 to 0.99"),
    ("mixup", NOT_NUMBERS, "a number from 0"),
    ("crop_scale", [*NOT_NUMBERS, "0", "1.01"], "a number above 0 to 1"),
    ("clip_norm", NOT_NUMBERS, "a number from 0"),
    ("device", ["gpu", "5", "cuda:", "cuda:-1", "cuda:01", "cuda:1000", "", "CPU", "cuda:1\n"],
     "auto, cpu, cuda or cuda:N"),
    ("precision", ["fp16", "float64", ""], "one of auto, bf16, float32"),
    ("photos_on", ["gpu", ""], "one of auto, device, host"),
    ("workers", [*NOT_WHOLE, "0", "1025"], "a whole number from 1 to 1024"),
    ("output", [""], "a path"),
    ("cache", [""], "a path"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "word", "allowed"), [(name, word, text) for name, words, text in BAD for word in words]
)
def test_a_bad_value_is_refused_with_the_flag_and_the_allowed_values(name, word, allowed):
    message = refused(f"{flag_of(name)}={word}")
    assert message.startswith(f"{flag_of(name)}: {word!r} is not allowed: {allowed}")


def test_every_setting_with_a_value_is_among_the_bad_values():
    assert {name for name, *_ in BAD} == {n for n, (words, _) in OTHERS.items() if words}


def test_a_whole_number_that_is_too_large_is_told_the_limit():
    assert refused("--seeds", "2147483648").endswith("a whole number from 0 to 2147483647")


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_or_needless_value_is_refused_by_the_flags_name(name):
    words, _ = OTHERS[name]
    flag = flag_of(name)
    assert refused(*([flag] if words else [f"{flag}=yes"])).startswith(f"{flag}: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "2", "1"], r"--seeds 1 2 1: .*once.*"),
        (["--seeds", "1", "01"], r"--seeds 1 1: .*once.*"),
        (["--models", "resnet18", "resnet18"], r"--models resnet18 resnet18: .*once.*"),
        (["--fold", "3"], r"--fold 3: it needs --folds"),
        (["--folds", "5", "--fold", "1", "5"], r"--fold 1 5: --folds 5 has 0 to 4"),
        (["--folds", "5", "--fold", "1", "1"], r"--fold 1 1: .*once.*"),
        (["--resume", "--overwrite"], r"--resume .*--overwrite .*one of the two"),
        (["--warmup-epochs", "15.5"], r"--warmup-epochs 15.5: at most --epochs, which is 15"),
        (["--epochs", "2", "--warmup-epochs", "3"], r"--warmup-epochs 3: .* --epochs, which is 2"),
        (["--teacher-epochs", "2", "--warmup-epochs", "3"], r".* --teacher-epochs, which is 2"),
        (["--method", "kd", "dist", "kd"], r"--method kd dist kd: .*once.*"),
        (["--alpha", "0.5", ".50"], r"--alpha 0.5 0.5: .*once.*"),
        (["--reverse", "--teacher", "resnet50"], r"--reverse .*name the teacher.*"),
        (["--reverse", "--student", "resnet50"], r"--reverse .*name the teacher.*"),
        (["--reverse", "--teacher-checkpoint", "x.pt"], r"--reverse .*name the teacher.*"),
        (["--teacher-checkpoint", "x", "--teacher-epochs", "9"], r".*--teacher-epochs.*one of.*"),
        (["--teacher-tag", "x", "--teacher-epochs", "9"], r"--teacher-tag .*one of.*"),
        (["--teacher-tag", "x", "--teacher-checkpoint", "y"], r".* --teacher-tag.*one of.*"),
        (["--allow-other-split"], r"--allow-other-split .*none is given"),
        (["--weight", "3"], r"--weight: kd has no term .*--alpha.*"),
        (["--weight", "3", "--method", "sp", "kd"], r"--weight: kd has no term .*"),
        (["--method", "dkd", "--mixup", "0.2"], r"--method dkd .*--mixup.*"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words, message):
    assert re.fullmatch(message, refused(*words))


def test_who_teaches_whom():
    def named(*words: str) -> tuple[str, str]:
        return pair(parse(words, "", distils=True))

    assert named() == EXPERIMENTS["experiment_1"] == ("densenet169", "resnet18")
    assert named("--experiment", "experiment_2") == ("resnet50", "resnet18")
    assert named("--experiment", "experiment_2", "--reverse") == ("resnet18", "resnet50")
    assert named("--teacher", "resnet50") == ("resnet50", "resnet18")
    assert named("--student", "densenet169") == ("densenet169", "densenet169")
    itself = parse(["--student", "densenet169"], "", distils=True)
    assert model_names(itself) == ("densenet169",)


def test_warm_up_may_take_all_epochs():
    assert parse(["--epochs", "3", "--warmup-epochs", "3"], "").warmup_epochs == 3


WORDS = st.one_of(
    st.sampled_from([flag_of(name) for name in FIELDS] + ["--help", "-h", "--", "-1", "="]),
    st.sampled_from([word for words, _ in OTHERS.values() for word in words]),
    st.sampled_from([word for _, words, _ in BAD for word in words]),
    st.builds("{}={}".format, st.sampled_from([flag_of(n) for n in FIELDS]), st.text(max_size=4)),
    st.text(max_size=6),
)


@given(st.lists(WORDS, max_size=8), st.booleans())
def test_any_words_give_a_config_or_one_line(words, distils):
    printed, outcome = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            config = parse(words, "what it does", distils=distils)
    except (UserError, SystemExit) as end:
        outcome = end
    if isinstance(outcome, SystemExit):
        assert outcome.code == 0
        assert {"--help", "-h"} & set(words)
        assert "what it does" in printed.getvalue()
        return
    assert printed.getvalue() == ""
    if outcome:
        assert len(str(outcome).splitlines()) == 1
    else:
        assert config.warmup_epochs <= config.epochs
        assert not (config.resume and config.overwrite)
        json.dumps(recipe(config), allow_nan=False)


SCRIPTS = {"train.py": False, "knowledge_distillation.py": True}


@pytest.fixture(scope="module", params=SCRIPTS)
def script(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def printed_help(script) -> str:
    run = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_help_opens_with_what_the_script_does_line_by_line(script, printed_help):
    doc = ast.get_docstring(ast.parse((ROOT / script).read_text("utf-8")))
    assert doc is not None
    assert doc in printed_help


def test_help_shows_each_flag_in_its_group_with_its_default_and_reason(script, printed_help):
    fields = {name: item for name, item in FIELDS.items() if name in FLAGS[SCRIPTS[script]]}
    groups = list(dict.fromkeys(item.metadata["group"] for item in fields.values()))
    assert len(groups) > 3
    parts = re.split(rf"^({'|'.join(groups)}):$", printed_help, flags=re.M)
    assert parts[1::2] == groups
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name, item in fields.items():
        text = sections[item.metadata["group"]]
        entry = re.search(rf"^  {flag_of(name)}\b(.*?)(?=^  --|\Z)", text, re.M | re.S)
        assert entry, name
        words = " ".join(entry[1].split())
        if item.metadata["parse"] is bool:
            shown = "off"
        else:
            values = item.default if isinstance(item.default, tuple) else (item.default,)
            shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
            shown = item.metadata["shown"] or shown
        assert words.endswith(f"{item.metadata['why']} (default: {shown})"), name
        assert len(item.metadata["why"]) > 20, name


def test_help_names_the_choices_where_there_are_few(script, printed_help):
    words = " ".join(printed_help.split())
    few = {"experiment", "models", "optimizer", "schedule", "precision", "photos_on", "teacher"}
    for name in few & FLAGS[SCRIPTS[script]]:
        with pytest.raises(ValueError, match="one of ") as problem:
            FIELDS[name].metadata["parse"]("?")
        entry = words.split(f" {flag_of(name)} ")[-1].split("(default")[0]
        for choice in str(problem.value).removeprefix("one of ").split(", "):
            assert choice in entry, (name, choice)


def test_the_recipe_is_what_decides_weights_and_the_runs_name_does_not_say():
    assert set(recipe(Config())) == {
        "split_seed", "epochs", "batch_size", "lr", "optimizer", "weight_decay", "schedule",
        "warmup_epochs", "label_smoothing", "mixup", "crop_scale", "grow_from", "clip_norm",
        "pretrained", "precision", "crops",
    }  # fmt: skip


def test_the_recipe_holds_the_values_as_json_keeps_them():
    settings = recipe(Config()).keys() - {"crops"}
    words = [word for name in settings for word in (flag_of(name), *OTHERS[name][0])]
    held = recipe(parse(words, ""))
    assert held == {name: OTHERS[name][1] for name in settings} | {"crops": "RandomResizedCrop"}
    assert json.loads(json.dumps(held)) == held


def test_models_are_the_experiments_unless_named():
    for name, models in EXPERIMENTS.items():
        assert model_names(parse(["--experiment", name], "")) == models
    assert set().union(*EXPERIMENTS.values()) <= set(MODELS)
    assert model_names(parse(["--models", "resnet50"], "")) == ("resnet50",)
