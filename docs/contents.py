"""Which runs stand in which table of docs/ and README.md; docs/figures.py has the figures.

A name such as resnet18-23epochs stands for the runs weather-64px-resnet18-23epochs-seedN.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from config import EXPERIMENTS
from docs.kept import PHOTOS, baselines, kept, on_folds, on_splits, seeds, teachers, together
from utils.report import (
    SEVEN_ROWS,
    SIZE_ROWS,
    Columns,
    Result,
    aligned,
    cell,
    gain_over,
    in_points,
    pooled,
    table,
)

T = TypeVar("T")
Runs = Sequence[Result]
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
METHODS = [
    "kd", "dkd-w8", "dist-w2", "fitnet-w1", "attention-w100", "rkd-w0.1", "sp-w100",
    "fitnet-w100", "attention-w1000", "rkd-w1", "sp-w3000",
]  # fmt: skip


def rows_of(rows: Mapping[str, T], columns: Mapping[str, Callable[[T], str]]) -> str:
    """A table with a row for each of `rows` and a column for each of `columns`."""
    lines = [[title, *(show(row) for show in columns.values())] for title, row in rows.items()]
    return aligned(["", *columns], lines)


def accuracy(runs: Runs, part: str = "test") -> str:
    return cell(runs, (part, "accuracy", ".2%"))


def gain(mine: Runs, others: Runs, part: str = "test") -> str:
    """What `mine` are better than `others`, pair by pair, in points with a 95 % interval; nothing
    of the same runs."""
    return "" if mine == others else in_points(gain_over(zip(mine, others, strict=True), part))


def students() -> Columns:
    """The groups of students of the main picture and table."""
    on_six = {
        "ResNet18, 60 epochs → ResNet18, 6 splits": on_splits(OF_15),
        "ResNet18, 60 epochs → ResNet18, 60 epochs, 6 splits": on_splits(OF_60),
    }
    return on_six | {title: seeds(name) for title, name in STUDENTS.items()}


DISTILLED: dict[str, Callable[[Runs], str]] = {
    "Seeds": lambda runs: str(len(runs)),
    "Teacher": lambda runs: accuracy(teachers(runs)),
    "Student": lambda runs: accuracy(baselines(runs)),
    "KD Student": accuracy,
    "KD − student": lambda runs: gain(runs, baselines(runs)),
    "KD − teacher": lambda runs: gain(runs, teachers(runs)),
    "validation: KD − student": lambda runs: gain(runs, baselines(runs), "val"),
}
SHORT = (
    "DenseNet169 → ResNet18",
    "ResNet50, 60 epochs → ResNet18",
    "ResNet18, 60 epochs → ResNet18, 6 splits",
    "ResNet18, 60 epochs → ResNet18, 60 epochs, 6 splits",
    "DenseNet169, 3 epochs → ResNet18",
)


def short() -> str:
    """The rows SHORT of the main table, without the differences to the teachers."""
    heads = ("Runs", "Teacher", "Student", "KD student", "KD − student, test [95 %]", "",
             "KD − student, validation [95 %]")  # fmt: skip
    columns = dict(zip(heads, DISTILLED.values(), strict=True))
    del columns[""]
    return rows_of({title: students()[title] for title in SHORT}, columns)


def compared(names: Mapping[str, str], other: str) -> str:
    """Runs, and their gains over the `other` runs of the same seeds."""
    columns: dict[str, Callable[[Any], str]] = {
        "Seeds": lambda pair: str(len(pair[0])),
        "Validation accuracy": lambda pair: accuracy(pair[0], "val"),
        "Validation gain": lambda pair: gain(pair[0], pair[1], "val"),
        "Test accuracy": lambda pair: accuracy(pair[0]),
        "Test gain": lambda pair: gain(*pair),
        "Test loss": lambda pair: cell(pair[0], ("test", "loss", ".3f")),
    }
    return rows_of({title: together(name, other) for title, name in names.items()}, columns)


def differences(rows: Mapping[str, tuple[str, str]]) -> str:
    """How much better the first of two names are than the second, over splits."""
    lines = []
    for title, names in rows.items():
        mine, others = map(on_splits, names)
        lines.append([title, gain(mine, others, "val"), gain(mine, others)])
    return aligned(("over 6 splits", "Validation", "Test"), lines)


def over_splits(names: Mapping[str, str]) -> str:
    """The accuracies on each split, and in brackets what they are better than those of the first
    column in points; the means ± their standard deviations, and the gain with its interval."""
    groups = [on_splits(name) for name in names.values()]
    lines = []
    for part, title in (("val", "validation"), ("test", "test")):
        values = np.array([[run[part]["accuracy"] for run in group] for group in groups]).T
        points = 100 * (values - values[:, :1])
        for split, row in enumerate(zip(values, points, strict=True)):
            cells = [f"{value:.2%} ({more:+.2f})" for value, more in zip(*row, strict=True)]
            lines.append([f"{title}, split {split}", f"{values[split, 0]:.2%}", *cells[1:]])
        spreads = zip(groups, points.mean(0), points.std(0, ddof=1), strict=True)
        cells = [f"{accuracy(group, part)} ({m:+.2f} ± {sd:.2f})" for group, m, sd in spreads]
        lines.append([f"{title}, mean", accuracy(groups[0], part), *cells[1:]])
        gains = [gain(group, groups[0], part) for group in groups]
        lines.append([f"{title}, mean gain [95 %]", *gains])
    return aligned(("", *names), lines)


def grid(name: str, alphas: Sequence[str], temperatures: Sequence[str]) -> str:
    """Best validation accuracy and lowest validation loss of seed 0 by α and T, where tried."""
    show = "{best_val_accuracy:.2%}, {best_val_loss:.3f}".format_map
    lines = []
    for alpha in alphas:
        runs = [kept().get(f"{PHOTOS}{name}-a{alpha}-T{t}-seed0") for t in temperatures]
        lines.append([f"α {alpha}", *(show(run["table"]) if run else "" for run in runs)])
    return aligned(("", *(f"T {temperature}" for temperature in temperatures)), lines)


def cost() -> str:
    """What all kept runs took, by network and schedule."""
    kinds: dict[str, list[float]] = {}
    for run in kept().values():
        teacher = f" with {run['teacher']['arch']} as teacher" if "teacher" in run else ""
        kind = f"{run['model']}{teacher}, {run['epochs']} epoch{'s' * (run['epochs'] > 1)}"
        kinds.setdefault(kind, []).append(run["seconds"] / 60)
    lines = [
        [kind, str(len(minutes)), f"{statistics.median(minutes):.1f}", f"{sum(minutes) / 60:.1f}"]
        for kind, minutes in sorted(kinds.items())
    ]
    hours = sum(map(sum, kinds.values())) / 60
    lines.append(["together", str(len(kept())), "", f"{hours:.1f}"])
    return aligned(("", "Runs", "Minutes a run", "Hours"), lines)


def basic(experiment: str) -> Columns:
    """An experiment's networks without a teacher."""
    return {
        f"{NAMES[model]}, {epochs} epochs": seeds(model + tag)
        for model in EXPERIMENTS[experiment]
        for epochs, tag in ((15, ""), (60, "-patient"))
    }


def three(teacher: str, student: str) -> Columns:
    """A teacher, as resnet50 or resnet50.patient, its student alone, and the student with it."""
    names = teacher.replace(".", "-"), student, f"{student}-from-{teacher}-kd-a0.7-T2"
    return dict(zip(("Teacher", "Student", "KD Student"), together(*names), strict=True))


def seven(columns: Columns) -> str:
    """The seven rows and the parameters."""
    return table("", columns, {**SEVEN_ROWS, **SIZE_ROWS})


def tables() -> dict[str, str]:
    """All tables by the names of their places."""
    causes = {title: f"resnet18-from-densenet169{name}" for title, name in CAUSES.items()}
    methods = {"no teacher": "resnet18"}
    for method, dash, weight in (name.partition("-w") for name in METHODS):
        name = f"resnet18-from-resnet50.patient-{method}-a0.7-T2{dash}{weight}"
        methods[f"{method}, weight {weight}" if weight else method] = name
    made = {
        "main": rows_of(students(), DISTILLED),
        "short": short(),
        "controls": compared(CONTROLS, "resnet18"),
        "methods": compared(methods, methods["kd"]),
        "causes": rows_of({title: seeds(name) for title, name in causes.items()}, DISTILLED),
        "alpha and temperature": grid(
            "resnet18-from-resnet18.patient-kd", ("0.7", "0.9", "1"), ("2", "4")
        ),
        "splits": over_splits({
            "alone, 15 epochs": "resnet18",
            "23 epochs": "resnet18-23epochs",
            "label smoothing 0.1": "resnet18-smooth",
            "taught by ResNet18 of 60": OF_15,
        }),
        "splits of 60 epochs": over_splits({
            "alone, 60 epochs": "resnet18-patient",
            "taught by that for 60 epochs": OF_60,
        }),
        "differences": differences({
            "taught by ResNet18 of 60, 15 epochs − alone, 23 epochs": (OF_15, "resnet18-23epochs"),
            "teacher of 60 epochs − its student of 15": ("resnet18-patient", OF_15),
            "its student of 60 epochs − its student of 15": (OF_60, OF_15),
        }),
        "folds": pooled({"ResNet18, 15 epochs": on_folds("resnet18")}),
        "cost": cost(),
    }  # fmt: skip
    for name, (teacher, student) in EXPERIMENTS.items():
        made |= {
            f"{name} basic": seven(basic(name)),
            f"{name} kd": seven(three(teacher, student)),
            f"{name} kd 60 epochs": seven(three(f"{teacher}.patient", student)),
            f"{name} reverse": seven(three(student, teacher)),
        }
    return made
