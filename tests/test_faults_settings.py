"""Any settings of either script are refused before work starts, or train to finite numbers.

FAULTS=whole in the environment tries 1,000 command lines instead of a few:
FAULTS=whole pytest tests/test_faults_settings.py --hypothesis-show-statistics
"""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torchvision.models import get_model_weights, resnet18

import knowledge_distillation
import train
from config import METHODS, Config, UserError, model_names, parse
from tests.faults import WHOLE, not_finite
from tests.photo_folders import make_photos
from tests.test_config import BAD, FIELDS, FLAGS, flag_of
from utils.engine import Hardware
from utils.setup import with_safe_precision

Words = st.SearchStrategy[list[str]]
SIDE = 20  # of the images that the teacher's checkpoint knows


def one(*usual: object, rare: st.SearchStrategy[Any] | None = None) -> Words:
    """One word: mostly a usual one, a third of the time a rare one."""
    words = st.sampled_from(usual)
    if rare is not None:
        words = st.one_of(words, words, rare)
    return words.map(lambda word: [str(word)])


def several(*usual: object, rare: st.SearchStrategy[Any] | None = None) -> Words:
    """One word, seldom two: each is a run of its own."""
    single = one(*usual, rare=rare)
    both = st.tuples(single, single).map(lambda two: list(dict.fromkeys(two[0] + two[1])))
    return st.one_of([single] * 5 + [both])


def near_by(value: float) -> st.SearchStrategy[float]:
    """Numbers that only their seventh digit tells from each other."""
    return st.integers(0, 9).map(lambda digit: value * (1 + digit * 1e-7))


def numbers(least: float, most: float = 1.7e308) -> st.SearchStrategy[float]:
    return st.floats(least, most)


FLAG: Words = st.just([])
# A word in angle brackets stands for a place that the test has made.
VALUES: dict[str, Words] = {
    "experiment": one("experiment_1", "experiment_2"),
    "models": several(*["resnet18"] * 20, "resnet50", "densenet169"),
    "seeds": several(0, 1, rare=st.integers(0, 2**31 - 1)),
    "tag": one("", "twin", "x" * 60, "..."),
    "reverse": FLAG,
    "teacher": one(*["resnet18"] * 12, "resnet50", "densenet169"),
    "student": one(*["resnet18"] * 12, "resnet50"),
    "teacher_checkpoint": one(*["<teacher>"] * 8, "<nowhere>", "<text>", "<empty>"),
    "teacher_tag": one("twin", "", "nobodys"),
    "teacher_epochs": one(1, 2, 3),
    "allow_other_split": FLAG,
    "method": several(*METHODS),
    "alpha": several(0, 0.3, 0.7, 1, rare=st.one_of(numbers(0, 1), near_by(0.7))),
    "temperature": several(1, 2, 4, rare=st.one_of(numbers(0.01, 1000), near_by(2.0))),
    "weight": several(0, 1, 100, rare=numbers(0)),
    "data": one(*["<photos>"] * 30, "<zip>", "<nowhere>", "<text>", "<empty>"),
    "image_size": one(SIDE, rare=st.integers(8, 40)),
    "grow_from": one(0.5, 0.7, 1, rare=numbers(5e-324, 1)),
    "split_seed": one(0, rare=st.integers(0, 2**31 - 1)),
    "folds": one(3, 4, rare=st.integers(3, 100)),
    "fold": several(0, 1, 2),
    "strict": FLAG,
    "epochs": one(1, 1, 2),
    "batch_size": one(6, 6, 6, 4, 2, 12, 13),
    "lr": one(1e-3, 0.05, 0.3, rare=numbers(5e-324)),
    "optimizer": one("adamw", "sgd"),
    "weight_decay": one(0, 0.05, 1, rare=numbers(0)),
    "schedule": one("cosine", "constant"),
    "warmup_epochs": one(0, 0.5, 1, rare=numbers(0, 3)),
    "label_smoothing": one(0, 0.1, 0.99, rare=numbers(0, 0.99)),
    "mixup": one(0, 0.2, 1, rare=numbers(0)),
    "crop_scale": one(0.35, 1, rare=numbers(5e-324, 1)),
    "clip_norm": one(0, 1, rare=numbers(0)),
    "pretrained": FLAG,
    "device": one(*["cpu"] * 9, "auto", "cuda", "cuda:3"),
    "precision": one("auto", "bf16", "float32"),
    "eager": FLAG,
    "photos_on": one("auto", "device", "host"),
    "workers": one(1, 2, 1024),
    "output": one(*["<output>"] * 20, "<text>", "<text>/below", "<dangling>", "x" * 300),
    "cache": one(*["<cache>"] * 30, "<text>", "<text>/below", "x" * 300),
    "resume": FLAG,
    "overwrite": FLAG,
}
WRONG: dict[str, list[str]] = {name: words for name, words, _ in BAD}
ALWAYS = {"data", "image_size", "epochs", "batch_size", "output", "cache"}
# In all cases but a few: without them, it would be DenseNet169 each time.
MOSTLY = {"models", "teacher", "student"}
SELDOM = {"eager", "reverse", "experiment", "resume", "overwrite", "allow_other_split"}
SELDOM |= {"folds", "fold", "weight", "teacher_epochs", "teacher_tag", "pretrained"}


def test_every_setting_is_drawn():
    assert VALUES.keys() == FIELDS.keys()


@st.composite
def command_lines(draw: Any, *, distils: bool) -> list[str]:
    words: list[str] = []
    for name in sorted(FLAGS[distils]):
        if draw(st.integers(1, 100)) <= 100 - share_of_cases(name):
            continue
        values = draw(VALUES[name])
        if values and draw(st.integers(0, 99)) == 57:
            values = [draw(st.sampled_from(WRONG[name]))]
        words += [flag_of(name), *values]
    return words


def share_of_cases(name: str) -> int:
    """In how many of a hundred command lines a flag stands, roughly."""
    if name in ALWAYS:
        return 100
    if name in MOSTLY:
        return 97
    return 4 if name in SELDOM else 20


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """What the words in angle brackets stand for."""
    folder = tmp_path_factory.mktemp("faults")
    photos = make_photos(folder / "weather", per_class=5)
    shutil.make_archive(str(folder / "weather"), "zip", photos)
    (folder / "text").write_text("not what was asked for\n")
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to(folder / "nowhere")
    names = ("text", "empty", "dangling", "nowhere", "cache", "output")
    places = {f"<{name}>": folder / name for name in names}
    places |= {"<photos>": photos, "<zip>": folder / "weather.zip"}
    train.main(
        f"--data {photos} --image-size {SIDE} --models resnet18 --batch-size 6 --epochs 1 "
        f"--output {folder / 'taught'} --cache {folder / 'cache'}".split()
    )
    (teacher,) = folder.glob("taught/checkpoints/*/best.pt")
    return places | {"<teacher>": teacher}


@pytest.fixture(autouse=True)
def some_imagenet_weights(places, monkeypatch):
    """Something to start from for ResNet18, and no way to download the others'."""
    hub = places["<text>"].parent / "hub"
    monkeypatch.setenv("TORCH_HOME", str(hub))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    file = hub / "checkpoints" / Path(get_model_weights("resnet18")["DEFAULT"].url).name
    if not file.exists():
        file.parent.mkdir(parents=True)
        torch.save(resnet18().state_dict(), file)


SCRIPTS: dict[bool, Callable[[list[str]], None]] = {
    False: train.main,
    True: knowledge_distillation.main,
}


@pytest.mark.timeout(0 if WHOLE else 120)
@pytest.mark.parametrize("distils", FLAGS)
def test_any_settings_are_refused_before_any_work_or_train_to_finite_numbers(distils, places):
    @settings(
        max_examples=500 if WHOLE else 12,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(command_lines(distils=distils))
    def try_it(words):
        shutil.rmtree(places["<output>"], ignore_errors=True)
        event(outcome([place(word, places) for word in words], distils, places["<output>"]))

    try_it()


FALLEN = [
    (False, "--output <text>", "text is there and no folder"),
    (False, "--output <text>/below", "text is there and no folder"),
    (False, "--output <dangling>", "dangling is there and no folder"),
    (False, f"--output {'x' * 300}", "File name too long"),
    (False, "--cache <text>/below", "text is there and no folder"),
    (False, "--precision bf16 --image-size 16", "images of 17 pixels or more, .* with 16;"),
    (False, "--precision bf16 --epochs 2 --grow-from 0.5", "with 10; --precision float32"),
    (True, "--alpha 0.7000001 0.7000002", "--alpha 0.7 0.7: each value once"),
    (True, "--temperature 2.0000001 2", "--temperature 2 2: each value once"),
]


@pytest.mark.parametrize(("distils", "more", "says"), FALLEN)
def test_what_once_fell_is_refused(distils, more, says, places):
    shutil.rmtree(places["<output>"], ignore_errors=True)
    line = (
        f"--data <photos> --image-size {SIDE} --batch-size 6 --epochs 1 --device cpu "
        f"--output <output> --cache <cache> --experiment experiment_2 {more}"
    )
    with pytest.raises(UserError, match=says) as problem:
        SCRIPTS[distils]([place(word, places) for word in line.split()])
    assert len(str(problem.value).splitlines()) == 1
    assert not places["<output>"].exists()


def test_bfloat16_on_a_cpu_is_left_where_images_are_too_small_for_it():
    cpu = Hardware(torch.device("cpu"), bf16=True)
    assert with_safe_precision(cpu, Config(), 17).bf16
    assert not with_safe_precision(cpu, Config(), 16).bf16
    assert not with_safe_precision(cpu, Config(grow_from=0.25), 64).bf16
    assert with_safe_precision(cpu, Config(grow_from=0.5), 64).bf16
    assert with_safe_precision(Hardware(torch.device("cuda"), bf16=True), Config(), 16).bf16


def place(word: str, places: dict[str, Path]) -> str:
    """A word with the place that it stands for."""
    for name, path in places.items():
        word = word.replace(name, str(path))
    return word


def outcome(words: list[str], distils: bool, output: Path) -> str:
    """Run a command line and check what is left of it: refused, diverged or trained."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            SCRIPTS[distils](words)
    except UserError as problem:
        message = str(problem)
        assert len(message.splitlines()) <= 2, message
        if "is no longer finite" in message:
            assert may_diverge(parse(words, "", distils=distils)), (words, message)
            return "diverged"
        assert not [path for path in output.rglob("*") if path.is_file()], (words, message)
        return "refused"
    config = parse(words, "", distils=distils)
    results = [json.loads(path.read_text("utf-8")) for path in output.glob("results/*/result.json")]
    lessons = [config.method, config.alpha, config.temperature, config.weight or ("default",)]
    each = math.prod(map(len, lessons)) if distils else len(model_names(config))
    each *= len(config.fold or range(config.folds or 1))
    runs = [result for result in results if bool(result.get("lesson")) == distils]
    assert len(runs) == each * len(config.seeds), words
    assert not not_finite(results), (words, not_finite(results))
    return "trained"


def may_diverge(config: Config) -> bool:
    """Whether settings are so large that weights outgrow float32 within a few steps.

    AdamW moves each weight by the rate, and validation multiplies them over fifty layers, with
    running averages that have hardly seen them: 0.3 is too much for ResNet50, 0.1 is not.
    """
    return (
        config.lr > 0.1 or config.lr * config.weight_decay > 1 or max(config.weight or (0,)) > 1e4
    )
