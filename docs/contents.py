"""The runs behind docs/ and README.md, and the tables that docs/tables.toml makes of them.

docs/results/runs.jsonl holds one run a line: what the documents need of its result.json and, as
`history`, of its history.csv.
"""

import csv
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from config import ROOT, UserError
from data.files import atomic_write
from utils import tables
from utils.report import read_results
from utils.tables import Columns, Result

Runs = Sequence[Result]
Rows = Sequence[Sequence[str]]  # a title and names of runs
Groups = Mapping[str, tuple[Runs, Runs]]  # runs, and those that they are compared with
FILE = ROOT / "docs" / "results" / "runs.jsonl"
CURVES = ("loss/val", "accuracy/val", "ce/train", "accuracy/train")
PHOTOS = "weather-64px-"  # all runs are on these photos: what follows names them
ENDINGS = {
    "seeds": [f"-seed{seed}" for seed in range(10)],
    "splits": ["-seed0", *(f"-split{split}-seed{split}" for split in range(1, 6))],
    "folds": [f"-fold{fold}of10-seed0" for fold in range(10)],
}


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


def together(*names: str, endings: str = "seeds") -> list[Runs]:
    """The runs of each name, of the endings that all names have; raises UserError if none is."""
    each = ENDINGS[endings]
    shared = [end for end in each if all(PHOTOS + name + end in kept() for name in names)]
    if not shared:
        raise UserError(f"{FILE}: no runs called {' and '.join(names)} are kept there")
    return [[kept()[PHOTOS + name + end] for end in shared] for name in names]


def compared(name: str, other: str = "", endings: str = "seeds") -> tuple[Runs, Runs]:
    """Runs, and those that they are compared with: by default, their own baselines."""
    runs = together(*filter(None, (name, other)), endings=endings)
    if not other:
        runs.append([kept()[run["distillation"]["baseline"]] for run in runs[0]])
    return runs[0], runs[1]


def groups(rows: Rows) -> Groups:
    """The runs of each row of a table, and those that they are compared with."""
    return {title: compared(*names) for title, *names in rows}


def columns(rows: Rows, kind: str) -> Columns:
    """The runs of each column of a table: of all their seeds, or of those that all have."""
    titles, names = zip(*rows, strict=True)
    runs = together(*names) if kind == "together" else [together(name)[0] for name in names]
    return dict(zip(titles, runs, strict=True))


def accuracy(runs: Runs, part: str = "test") -> str:
    return tables.cell(runs, (part, "accuracy", ".2%"))


def gain(mine: Runs, others: Runs, part: str = "test") -> str:
    """The difference of two lists of runs, pair by pair; nothing of the same runs."""
    return "" if mine == others else tables.points(list(zip(mine, others, strict=True)), part)


# The columns of tables by their kinds; each shows runs and those that they are compared with.
Show = Callable[[Runs, Runs], str]
DISTILLED: dict[str, Show] = {
    "Runs": lambda runs, _: str(len(runs)),
    "Teacher": lambda runs, _: accuracy([run["teacher"] for run in runs]),
    "Student": lambda _, alone: accuracy(alone),
    "KD student": lambda runs, _: accuracy(runs),
    "KD − student, test [95 %]": gain,
    "KD − teacher, test [95 %]": lambda runs, _: gain(runs, [run["teacher"] for run in runs]),
    "KD − student, validation [95 %]": lambda runs, alone: gain(runs, alone, "val"),
}
KINDS: dict[str, dict[str, Show]] = {
    "distilled": DISTILLED,
    "short": {head: show for head, show in DISTILLED.items() if "KD − teacher" not in head},
    "compared": {
        "Runs": lambda runs, _: str(len(runs)),
        "Validation accuracy": lambda runs, _: accuracy(runs, "val"),
        "Validation gain": lambda runs, others: gain(runs, others, "val"),
        "Test accuracy": lambda runs, _: accuracy(runs),
        "Test gain": gain,
        "Test loss": lambda runs, _: tables.cell(runs, ("test", "loss", ".3f")),
    },
    "folds": {
        "Test photos": lambda runs, _: f"{sum(run['test']['photos'] for run in runs):,}",
        "Test accuracy, % [95 %]": lambda runs, _: tables.points(
            [(run, None) for run in runs], sign=""
        ),
    },
}


def declared() -> dict[str, dict[str, Any]]:
    """What docs/tables.toml says of each table."""
    return tomllib.loads((ROOT / "docs" / "tables.toml").read_text("utf-8"))


def table(kind: str, rows: Rows) -> str:
    """A table of this kind."""
    if kind in ("each", "together"):
        return tables.table(columns(rows, kind), {**tables.SEVEN_ROWS, **tables.PARAMETERS})
    cells = KINDS[kind]
    lines = [
        [title, *(cell(*runs) for cell in cells.values())] for title, runs in groups(rows).items()
    ]
    return tables.aligned(["", *cells], lines)
