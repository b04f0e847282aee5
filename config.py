"""Every setting of the scripts: its default, the reason for it, and the values it may take.

The command line is made from this file: a field `weight_decay` is the flag `--weight-decay`, and
`--help` prints the reasons. A value that is not allowed is refused before any work starts.

    config = parse(sys.argv[1:], "What train.py does")
"""

import argparse
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent

# Teacher first: a baseline of both is what distillation is measured against.
EXPERIMENTS = {
    "experiment_1": ("densenet169", "resnet18"),
    "experiment_2": ("resnet50", "resnet18"),
}
# Adding another torchvision classifier takes one name here.
MODELS = ("densenet169", "resnet50", "resnet18")
# How a teacher may teach (utils/distillation.py), and the default weight of the method's own term
# where it has one. Those of features and relations make the term end about as large as the
# cross-entropy. RepDistiller's weights (Tian et al. 2020, https://arxiv.org/abs/1910.10699), a
# hundred, ten, ten and thirty times as large, were worse on validation (docs/experiment_2).
METHODS: dict[str, float | None] = {
    "kd": None,
    "dkd": 8.0,  # beta of the authors' code and of ResNet32x4 to ResNet8x4 in Zhao et al. 2022
    "dist": 2.0,  # beta and gamma of Huang et al. 2022
    "fitnet": 1.0,
    "attention": 100.0,
    "rkd": 0.1,  # of 25 distance + 50 angle
    "sp": 100.0,
}
# How training crops are drawn, recorded with every run: those of commit 95c6cac and before, which
# do not say, were cut short at the photo's edges, and are not to be averaged with these.
CROPS, EARLIER_CROPS = "RandomResizedCrop", "cut short"


class UserError(Exception):
    """A problem that the user can fix; scripts print its one or two lines and exit with 2."""


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A parser of whole numbers in [least, most]; raises ValueError naming the allowed values."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            top = f" to {most}" if most < 2**31 - 1 or value > most else " up"
            raise ValueError(f"a whole number from {least}{top}")
        return value

    return parse


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers in [least, most] ((least, most] with `above`)."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low = value > least if above else value >= least
        if not (low and value <= most and math.isfinite(value)):
            lower = f"above {least:g}" if above else f"from {least:g}"
            raise ValueError(f"a number {lower}" + (f" to {most:g}" if most < math.inf else ""))
        return value

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """A parser of one name out of a few."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError("one of " + ", ".join(names))
        return text

    return parse


def device_name(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`; whether the machine has it is seen later."""
    if not re.fullmatch("auto|cpu|cuda(:(0|[1-9][0-9]?))?", text):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return text


def path_name(text: str) -> str:
    """A path as given. An empty one, from an unset shell variable, would be the current folder."""
    if not text:
        raise ValueError("a path")
    return text


def folder(text: str) -> Path:
    """A folder, which need not be there yet."""
    return Path(path_name(text))


def tag_name(text: str) -> str:
    """A short name that is safe in a file name."""
    if len(text) > 60 or not all(c.isalnum() or c in "._" for c in text) or not text.isascii():
        raise ValueError("letters, digits, '.' and '_', 60 at most")
    return text


def tag_of_another(text: str) -> str:
    """The tag of other runs than this command's."""
    if not text:
        raise ValueError("a tag")
    return tag_name(text)


def setting(
    default: Any,
    parse: Callable[[str], Any],
    why: str,
    *,
    group: str,
    many: bool = False,
    shown: str = "",
    names_run: bool = False,
) -> Any:
    """A field of Config.

    `parse` turns one word of the command line into a value and raises ValueError with the allowed
    values; `many` takes several words; `shown` is the default as --help prints it, where None
    stands for something decided later; `names_run` marks what the run's folder name already says
    or what has no influence on its weights, so that --resume need not compare it.
    """
    metadata = {"parse": parse, "why": why, "group": group, "many": many, "shown": shown}
    return field(default=default, metadata=metadata | {"names_run": names_run})


WHAT, DISTILLATION, PHOTOS = "what to run", "distillation", "photos"
RECIPE, MACHINE, FILES = "training recipe", "machine", "files"


@dataclass(frozen=True)
class Config:
    """All settings; the same object serves every run of one command."""

    # fmt: off
    # What to run
    experiment: str = setting(
        "experiment_1", one_of(*EXPERIMENTS), "a teacher and a student: "
        + "; ".join(f"{name} is {' and '.join(pair)}" for name, pair in EXPERIMENTS.items()),
        group=WHAT, names_run=True,
    )
    models: tuple[str, ...] | None = setting(
        None, one_of(*MODELS), "models to train instead of the experiment's: " + ", ".join(MODELS),
        group=WHAT, many=True, shown="the experiment's two", names_run=True,
    )
    seeds: tuple[int, ...] = setting(
        (0,), whole(0), "one run each; they set the first weights, the order and the crops, never "
        "the split. One is enough to try things, a claim needs three or more",
        group=WHAT, many=True, names_run=True,
    )
    tag: str = setting(
        "", tag_name, "added to the run's name, so that a variant stands beside the others",
        group=WHAT, shown="none", names_run=True,
    )

    # Distillation
    reverse: bool = setting(
        False, bool, "the experiment's student teaches the architecture of its teacher",
        group=DISTILLATION, names_run=True,
    )
    teacher: str | None = setting(
        None, one_of(*MODELS), "another teacher than the experiment's: " + ", ".join(MODELS),
        group=DISTILLATION, shown="the experiment's", names_run=True,
    )
    student: str | None = setting(
        None, one_of(*MODELS), "another student than the experiment's; the teacher's own "
        "architecture makes it self-distillation",
        group=DISTILLATION, shown="the experiment's", names_run=True,
    )
    teacher_checkpoint: Path | None = setting(
        None, folder, "best.pt of a finished run that teaches all seeds, instead of one teacher "
        "trained for each seed",
        group=DISTILLATION, shown="the teacher's best of each seed", names_run=True,
    )
    teacher_tag: str | None = setting(
        None, tag_of_another, "the teacher is the run that train.py left under this --tag, for "
        "each seed its own: a teacher may need another recipe than its student",
        group=DISTILLATION, shown="the student's tag and recipe", names_run=True,
    )
    teacher_epochs: int | None = setting(
        None, whole(1), "a schedule of its own for the teacher: from scratch, a large network "
        "needs longer than its student before it has something to teach",
        group=DISTILLATION, shown="--epochs", names_run=True,
    )
    allow_other_split: bool = setting(
        False, bool, "take a --teacher-checkpoint although it was trained on another split and may "
        "have seen the student's test photos; the tables then say so",
        group=DISTILLATION, names_run=True,
    )
    method: tuple[str, ...] = setting(
        ("kd",), one_of(*METHODS), "how the teacher teaches: kd, dkd, dist (its answers); fitnet, "
        "attention (its features); rkd, sp (relations between photos); several make a run each",
        group=DISTILLATION, many=True, names_run=True,
    )
    alpha: tuple[float, ...] = setting(
        (0.7,), number(0, 1), "share of the teacher in (1-alpha)*CE + alpha*T^2*KL; 0 is the "
        "baseline, 1 leaves the labels out (of kd and dist); on validation 0.7, 0.9 and 1 did "
        "alike (docs/recipe.md); several make a run each",
        group=DISTILLATION, many=True, names_run=True,
    )
    temperature: tuple[float, ...] = setting(
        (2.0,), number(0.01, 1000), "T, which softens the teacher's and the student's answers, so "
        "that the unlikely classes count; on validation 2 and 4 did alike (docs/recipe.md); "
        "several make a run each",
        group=DISTILLATION, many=True, names_run=True,
    )
    weight: tuple[float, ...] | None = setting(
        None, number(0), "weight of a method's own term: beta of dkd and dist, and what fitnet, "
        "attention, rkd and sp add to the loss; several make a run each", group=DISTILLATION,
        many=True, shown=", ".join(f"{value:g} for {name}" for name, value in METHODS.items()
        if value), names_run=True,
    )

    # Photos
    data: str | None = setting(
        None, path_name, "folder with one sub-folder of photos per class, or a zip or tar of one, "
        "or the word sample: weather drawn by this repo, which needs no download",
        group=PHOTOS, shown="data/weather if it is there, else sample", names_run=True,
    )
    image_size: int | None = setting(
        None, whole(8, 4096), "side of the square that the network sees, in pixels: 224 is what "
        "ImageNet weights expect; the drawn sample needs no more than 64",
        group=PHOTOS, shown="224, or 64 on the sample", names_run=True,
    )
    split_seed: int = setting(
        0, whole(0), "draws the 70/20/10 split; fixed, so that all seeds share the test photos. "
        "Runs of another stand beside those of 0, under names of their own",
        group=PHOTOS,
    )
    folds: int | None = setting(
        None, whole(3, 100), "cross-validation: divide the photos by class into this many parts, "
        "where fold K tests part K, validates on the next fifth of the parts, one at least, and "
        "trains on the rest; 10 make it 70/20/10, and each photo a test photo once",
        group=PHOTOS, shown="one split", names_run=True,
    )
    fold: tuple[int, ...] | None = setting(
        None, whole(0, 99), "only these of the --folds, from 0",
        group=PHOTOS, many=True, shown="all of them", names_run=True,
    )
    strict: bool = setting(
        False, bool, "stop at photos that cannot be read; by default they are listed and left out, "
        "as a few bad files are normal in a scraped folder",
        group=PHOTOS, names_run=True,
    )

    # Training recipe
    epochs: int = setting(
        15, whole(1), "passes over the training photos: the schedule this work started from",
        group=RECIPE,
    )
    batch_size: int = setting(
        32, whole(2), "photos a step; small batches make more steps of a small dataset",
        group=RECIPE,
    )
    lr: float = setting(
        0.001, number(0, above=True), "peak learning rate: AdamW's usual value; SGD wants 0.05",
        group=RECIPE,
    )
    optimizer: str = setting(
        "adamw", one_of("adamw", "sgd"), "adamw or sgd; AdamW trains all three networks at one "
        "learning rate",
        group=RECIPE,
    )
    weight_decay: float = setting(
        0.05, number(0), "on weight matrices and kernels only, never on biases and norms; up to "
        "0.3 changes nothing in 15 epochs",
        group=RECIPE,
    )
    schedule: str = setting(
        "cosine", one_of("cosine", "constant"), "the learning rate after warm-up: cosine falls to "
        "zero, so that the last epoch is the calm one; or constant",
        group=RECIPE,
    )
    warmup_epochs: float = setting(
        1.0, number(0), "epochs of linear warm-up, while Adam's averages settle",
        group=RECIPE,
    )
    label_smoothing: float = setting(
        0.0, number(0, 0.99), "share of the target spread over all classes; off: with it and "
        "jitter the validation loss was higher",
        group=RECIPE,
    )
    mixup: float = setting(
        0.0, number(0), "alpha of the Beta distribution by which two photos are blended; 0 is off",
        group=RECIPE,
    )
    crop_scale: float = setting(
        0.35, number(0, 1, above=True), "smallest share of a photo's area that a training crop "
        "shows; from 0.5, the network overfitted",
        group=RECIPE,
    )
    grow_from: float = setting(
        1.0, number(0, 1, above=True), "share of --image-size that training images have in the "
        "first epoch; they grow to all of it, which they are in the last fifth of the epochs",
        group=RECIPE,
    )
    clip_norm: float = setting(
        0.0, number(0), "longest gradient allowed (global norm); 0 is off: nothing here diverges",
        group=RECIPE,
    )
    pretrained: bool = setting(
        False, bool, "start from torchvision's ImageNet weights (downloaded once) instead of from "
        "scratch; off, because the scripts must run without a download",
        group=RECIPE,
    )

    # Machine
    device: str = setting(
        "auto", device_name, "cpu, cuda, cuda:N or auto, which takes the GPU if there is one",
        group=MACHINE, names_run=True,
    )
    precision: str = setting(
        "auto", one_of("auto", "bf16", "float32"), "bf16, float32 or auto, which takes bfloat16 "
        "autocast where the device computes it in hardware, and float32 elsewhere, and on a CPU "
        "for images of 16 pixels or less",
        group=MACHINE,
    )
    eager: bool = setting(
        False, bool, "run the training step kernel by kernel, to debug it; by default, on one GPU "
        "in one process, it is recorded once and replayed as a CUDA graph",
        group=MACHINE, names_run=True,
    )
    photos_on: str = setting(
        "auto", one_of("auto", "device", "host"), "where decoded photos lie: device, host or auto, "
        "which is the GPU when they take less than half of its free memory, otherwise the host",
        group=MACHINE, names_run=True,
    )
    workers: int | None = setting(
        None, whole(1, 1024), "threads that decode photos, once per dataset and resolution",
        group=MACHINE, shown="one per core", names_run=True,
    )

    # Files
    output: Path = setting(
        ROOT / "output", folder, "folder for logs/, checkpoints/ and results/", group=FILES,
        shown="output", names_run=True,
    )
    cache: Path = setting(
        ROOT / "output" / "cache", folder, "folder for decoded photos: 200 kB a photo at 224 px, "
        "remade when the photos change, safe to delete",
        group=FILES, shown="output/cache", names_run=True,
    )
    resume: bool = setting(
        False, bool, "go on with unfinished runs and skip finished ones",
        group=FILES, names_run=True,
    )
    overwrite: bool = setting(
        False, bool, "delete earlier runs of the same name first", group=FILES, names_run=True,
    )
    # fmt: on


class _Parser(argparse.ArgumentParser):
    """argparse that raises UserError in one line instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
            self.error(f"unknown argument {word!r}: {hint}")
        return values


def _parser(description: str, distils: bool) -> _Parser:
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=24, width=100
        ),
    )
    wanted = [item for item in dataclasses.fields(Config) if _belongs(item, distils)]
    titles = dict.fromkeys(item.metadata["group"] for item in wanted)
    groups = {title: parser.add_argument_group(title) for title in titles}
    for item in wanted:
        meta = item.metadata
        group = groups[meta["group"]]
        flag = _flag(item.name)
        if meta["parse"] is bool:
            group.add_argument(flag, action="store_true", help=f"{meta['why']} (default: off)")
            continue
        shown = meta["shown"] or _as_words(item.default)
        group.add_argument(
            flag,
            type=_checked(meta["parse"]),
            default=item.default,
            nargs="+" if meta["many"] else None,
            metavar=item.name.rpartition("_")[2].upper(),
            help=f"{meta['why']} (default: {shown})".replace("%", "%%"),
        )
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _belongs(item: dataclasses.Field[Any], distils: bool) -> bool:
    """Whether a script has this flag: one names the models to train, the other who teaches whom."""
    return item.name != "models" if distils else item.metadata["group"] != DISTILLATION


def _as_words(value: Any) -> str:
    return " ".join(map(_as_words, value)) if isinstance(value, tuple) else _short(value)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: {allowed}") from None

    return checked


def parse(arguments: Sequence[str], description: str, *, distils: bool = False) -> Config:
    """The command line of train.py, or of knowledge_distillation.py (`distils`), as a Config.

    Raises UserError, in one line that names the flag and the allowed values, for anything that is
    wrong by itself or in combination; what depends on the photos is checked once they are known.
    """
    values: dict[str, Any] = vars(_parser(description, distils).parse_args(arguments))
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    config = Config(**values)
    check(config)
    check_distillation(config)
    return config


def check(config: Config) -> None:
    """Raise UserError for settings that do not go together."""
    for item in dataclasses.fields(config):
        values = getattr(config, item.name)
        # Runs are named by what is shown, so what is shown alike is one run.
        if item.metadata["many"] and len(set(map(_short, values or ()))) < len(values or ()):
            raise UserError(f"{_flag(item.name)} {_as_words(values)}: each value once")
    if config.fold and max(config.fold) >= (config.folds or 0):
        raise UserError(
            f"--fold {_as_words(config.fold)}: "
            + (
                f"--folds {config.folds} has 0 to {config.folds - 1}"
                if config.folds
                else "it needs --folds"
            )
        )
    if config.resume and config.overwrite:
        raise UserError(
            "--resume keeps earlier runs, --overwrite deletes them: give one of the two"
        )
    for flag, epochs in (
        ("--epochs", config.epochs),
        ("--teacher-epochs", config.teacher_epochs or config.epochs),
    ):
        if config.warmup_epochs > epochs:
            raise UserError(
                f"--warmup-epochs {config.warmup_epochs:g}: at most {flag}, which is {epochs}"
            )


def check_distillation(config: Config) -> None:
    """Raise UserError for a teacher or a method that does not go with the other settings."""
    if config.reverse and (config.teacher or config.student or config.teacher_checkpoint):
        raise UserError(
            "--reverse swaps the experiment's two models: omit it and name the teacher and "
            "the student"
        )
    ways = ("teacher_checkpoint", "teacher_tag", "teacher_epochs")
    given = [_flag(way) for way in ways if getattr(config, way)]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)}: each says by itself which teacher it is; give one of them"
        )
    if config.allow_other_split and not config.teacher_checkpoint:
        raise UserError("--allow-other-split is about a --teacher-checkpoint, and none is given")
    if config.weight is not None and "kd" in config.method:
        raise UserError("--weight: kd has no term of its own to weigh; --alpha is its weight")
    if config.mixup and "dkd" in config.method:
        raise UserError(
            "--method dkd parts the photo's class from all others, and with --mixup a photo has "
            "two: omit one of them"
        )


def pair(config: Config) -> tuple[str, str]:
    """The architectures of the teacher and the student."""
    teacher, student = EXPERIMENTS[config.experiment]
    if config.reverse:
        return student, teacher
    return config.teacher or teacher, config.student or student


def model_names(config: Config) -> tuple[str, ...]:
    """The models to train, in order: `--models`, or the teacher and the student."""
    return config.models or tuple(dict.fromkeys(pair(config)))


def recipe(config: Config) -> dict[str, Any]:
    """The settings that decide a run's weights and are not already in its name, as plain values.

    Two runs of one name have to agree in these before one may resume the other.
    """
    settings = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(Config)
        if not item.metadata["names_run"]
    }
    return settings | {"crops": CROPS}
