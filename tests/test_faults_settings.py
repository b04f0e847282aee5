"""Any settings of either script are refused before work starts, or train to finite numbers.
FAULTS=whole tries 1,000 of them; --hypothesis-show-statistics says what became of them."""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torchvision.models import get_model_weights, resnet18

import knowledge_distillation
import train
from config import Config, KDConfig, UserError, parse
from tests.faults import WHOLE
from tests.photo_folders import make_photos, training
from utils.distillation import METHODS

Words = st.SearchStrategy[list[str]]
SIDE = 32  # of the images that the teacher's checkpoint knows
WEIGHTS = Path(get_model_weights("resnet18")["DEFAULT"].url).name


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


numbers = partial(st.floats, allow_nan=False, allow_infinity=False)
NEAR = st.integers(0, 9).map(lambda digit: 1 + digit * 1e-7)  # only their seventh digits differ
# A word in angle brackets stands for a place that the test has made.
VALUES: dict[str, Words] = {
    "models": several(*["resnet18"] * 20, "resnet50", "mobilenet_v3_small", "googlenet", "no"),
    "experiment": one("experiment_1", "experiment_2"),
    "seeds": several(0, 1, rare=st.integers(0, 2**31 - 1)),
    "tag": one("twin", "x" * 60, "..."),
    "data": one(*["<photos>"] * 30, "<zip>", "<nowhere>", "<text>", "<empty>"),
    "image-size": one(SIDE, rare=st.integers(32, 48)),
    "split-seed": one(0, rare=st.integers(0, 2**31 - 1)),
    "labels-per-class": one(2, 3, 0.5, rare=numbers(5e-324, 5)),
    "duplicates": one("near", "exact", "off"),
    "folds": one(3, 4, rare=st.integers(3, 100)),
    "fold": several(0, 1, 2),
    "epochs": one(1, 1, 2),
    "batch-size": one(6, 6, 6, 4, 2, 12, 13),
    "lr": one(1e-3, 0.05, 0.3, rare=numbers(5e-324)),
    "optimizer": one("adamw", "sgd"),
    "weight-decay": one(0, 0.05, 1, rare=numbers(0)),
    "schedule": one("cosine", "constant"),
    "warmup-epochs": one(0, 0.5, 1, rare=numbers(0, 3)),
    "label-smoothing": one(0, 0.1, 0.99, rare=numbers(0, 0.99)),
    "weights": one("<weights>", "<weights>", "<text>", "<nowhere>"),
    "mixup": one(0, 0.2, 1, rare=numbers(0)),
    "crop-scale": one(0.35, 1, rare=numbers(5e-324, 1)),
    "clip-norm": one(0, 1, rare=numbers(0)),
    "device": one(*["cpu"] * 9, "auto", "cuda", "cuda:3"),
    "precision": one("auto", "bf16", "float32"),
    "output": one(*["<output>"] * 20, "<text>", "<text>/below", "<dangling>", "x" * 300),
    "cache": one(*["<cache>"] * 30, "<text>", "<text>/below", "x" * 300),
}
VALUES |= {name: st.just([]) for name in ("pretrained", "eager", "resume", "overwrite")}
KD_VALUES: dict[str, Words] = {
    "teacher": one(*["resnet18"] * 12, "resnet50", "shufflenet_v2_x0_5", "squeezenet1_1"),
    "student": one(*["resnet18"] * 12, "mobilenet_v3_small"),
    "teacher-checkpoint": one(*["<teacher>"] * 8, "<weights>", "<nowhere>", "<text>", "<empty>"),
    "teacher-tag": one("twin", "nobodys"),
    "unlabelled": one("<photos>", "<zip>", "<empty>", "<text>"),
    "method": several(*METHODS),
    "alpha": several(0, 0.3, 0.7, 1, rare=numbers(0, 1) | NEAR.map(lambda n: 0.7 * n)),
    "temperature": several(1, 2, 4, rare=numbers(0.01, 1000) | NEAR.map(lambda n: 2.0 * n)),
    "weight": several(0, 1, 100, rare=numbers(0)),
    "reverse": st.just([]),
    "allow-other-split": st.just([]),
}
ALWAYS = {"data", "image-size", "epochs", "batch-size", "output", "cache"}
# In all cases but a few: without them, it would be DenseNet169 each time.
MOSTLY = {"models", "teacher", "student"}
SELDOM = {"eager", "reverse", "experiment", "resume", "overwrite", "allow-other-split", "folds"}
SELDOM |= {"fold", "weight", "teacher-tag", "pretrained", "weights"}


def test_every_setting_is_drawn():
    names = {item.name.replace("_", "-") for item in (*fields(Config), *fields(KDConfig))}
    more = {"models", "seeds", "experiment", "reverse", "student"}
    assert VALUES.keys() | KD_VALUES.keys() == names - {"model", "seed", "kd"} | more


@st.composite
def command_lines(draw: Any, *, distils: bool) -> list[str]:
    words: list[str] = []
    values = VALUES | KD_VALUES if distils else VALUES
    for name in sorted(values.keys() - ({"models"} if distils else set())):
        # In how many of a hundred command lines it is, roughly.
        share = 100 if name in ALWAYS else 97 if name in MOSTLY else 4 if name in SELDOM else 20
        if draw(st.integers(1, 100)) <= 100 - share:
            continue
        words += [f"--{name}", *draw(values[name])]
    return words


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Iterator[dict[str, Path]]:
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
    more = ("--models", "resnet18", "--batch-size", 6, "--output", folder / "taught")
    train.main(training(photos, folder, "--image-size", SIDE, *more))
    (teacher,) = folder.glob("taught/checkpoints/*/best.pt")
    # Something to start from for ResNet18, and no way to download the others' weights.
    (weights := folder / "hub" / "checkpoints" / WEIGHTS).parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), weights)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_HOME", str(folder / "hub"))
        environment.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
        yield places | {"<teacher>": teacher, "<weights>": weights}


@pytest.mark.timeout(0 if WHOLE else 120)
@pytest.mark.parametrize("distils", [False, True])
def test_any_settings_are_refused_before_any_work_or_train_to_finite_numbers(distils, places):
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=500 if WHOLE else 7, suppress_health_check=slow)
    @given(command_lines(distils=distils))
    def try_it(words):
        shutil.rmtree(places["<output>"], ignore_errors=True)
        for name, path in places.items():
            words = [word.replace(name, str(path)) for word in words]
        event(outcome(words, distils, places["<output>"]))

    try_it()


def outcome(words: list[str], distils: bool, output: Path) -> str:
    """Run a command line and check what is left of it: refused, diverged or trained."""
    methods = METHODS if distils else None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (knowledge_distillation if distils else train).main(words)
    except (UserError, OSError) as problem:
        message = str(problem)
        assert len(message.splitlines()) <= 2, message
        if "is no longer finite" in message:
            assert any(map(may_diverge, parse(words, "", methods))), (words, message)
            return "diverged"
        assert not [path for path in output.rglob("*") if path.is_file()], (words, message)
        return "refused"
    results = [json.loads(path.read_text("utf-8")) for path in output.glob("results/*/result.json")]
    runs = [result for result in results if bool(result["distillation"]) == distils]
    assert len(runs) == len(parse(words, "", methods)), words
    json.dumps(results, allow_nan=False)  # raises for a number that is not finite
    return "trained"


def may_diverge(config: Config) -> bool:
    """Whether weights may outgrow float32 within a few steps: AdamW moves each by about the rate,
    and in validation BatchNorm's averages lag behind. 0.3 is too much for ResNet50, 0.1 is not."""
    weight = (config.kd and config.kd.weight) or 0
    return config.lr > 0.1 or config.lr * config.weight_decay > 1 or weight > 1e4
