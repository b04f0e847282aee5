"""Which runs stand in which table of docs/ and README.md; docs/figures.py has the figures.

A name such as resnet18-23epochs stands for the runs weather-64px-resnet18-23epochs-seedN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from config import EXPERIMENTS
from docs.kept import baselines, on_folds, on_splits, seeds, teachers, together
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
RunsOf = Callable[..., list[list[Result]]]
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
        "ResNet18, 60 epochs → ResNet18, 6 splits": on_splits(OF_15)[0],
        "ResNet18, 60 epochs → ResNet18, 60 epochs, 6 splits": on_splits(OF_60)[0],
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


def compared(pairs: Mapping[str, tuple[str, str]], runs_of: RunsOf = together) -> str:
    """The runs of the first name of each pair, and their gains over those of the second."""
    columns: dict[str, Callable[[Any], str]] = {
        "Runs": lambda pair: str(len(pair[0])),
        "Validation accuracy": lambda pair: accuracy(pair[0], "val"),
        "Validation gain": lambda pair: gain(pair[0], pair[1], "val"),
        "Test accuracy": lambda pair: accuracy(pair[0]),
        "Test gain": lambda pair: gain(*pair),
        "Test loss": lambda pair: cell(pair[0], ("test", "loss", ".3f")),
    }
    return rows_of({title: runs_of(*names) for title, names in pairs.items()}, columns)


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
        "controls": compared({title: (name, "resnet18") for title, name in CONTROLS.items()}),
        "methods": compared({title: (name, methods["kd"]) for title, name in methods.items()}),
        "causes": rows_of({title: seeds(name) for title, name in causes.items()}, DISTILLED),
        "alpha and temperature": compared(
            {f"α {alpha}, T {t}": (f"resnet18-from-resnet18.patient-kd-a{alpha}-T{t}", "resnet18")
             for alpha, t in (("0.7", 2), ("0.9", 2), ("0.9", 4), ("1", 2), ("1", 4))}
        ),
        "splits": compared(SPLITS, on_splits),
        "folds": pooled({"ResNet18, 15 epochs": on_folds("resnet18")}),
    }  # fmt: skip
    for name, (teacher, student) in EXPERIMENTS.items():
        made |= {
            f"{name} basic": seven(basic(name)),
            f"{name} kd": seven(three(teacher, student)),
            f"{name} kd 60 epochs": seven(three(f"{teacher}.patient", student)),
            f"{name} reverse": seven(three(student, teacher)),
        }
    return made
