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

from config import EXPERIMENTS, ROOT, UserError
from data.files import atomic_write
from utils import tables
from utils.report import read_results
from utils.tables import Columns, Result

Runs = Sequence[Result]
Groups = Mapping[str, Sequence[Runs]]  # each of runs and those that they are compared with
FILE = ROOT / "docs" / "results" / "runs.jsonl"
CURVES = ("loss/val", "accuracy/val", "ce/train", "accuracy/train")
PHOTOS = "weather-64px-"  # all runs are on these photos: what follows names them
SEEDS = [f"-seed{seed}" for seed in range(10)]
SPLIT_SEEDS = ["-seed0", *(f"-split{split}-seed{split}" for split in range(1, 6))]
FOLDS = [f"-fold{fold}of10-seed0" for fold in range(10)]
NAMES = {"densenet169": "DenseNet169", "resnet50": "ResNet50", "resnet18": "ResNet18"}

# Teachers and students of the main picture and table. In a run's name, patient is the tag of 60
# epochs with mixup 0.2, hurried that of 3 epochs, asitwas that of whole photos at a constant rate.
OF_15 = "resnet18-from-resnet18.patient-kd-a0.7-T2"
OF_60 = "resnet18-from-resnet18-kd-a0.7-T2-patient"
STUDENTS = {
    "ResNet18, 60 epochs → ResNet18, 6 splits": OF_15,
    "ResNet18, 60 epochs → ResNet18, 60 epochs, 6 splits": OF_60,
    "DenseNet169, 3 epochs → ResNet18": "resnet18-from-densenet169.hurried-kd-a0.7-T2",
    "DenseNet169 → ResNet18": "resnet18-from-densenet169-kd-a0.7-T2",
    "DenseNet169, 60 epochs → ResNet18": "resnet18-from-densenet169.patient-kd-a0.7-T2",
    "ResNet50 → ResNet18": "resnet18-from-resnet50-kd-a0.7-T2",
    "ResNet50, 60 epochs → ResNet18": "resnet18-from-resnet50.patient-kd-a0.7-T2",
    "ResNet18, 60 epochs → ResNet18": OF_15,
    "ResNet18, 60 epochs → ResNet18, 60 epochs": OF_60,
    "ResNet18, 60 epochs → ResNet18 as found": f"{OF_15}-asitwas",
    "ResNet18 → ResNet50": "resnet50-from-resnet18-kd-a0.7-T2",
    "ResNet18, 60 epochs → ResNet50": "resnet50-from-resnet18.patient-kd-a0.7-T2",
    "ResNet18 → DenseNet169": "densenet169-from-resnet18-kd-a0.7-T2",
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
# ResNet50 of 60 epochs teaches ResNet18 by methods of these weights: for features and relations the
# default ones, then the larger ones of RepDistiller.
METHODS = [("dkd", 8), ("dist", 2), ("fitnet", 1), ("attention", 100), ("rkd", 0.1), ("sp", 100)]
METHODS += [("fitnet", 100), ("attention", 1000), ("rkd", 1), ("sp", 3000)]


@cache
def kept() -> dict[str, Result]:
    """The results by the runs' names."""
    lines = FILE.read_text("utf-8").splitlines()
    return {result["run"]: result for result in map(json.loads, lines)}


def keep(output: Path) -> int:
    """Add all finished runs on these photos from the scripts' --output, or replace those of their
    names; returns how many."""
    runs = read_results(output / "results")
    found = [run for run in runs if run["run"].startswith(PHOTOS)]
    for result in found:
        path = output / "results" / result["run"] / "history.csv"
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        result["history"] = {key: [round(float(row[key]), 5) for row in rows] for key in CURVES}
        result["val"].pop("confusion", None)
        result.get("teacher", {}).pop("val", None)
    results = kept() | {result["run"]: result for result in found}
    atomic_write(FILE, "".join(json.dumps(results[name]) + "\n" for name in sorted(results)))
    kept.cache_clear()
    return len(found)


def together(*names: str, endings: Sequence[str] = SEEDS) -> list[list[Result]]:
    """The runs of each name, of the endings that all names have; raises UserError if none is."""
    shared = [end for end in endings if all(PHOTOS + name + end in kept() for name in names)]
    if not shared:
        raise UserError(f"{FILE}: no runs called {' and '.join(names)} are kept there")
    return [[kept()[PHOTOS + name + end] for end in shared] for name in names]


def taught(name: str, endings: Sequence[str] = SEEDS) -> list[list[Result]]:
    """The students of this name, and the same students without a teacher."""
    (runs,) = together(name, endings=endings)
    return [runs, [kept()[run["distillation"]["baseline"]] for run in runs]]


def students() -> Groups:
    """The groups of students of the main picture and table."""
    endings = {title: SPLIT_SEEDS if "6 splits" in title else SEEDS for title in STUDENTS}
    return {title: taught(name, endings[title]) for title, name in STUDENTS.items()}


def experiments() -> dict[str, Columns]:
    """The columns of the two experiments' tables, by the names of the tables."""
    made: dict[str, Columns] = {}
    for experiment, (large, small) in EXPERIMENTS.items():
        made[f"{experiment} basic"] = {
            f"{NAMES[model]}, {epochs} epochs": together(model + tag)[0]
            for model in (large, small)
            for epochs, tag in ((15, ""), (60, "-patient"))
        }
        kinds = {"kd": (large, small), "reverse": (small, large)}
        kinds["kd 60 epochs"] = (f"{large}.patient", small)
        for kind, (teacher, student) in kinds.items():
            names = teacher.replace(".", "-"), student, f"{student}-from-{teacher}-kd-a0.7-T2"
            columns = zip(("Teacher", "Student", "KD Student"), together(*names), strict=True)
            made[f"{experiment} {kind}"] = dict(columns)
    return made


def accuracy(runs: Runs, part: str = "test") -> str:
    return tables.cell(runs, (part, "accuracy", ".2%"))


def gain(mine: Runs, others: Runs, part: str = "test") -> str:
    """The difference of two lists of runs, pair by pair; nothing of the same runs."""
    return "" if mine == others else tables.points(list(zip(mine, others, strict=True)), part)


def rows_of(groups: Groups, columns: Mapping[str, Callable[[Runs, Runs], str]]) -> str:
    """A table with a row for each of `groups` and a column for each of `columns`."""
    lines = [[title, *(show(*runs) for show in columns.values())] for title, runs in groups.items()]
    return tables.aligned(["", *columns], lines)


# The columns of tables of students, and of tables of runs and those that their gains are over.
DISTILLED: dict[str, Callable[[Runs, Runs], str]] = {
    "Runs": lambda runs, _: str(len(runs)),
    "Teacher": lambda runs, _: accuracy([run["teacher"] for run in runs]),
    "Student": lambda _, alone: accuracy(alone),
    "KD student": lambda runs, _: accuracy(runs),
    "KD − student, test [95 %]": gain,
    "KD − teacher, test [95 %]": lambda runs, _: gain(runs, [run["teacher"] for run in runs]),
    "KD − student, validation [95 %]": lambda runs, alone: gain(runs, alone, "val"),
}
COMPARED: dict[str, Callable[[Runs, Runs], str]] = {
    "Runs": lambda runs, _: str(len(runs)),
    "Validation accuracy": lambda runs, _: accuracy(runs, "val"),
    "Validation gain": lambda runs, others: gain(runs, others, "val"),
    "Test accuracy": lambda runs, _: accuracy(runs),
    "Test gain": gain,
    "Test loss": lambda runs, _: tables.cell(runs, ("test", "loss", ".3f")),
}


def all_tables() -> dict[str, str]:
    """All tables by the names of their places."""
    main = students()
    short = ["DenseNet169 → ResNet18", "ResNet50, 60 epochs → ResNet18", *[*main][:3]]
    shorter = {head: show for head, show in DISTILLED.items() if "KD − teacher" not in head}
    causes = {title: taught(f"resnet18-from-densenet169{name}") for title, name in CAUSES.items()}
    start, kd = "resnet18-from-resnet50.patient", "resnet18-from-resnet50.patient-kd-a0.7-T2"
    methods = {"no teacher": together("resnet18", kd), "kd": together(kd, kd)}
    for method, weight in METHODS:
        name = f"{start}-{method}-a0.7-T2-w{weight}"
        methods[f"{method}, weight {weight}"] = together(name, kd)
    settings = {}
    for alpha, temperature in ((0.7, 2), (0.9, 2), (0.9, 4), (1, 2), (1, 4)):
        name = f"resnet18-from-resnet18.patient-kd-a{alpha}-T{temperature}"
        settings[f"α {alpha}, T {temperature}"] = together(name, "resnet18")
    splits = {title: together(*pair, endings=SPLIT_SEEDS) for title, pair in SPLITS.items()}
    (folds,) = together("resnet18", endings=FOLDS)
    over_folds = {
        "10 folds": "ResNet18, 15 epochs",
        "Test photos": f"{sum(run['test']['photos'] for run in folds):,}",
        "Test accuracy, % [95 %]": tables.points([(run, None) for run in folds], sign=""),
    }
    rows = {**tables.SEVEN_ROWS, **tables.PARAMETERS}
    return {
        "main": rows_of(main, DISTILLED),
        "short": rows_of({title: main[title] for title in short}, shorter),
        "causes": rows_of(causes, DISTILLED),
        "controls": rows_of({t: together(n, "resnet18") for t, n in CONTROLS.items()}, COMPARED),
        "methods": rows_of(methods, COMPARED),
        "alpha and temperature": rows_of(settings, COMPARED),
        "splits": rows_of(splits, COMPARED),
        "folds": tables.aligned([*over_folds], [[*over_folds.values()]]),
        **{name: tables.table(columns, rows) for name, columns in experiments().items()},
    }
