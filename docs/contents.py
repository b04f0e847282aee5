"""The runs behind docs/ and README.md, and which of them stand in which table.

docs/results/runs.jsonl holds one run a line: what the documents need of its result.json and, as
`history`, of its history.csv. A name such as resnet18-23epochs stands for the runs
weather-64px-resnet18-23epochs-seedN.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from config import EXPERIMENTS, ROOT, UserError
from data.files import atomic_write
from utils.report import read_results
from utils.tables import (
    PARAMETERS,
    SEVEN_ROWS,
    Columns,
    Result,
    aligned,
    cell,
    points,
    table,
)

T = TypeVar("T")
Runs = Sequence[Result]
FILE = ROOT / "docs" / "results" / "runs.jsonl"
CURVES = ("loss/val", "accuracy/val", "ce/train", "accuracy/train")
PHOTOS = "weather-64px-"  # all runs are on these photos: what follows names them
SEEDS = [f"-seed{seed}" for seed in range(10)]
SPLIT_SEEDS = ["-seed0", *(f"-split{split}-seed{split}" for split in range(1, 6))]
FOLDS = [f"-fold{fold}of10-seed0" for fold in range(10)]
PAGES = [f"docs/{name}/README.md" for name in EXPERIMENTS]
DOCUMENTS = ["README.md", "docs/results.md", "docs/recipe.md", *PAGES]
NAMES = {"densenet169": "DenseNet169", "resnet50": "ResNet50", "resnet18": "ResNet18"}

# Teachers and students of the main picture and table. In a run's name, patient is the tag of 60
# epochs with mixup 0.2, hurried that of 3 epochs, asitwas that of whole photos at a constant rate.
STUDENTS = {
    "DenseNet169, 3 epochs → ResNet18": "resnet18-from-densenet169.hurried-kd-a0.7-T2",
    "DenseNet169 → ResNet18": "resnet18-from-densenet169-kd-a0.7-T2",
    "DenseNet169, 60 epochs → ResNet18": "resnet18-from-densenet169.patient-kd-a0.7-T2",
    "ResNet50 → ResNet18": "resnet18-from-resnet50-kd-a0.7-T2",
    "ResNet50, 60 epochs → ResNet18": "resnet18-from-resnet50.patient-kd-a0.7-T2",
    "ResNet18, 60 epochs → ResNet18": "resnet18-from-resnet18.patient-kd-a0.7-T2",
    "ResNet18, 60 epochs → ResNet18, 60 epochs": "resnet18-from-resnet18-kd-a0.7-T2-patient",
    "ResNet18, 60 epochs → ResNet18 as found": "resnet18-from-resnet18.patient-kd-a0.7-T2-asitwas",
    "ResNet18 → ResNet50": "resnet50-from-resnet18-kd-a0.7-T2",
    "ResNet18, 60 epochs → ResNet50": "resnet50-from-resnet18.patient-kd-a0.7-T2",
    "ResNet18 → DenseNet169": "densenet169-from-resnet18-kd-a0.7-T2",
}
OF_15 = STUDENTS["ResNet18, 60 epochs → ResNet18"]
OF_60 = STUDENTS["ResNet18, 60 epochs → ResNet18, 60 epochs"]
# What a ResNet18 can have without a teacher, beside what teachers give it.
CONTROLS = {
    "alone, 15 epochs": "resnet18",
    "alone, 23 epochs": "resnet18-23epochs",
    "alone, 15 epochs, label smoothing 0.1": "resnet18-smooth",
    "alone, 60 epochs, mixup 0.2": "resnet18-patient",
    "alone, 60 epochs, mixup 1": "resnet18-60epochs.mixup1",
    "15 epochs, taught by an untrained ResNet50": "resnet18-from-resnet50.untrained-kd-a0.7-T2",
    "15 epochs, taught by ResNet50 of 60": "resnet18-from-resnet50.patient-kd-a0.7-T2",
    "15 epochs, taught by ResNet18 of 60": OF_15,
}
# The same ResNet18 on six splits; gains are over the second of each pair.
SPLITS = {
    "alone, 15 epochs": ("resnet18", "resnet18"),
    "alone, 23 epochs": ("resnet18-23epochs", "resnet18"),
    "alone, 15 epochs, label smoothing 0.1": ("resnet18-smooth", "resnet18"),
    "alone, 60 epochs": ("resnet18-patient", "resnet18"),
    "15 epochs, taught by ResNet18 of 60": (OF_15, "resnet18"),
    "the same, over 23 epochs alone": (OF_15, "resnet18-23epochs"),
    "60 epochs, taught by ResNet18 of 60": (OF_60, "resnet18"),
    "the same, over 60 epochs alone": (OF_60, "resnet18-patient"),
    "the same, over the student of 15 epochs": (OF_60, OF_15),
    "the teacher, over its student of 15 epochs": ("resnet18-patient", OF_15),
}
# DenseNet169 teaches ResNet18 as it was found, then with one cause after another fixed. α 0.175 is
# what reduction="mean" makes of 0.7 with eleven classes.
CAUSES = {
    "as found, teacher of 3 epochs": ".hurried-kd-a0.7-T2-asitwas",
    "as found, teacher of 15 epochs, KL divided by the number of classes": "-kd-a0.175-T2-asitwas",
    "as found, teacher of 15 epochs": "-kd-a0.7-T2-asitwas",
    "with random crops": "-kd-a0.7-T2-constant",
    "with random crops and a falling rate": "-kd-a0.7-T2",
    "the same, teacher of 60 epochs with mixup": ".patient-kd-a0.7-T2",
    "the same, teacher of 3 epochs as found": ".hurried-kd-a0.7-T2",
}
# ResNet50 of 60 epochs teaches ResNet18. Features and relations with their default weights, then
# with the larger ones of RepDistiller.
METHODS = "kd dkd-w8 dist-w2 fitnet-w1 attention-w100 rkd-w0.1 sp-w100"
METHODS += " fitnet-w100 attention-w1000 rkd-w1 sp-w3000"


@cache
def kept() -> dict[str, Result]:
    """The results by the runs' names."""
    lines = FILE.read_text("utf-8").splitlines()
    return {result["run"]: result for result in map(json.loads, lines)}


def keep(output: Path) -> int:
    """Add all finished runs on these photos from the scripts' --output, or replace those of their
    names; returns how many. Raises UserError when there is none."""
    found = [run for run in read_results(output / "results") if run["run"].startswith(PHOTOS)]
    if not found:
        raise UserError(f"{output}: no finished run on the photos called weather at 64 px is there")
    for result in found:
        path = output / "results" / result["run"] / "history.csv"
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        result["history"] = {key: [round(float(row[key]), 5) for row in rows] for key in CURVES}
        teacher = result.get("teacher", {})
        for part in (result["val"], teacher.get("val", {}), teacher.get("test", {})):
            part.pop("confusion", None)
        teacher.get("val", {}).pop("wrong", None)
    results = kept() | {result["run"]: result for result in found}
    atomic_write(FILE, "".join(json.dumps(results[name]) + "\n" for name in sorted(results)))
    kept.cache_clear()
    return len(found)


def together(*names: str, endings: Sequence[str] = SEEDS) -> list[list[Result]]:
    """The runs of each name, of the endings that all names have; raises UserError if none is."""
    groups = [[kept().get(PHOTOS + name + ending) for ending in endings] for name in names]
    shared = [runs for runs in zip(*groups, strict=True) if all(runs)]
    if not shared:
        raise UserError(f"{FILE}: no runs called {' and '.join(names)} are kept there")
    return [list(filter(None, runs)) for runs in zip(*shared, strict=True)]


def baselines(students: Runs) -> list[Result]:
    """The same student without a teacher, for each of them."""
    return [kept()[student["distillation"]["baseline"]] for student in students]


def rows_of(rows: Mapping[str, T], columns: Mapping[str, Callable[[T], str]]) -> str:
    """A table with a row for each of `rows` and a column for each of `columns`."""
    lines = [[title, *(show(row) for show in columns.values())] for title, row in rows.items()]
    return aligned(["", *columns], lines)


def accuracy(runs: Runs, part: str = "test") -> str:
    return cell(runs, (part, "accuracy", ".2%"))


def gain(mine: Runs, others: Runs, part: str = "test") -> str:
    """The difference of two lists of runs, pair by pair; nothing of the same runs."""
    return "" if mine == others else points(list(zip(mine, others, strict=True)), part)


# The columns of tables: of students, and of pairs of runs, the second of which is the reference.
DISTILLED: dict[str, Callable[[Runs], str]] = {
    "Runs": lambda runs: str(len(runs)),
    "Teacher": lambda runs: accuracy([run["teacher"] for run in runs]),
    "Student": lambda runs: accuracy(baselines(runs)),
    "KD student": accuracy,
    "KD − student, test [95 %]": lambda runs: gain(runs, baselines(runs)),
    "KD − teacher, test [95 %]": lambda runs: gain(runs, [run["teacher"] for run in runs]),
    "KD − student, validation [95 %]": lambda runs: gain(runs, baselines(runs), "val"),
}
COMPARED: dict[str, Callable[[Sequence[Runs]], str]] = {
    "Runs": lambda pair: str(len(pair[0])),
    "Validation accuracy": lambda pair: accuracy(pair[0], "val"),
    "Validation gain": lambda pair: gain(pair[0], pair[1], "val"),
    "Test accuracy": lambda pair: accuracy(pair[0]),
    "Test gain": lambda pair: gain(pair[0], pair[1]),
    "Test loss": lambda pair: cell(pair[0], ("test", "loss", ".3f")),
}


def students() -> Columns:
    """The groups of students of the main picture and table."""
    titles = ("ResNet18, 60 epochs → ResNet18", "ResNet18, 60 epochs → ResNet18, 60 epochs")
    six = {t: together(STUDENTS[t], endings=SPLIT_SEEDS)[0] for t in titles}
    on_six = {f"{title}, 6 splits": runs for title, runs in six.items()}
    return on_six | {title: together(name)[0] for title, name in STUDENTS.items()}


def basic(experiment: str) -> Columns:
    """An experiment's networks without a teacher."""
    return {
        f"{NAMES[model]}, {epochs} epochs": together(model + tag)[0]
        for model in EXPERIMENTS[experiment]
        for epochs, tag in ((15, ""), (60, "-patient"))
    }


def three(teacher: str, student: str) -> Columns:
    """A teacher, as resnet50 or resnet50.patient, its student alone, and the student with it."""
    names = teacher.replace(".", "-"), student, f"{student}-from-{teacher}-kd-a0.7-T2"
    return dict(zip(("Teacher", "Student", "KD Student"), together(*names), strict=True))


def tables() -> dict[str, str]:
    """All tables by the names of their places."""
    causes = {t: together(f"resnet18-from-densenet169{name}")[0] for t, name in CAUSES.items()}
    start, kd = "resnet18-from-resnet50.patient", "resnet18-from-resnet50.patient-kd-a0.7-T2"
    methods = {"no teacher": together("resnet18", kd)}
    for method, dash, weight in (name.partition("-w") for name in METHODS.split()):
        title = f"{method}, weight {weight}" if weight else method
        methods[title] = together(f"{start}-{method}-a0.7-T2{dash}{weight}", kd)
    start = "resnet18-from-resnet18.patient-kd"
    grid = (("0.7", 2), ("0.9", 2), ("0.9", 4), ("1", 2), ("1", 4))
    settings = {f"α {a}, T {t}": together(f"{start}-a{a}-T{t}", "resnet18") for a, t in grid}
    splits = {title: together(*pair, endings=SPLIT_SEEDS) for title, pair in SPLITS.items()}
    (folds,) = together("resnet18", endings=FOLDS)
    photos = f"{sum(run['test']['photos'] for run in folds):,}"
    over_folds = ["ResNet18, 15 epochs", photos, points([(run, None) for run in folds], sign="")]
    main = students()
    short = ["DenseNet169 → ResNet18", "ResNet50, 60 epochs → ResNet18", *[*main][:3]]
    shorter = {head: show for head, show in DISTILLED.items() if "KD − teacher" not in head}
    made = {
        "main": rows_of(main, DISTILLED),
        "short": rows_of({title: main[title] for title in short}, shorter),
        "controls": rows_of({t: together(n, "resnet18") for t, n in CONTROLS.items()}, COMPARED),
        "methods": rows_of(methods, COMPARED),
        "causes": rows_of(causes, DISTILLED),
        "alpha and temperature": rows_of(settings, COMPARED),
        "splits": rows_of(splits, COMPARED),
        "folds": aligned(["10 folds", "Test photos", "Test accuracy, % [95 %]"], [over_folds]),
    }
    rows = {**SEVEN_ROWS, **PARAMETERS}
    for name, (teacher, student) in EXPERIMENTS.items():
        made[f"{name} basic"] = table(basic(name), rows)
        made[f"{name} kd"] = table(three(teacher, student), rows)
        made[f"{name} kd 60 epochs"] = table(three(f"{teacher}.patient", student), rows)
        made[f"{name} reverse"] = table(three(student, teacher), rows)
    return made
