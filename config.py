"""Every setting of the scripts: its default, the values it may take, and a line of help.

The command line is made from this file: a field `weight_decay` is the flag `--weight-decay`. Flags
that take several values (`--seeds 0 1 2`) make one Config, and so one run, for each combination.

    configs = parse(sys.argv[1:], "What train.py does")
"""

import argparse
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent

# Teacher, student; each is also trained alone, as the baseline.
EXPERIMENTS = {
    "experiment_1": ("densenet169", "resnet18"),
    "experiment_2": ("resnet50", "resnet18"),
}
SMALLEST, LARGEST = 32, 4096  # side of images in pixels: networks halve them five times


class UserError(Exception):
    """A problem that the user can fix; scripts print its one or two lines and exit with 2."""


def shown(text: object, keep: str = "\n") -> str:
    """The text with escapes for control and other unprintable characters, except for `keep`."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in str(text))


def one_line(problem: object, most: int = 150) -> str:
    """What an error says (of torch.load's, the reason alone), or its type, in one short line."""
    text = " ".join(str(problem).split()).rpartition("WeightsUnpickler error: ")[2]
    return text.partition(" Please use `torch")[0][:most] or repr(problem)


def plain_name(path: Path) -> str:
    """The name of a file or folder without endings, safe in file names."""
    stem = os.path.basename(os.path.realpath(path)).split(".")[0] or "photos"
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in stem)[:60]


def network_name(model: str) -> str:
    """As run names and tables call a network: FILE.py:FUNCTION is FILE.FUNCTION."""
    file, _, function = model.rpartition(":")
    return f"{plain_name(Path(file))}.{function}" if file else model


@cache
def file_digest(path: Path) -> str:
    """16 hex digits that stand for a file's bytes when a command first reads it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def unchanged(path: Path) -> Path:
    """The path; raises UserError if its file is not what `file_digest` has read."""
    if file_digest(path) != file_digest.__wrapped__(path):
        raise UserError(f"{str(path)!r} has changed since this command was started")
    return path


def number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """An argparse type: an int or a finite float in [low, high], or (low, high] with `above`."""
    most = min(high, 2**31 - 1) if kind is int else high
    allowed = f"{'an integer' if kind is int else 'a number'} {'above' if above else 'from'} "
    allowed += f"{low:g}" + ("" if math.isinf(most) else f" to {most}")

    def parse(text: str) -> Any:
        with suppress(ValueError):
            value = kind(text)
            if (low < value if above else low <= value) and value <= most and math.isfinite(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")

    return parse


def matching(pattern: str, what: str, kind: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """An argparse type: text that the whole pattern matches, as `kind`."""

    def parse(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)

    return parse


# An empty path, from an unset shell variable, would be the current folder.
PATH = matching(r"(?s:.+)", "a path", lambda text: Path(os.path.expanduser(text)))
TAG = matching(r"[\w.]{1,60}", "1 to 60 letters, digits, '.' or '_'")
MODEL = matching(r"[a-z]\w*|(?s:.+)\.py:[a-zA-Z_]\w*", "a network's name or FILE.py:FUNCTION")
DEVICE = matching("auto|cpu|cuda(:[1-9]?[0-9])?", "auto, cpu, cuda or cuda:N")


def checkpoint(text: str) -> Path:
    """An argparse type: the path of a checkpoint, or of a run's folder, whose best.pt it takes."""
    path = PATH(text)
    return path / "best.pt" if path.is_dir() else path


def new_file(text: str) -> Path:
    """An argparse type: the path of a file to write; a folder or a device is refused."""
    if (path := PATH(text)).exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder or a device, not a file")
    return path


def setting(default: Any, kind: Callable[[str], Any] | Sequence[str], text: str) -> Any:
    """A field of a configuration, which is a flag. `kind` is bool for a switch, converts one word,
    or lists the choices, where () stands for all methods; `text` is the help."""
    return field(default=default, metadata={"kind": kind, "text": text})


# The flags of these fields take several values, and each value makes a run of its own.
SEVERAL = {"model", "seed", "fold", "method", "alpha", "temperature", "weight"}


# fmt: off
@dataclass(frozen=True)
class KDConfig:
    """The settings of distillation."""

    teacher: str = setting("", MODEL, "network to use instead of the experiment's teacher")
    teacher_tag: str | None = setting(None, TAG, "the teacher is train.py's run with this --tag")
    teacher_checkpoint: Path | None = setting(None, checkpoint, "a run's folder or best.pt, to "
        "use as teacher for all seeds, or a file of weights of the --teacher network, for the same "
        "classes in alphabetical order, with --allow-other-split")
    allow_other_split: bool = setting(False, bool, "accept a --teacher-checkpoint of another split")
    unlabelled: Path | None = setting(None, PATH, "folder or archive of unlabelled photos: on "
        "these, the student learns only from the teacher")
    method: str = setting("kd", (), "distillation method")
    alpha: float = setting(0.7, number(float, 0, 1), "weight of the teacher in (1-alpha)*CE + "
        "alpha*T^2*KL")
    temperature: float = setting(2.0, number(float, 0.01, 1000), "T, softens the probabilities")
    weight: float | None = setting(None, number(float, 0), "beta of dkd and dist; for the other "
        "methods except kd, the weight of their term (default: the method's)")

    def __str__(self) -> str:
        weight = "" if self.weight is None else f"-w{self.weight:.15g}"
        more = f"-and-{plain_name(self.unlabelled)}" if self.unlabelled else ""
        return f"{self.method}-a{self.alpha:.15g}-T{self.temperature:.15g}{weight}{more}"


@dataclass(frozen=True)
class Config:
    """The settings of one run: of a baseline or, with `kd`, of a student that has a teacher."""

    # What to run
    model: str = setting("resnet18", MODEL, "networks to train (default: the experiment's two): "
        "names that `python -m models.factory` lists or, for your own, FILE.py:FUNCTION, which is "
        "called with the number of classes")
    seed: int = setting(0, number(int, 0), "for initial weights, batches and crops, not the split")
    tag: str = setting("", TAG, "added to the run's name, to tell variants apart")
    kd: KDConfig | None = None

    # Photos
    data: str = setting("sample", matching(r"(?s:.+)", "a path", os.path.expanduser), "folder "
        "with a sub-folder of photos per class; one split into train, val and test; a CSV with "
        "columns path, class and perhaps split; an archive of these; or `sample`: synthetic "
        "weather (default: data/weather or data/weather.zip if it exists, else sample)")
    image_size: int = setting(64, number(int, SMALLEST, LARGEST), "side of the square images that "
        "the network sees, in pixels (default: 224; 64 on the sample)")
    split_seed: int = setting(0, number(int, 0), "draws the 70/20/10 split, or folds")
    folds: int | None = setting(None, number(int, 3, 100), "number of cross-validation folds: fold "
        "K tests on part K, validates on the next fifth of the parts and trains on the rest")
    fold: int | None = setting(None, number(int, 0, 99), "run only these folds, counted from 0")
    labels_per_class: float | None = setting(None, number(float, 0, above=True), "how many "
        "training labels to use per class, or the fraction if below 1; a student with a teacher "
        "uses the other photos as unlabelled")
    duplicates: str = setting("near", ("near", "exact", "off"), "which photos to keep in the same "
        "part of the split: near-duplicates (near), identical files (exact) or none (off)")

    # Training recipe; docs/recipe.md has the reasons for the defaults
    epochs: int = setting(15, number(int, 1), "passes over the training photos")
    batch_size: int = setting(32, number(int, 2), "photos per step")
    lr: float = setting(0.001, number(float, 0, above=True), "peak learning rate")
    optimizer: str = setting("adamw", ("adamw", "sgd"), "SGD needs another --lr, such as 0.05")
    weight_decay: float = setting(0.05, number(float, 0), "of weights, not of biases and norms")
    schedule: str = setting("cosine", ("cosine", "constant"), "after warm-up; cosine decays to 0")
    warmup_epochs: float = setting(1.0, number(float, 0), "epochs of linear warm-up")
    label_smoothing: float = setting(0.0, number(float, 0, 0.99), "probability spread over classes")
    mixup: float = setting(0.0, number(float, 0), "alpha of the Beta distribution; 0 disables it")
    crop_scale: float = setting(0.35, number(float, 0, 1, above=True), "smallest crop area, 0..1")
    clip_norm: float = setting(0.0, number(float, 0), "clip gradients to this norm; 0 is off")
    pretrained: bool = setting(False, bool, "start from torchvision's ImageNet weights")
    weights: Path | None = setting(None, checkpoint, "start from a file of weights (a state_dict)")

    # Machine and files
    device: str = setting("auto", DEVICE, "cpu, cuda or cuda:N; auto is the GPU if there is one")
    precision: str = setting("auto", ("auto", "bf16", "float32"), "auto: bf16 where it is faster")
    eager: bool = setting(False, bool, "no CUDA graphs: launch kernel by kernel, for debugging")
    output: Path = setting(ROOT / "output", PATH, "folder of all results (default: output)")
    cache: Path = setting(ROOT / "output" / "cache", PATH, "folder for decoded photos, 200 kB each "
        "at 224 px; safe to delete (default: output/cache)")
    resume: bool = setting(False, bool, "continue unfinished runs, skip finished ones")
    overwrite: bool = setting(False, bool, "delete runs of these names; finished teachers stay")

    def __post_init__(self) -> None:
        """Raise UserError for settings that do not go together."""
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise UserError(f"--fold {self.fold} needs --folds {max(3, self.fold + 1)} or more")
        if self.resume and self.overwrite:
            raise UserError("--resume keeps earlier runs, --overwrite deletes them: give one")
        if self.pretrained and self.weights:
            raise UserError("--pretrained and --weights exclude each other: give one")
        per_class = self.labels_per_class or 0
        if per_class > 1 and per_class % 1:
            raise UserError("--labels-per-class: an integer, or a fraction below 1")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs} exceeds --epochs {self.epochs}")

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides a run's weights and is not all in its name: settings and kind of crops."""
        names = [item.name for item in fields(self)]
        names = ["split_seed", *names[names.index("epochs") : names.index("device")]]
        values = {name: getattr(self, name) for name in names} | {"crops": "RandomResizedCrop"}
        return values | {"weights": self.weights and file_digest(self.weights)}


# fmt: on
GROUPS = {
    "model": "what to run",
    "teacher": "distillation",
    "data": "photos",
    "epochs": "training recipe",
    "device": "machine and files",
}


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError in one line instead of printing its usage and exiting."""

    def __init__(self, description: str, program: str | None = None, **options: Any) -> None:
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(program, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        hint = "; --help lists the flags" if "unrecognized" in message else ""
        raise UserError(" ".join(message.removeprefix("argument ").split()) + hint)


def _make_parser(description: str, methods: Iterable[str]) -> Parser:
    """The flags of train.py or, with methods, of knowledge_distillation.py; without defaults."""
    parser = Parser(description, argument_default=argparse.SUPPRESS)
    group: Any = parser
    pairs = "; ".join(f"{name} is {t} and {s}" for name, (t, s) in EXPERIMENTS.items())
    group.add_argument("--experiment", choices=EXPERIMENTS, default="experiment_1", help=pairs)
    if methods:
        group.add_argument("--reverse", action="store_true", help="swap teacher and student")
        text = "instead of the experiment's student; `python -m models.factory` lists names"
        group.add_argument("--student", type=MODEL, metavar="MODEL", help=text)
    for item in (*(fields(KDConfig) if methods else ()), *fields(Config)):
        group = parser.add_argument_group(GROUPS[item.name]) if item.name in GROUPS else group
        if item.name == "kd" or (methods and item.name == "model"):
            continue
        kind, text = item.metadata.values()
        how: dict[str, Any] = {"action": "store_true"}
        if kind is not bool:
            how = {"type": kind} if callable(kind) else {"choices": kind or tuple(methods)}
            how["nargs"] = "+" if item.name in SEVERAL else None
            if item.default not in (None, "") and "default:" not in text:
                text += f" (default: {item.default})"
        flag = item.name.replace("_", "-") + "s" * (item.name in ("model", "seed"))
        group.add_argument(f"--{flag}", dest=item.name, help=text, **how)
    return parser


def parse(
    arguments: Sequence[str], description: str, methods: Mapping[str, Any] | None = None
) -> list[Config]:
    """The runs that a command line asks for, by fold, by seed, then by model or by method; with
    `methods`, the table of knowledge_distillation.py, each is a student's. Raises UserError, in one
    line that names the flag, for anything that is invalid alone or in combination."""
    file_digest.cache_clear()  # for several commands in one process
    given = vars(_make_parser(description, methods or ()).parse_args(arguments))
    pair, kds = EXPERIMENTS[given.pop("experiment")], [None]
    models = given.pop("model", pair)
    if methods:
        models, kds = _kd_configs(given, *pair, methods)
    weather = [ROOT / "data" / name for name in ("weather", "weather.zip")]
    given.setdefault("data", next((str(path) for path in weather if path.exists()), "sample"))
    given.setdefault("image_size", 64 if given["data"] == "sample" else 224)
    seeds, folds = given.pop("seed", [0]), given.pop("fold", [])
    config = Config(**given)
    if config.weights and len(set(models)) > 1:
        raise UserError("--weights is for one network: give one name to --models")
    folds = folds or (range(config.folds) if config.folds else [None])
    runs = (
        replace(config, fold=fold, seed=seed, model=model, kd=kd)
        for fold, seed, model, kd in product(folds, seeds, models, kds)
    )
    return list(dict.fromkeys(runs))  # what is given twice is one run


def _kd_configs(
    given: dict[str, Any], teacher: str, student: str, methods: Mapping[str, Any]
) -> tuple[list[str], list[Any]]:
    """The student's network and a KDConfig for each combination; their flags leave `given`."""
    reverse = given.pop("reverse", False)
    if reverse and {"teacher", "student", "teacher_checkpoint"} & given.keys():
        raise UserError("--reverse excludes --teacher, --student and --teacher-checkpoint: omit it")
    if {"teacher_tag", "teacher_checkpoint"} <= given.keys():
        raise UserError("--teacher-tag and --teacher-checkpoint exclude each other: give one")
    if "allow_other_split" in given and "teacher_checkpoint" not in given:
        raise UserError("--allow-other-split needs --teacher-checkpoint")
    if "teacher_checkpoint" not in given:
        given.setdefault("teacher", student if reverse else teacher)
    values = {f.name: given.pop(f.name) for f in fields(KDConfig) if f.name in given}
    grid = [values.pop(f.name, [f.default]) for f in fields(KDConfig) if f.name in SEVERAL]
    kds = []
    for method, alpha, temperature, weight in product(*grid):
        default = methods[method].weight
        if weight is not None and default is None:
            raise UserError(f"--weight: {method} has no term of its own: set --alpha")
        weight = default if weight is None else weight
        kd = KDConfig(**values, method=method, alpha=alpha, temperature=temperature, weight=weight)
        kds.append(kd)
    return [given.pop("student", teacher if reverse else student)], kds
