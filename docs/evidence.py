"""The runs behind docs/ and README: their results, kept in docs/results, and the tables of them.

A table stands in a Markdown file between two comments, and `written` puts it there again:

    <!-- table: NAME -->
    ...
    <!-- end -->
"""

import re
import shutil
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path

from config import ROOT, UserError
from utils.comparison import gain_over, in_points
from utils.tables import (
    SEVEN_ROWS,
    Columns,
    Result,
    aligned,
    mean_and_spread,
    read_result_file,
    table,
)

RESULTS = ROOT / "docs" / "results"
# All share photos and resolution, and seeds belong together: what is between names the runs.
NAME = re.compile(r"weather-64px-(.+)-seed(\d+)")
PARAMETERS = {"Parameters": (lambda r: r["parameters"], ",.0f")}
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.S)


@cache
def kept() -> dict[str, list[Result]]:
    """The results in docs/results by name, each name's in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for path in sorted(RESULTS.glob("*/result.json")):
        if match := NAME.fullmatch(path.parent.name):
            found.setdefault(match[1], []).append(read_result_file(path))
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in found.items()}


def runs(name: str) -> list[Result]:
    """One result for each seed; raises UserError when none is kept."""
    if name not in kept():
        raise UserError(f"{RESULTS}: no run weather-64px-{name}-seedN is kept there")
    return kept()[name]


def keep(output: Path) -> list[str]:
    """Copy result.json and history.csv of all finished runs on the photos that docs/ is about from
    `output` into docs/results; returns their names."""
    names = []
    for path in sorted((output / "results").glob("*/result.json")):
        if NAME.fullmatch(path.parent.name):
            folder = RESULTS / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for file in (path, path.parent / "history.csv"):
                shutil.copy(file, folder)
            names.append(folder.name)
    kept.cache_clear()
    return names


def seven_rows(columns: dict[str, str]) -> str:
    """The seven rows of validation, training and test, for columns by the names of their runs."""
    return table("", results(columns), SEVEN_ROWS | PARAMETERS)


def results(columns: dict[str, str]) -> Columns:
    """The results behind names of runs, of the seeds that all of them have."""
    groups = {title: runs(name) for title, name in columns.items()}
    shared = set.intersection(*({run["seed"] for run in group} for group in groups.values()))
    return {
        title: [run for run in group if run["seed"] in shared] for title, group in groups.items()
    }


def comparisons(rows: dict[str, str | tuple[str, str]]) -> str:
    """One row for each name of runs: accuracies, and what was gained over the same student without
    a teacher, or over the other runs that are named beside it, and over the teacher."""
    head = ("", "Seeds", "Validation accuracy", "Test accuracy", "Test loss", "− without teacher",
            "− teacher")  # fmt: skip
    lines = []
    for title, entry in rows.items():
        name, other = (entry, None) if isinstance(entry, str) else entry
        mine = runs(name)
        lines.append(
            [
                title,
                str(len(mine)),
                mean_and_spread([run["val"]["accuracy"] for run in mine], ".2%"),
                mean_and_spread([run["test"]["accuracy"] for run in mine], ".2%"),
                mean_and_spread([run["test"]["loss"] for run in mine], ".3f"),
                in_points(gain(name, other)),
                in_points(gain_over_teacher(name)),
            ]
        )
    return aligned(head, lines)


def gain(name: str, other: str | None = None) -> tuple[float, float, float] | None:
    """Of students over the same without a teacher, or of any runs over the other ones of the same
    seeds; None for runs that have neither."""
    by_run = {run["run"]: run for group in kept().values() for run in group}
    if other:
        by_seed = {run["seed"]: run for run in runs(other)}
        pairs = [(run, by_seed[run["seed"]]) for run in runs(name) if run["seed"] in by_seed]
    else:
        pairs = [
            (run, by_run[run["lesson"]["baseline"]]) for run in runs(name) if run.get("lesson")
        ]
    return gain_over(*zip(*pairs, strict=True)) if pairs else None


def gain_over_teacher(name: str) -> tuple[float, float, float] | None:
    """Of students over their own teachers; None for runs that had none."""
    by_run = {run["run"]: run for group in kept().values() for run in group}
    pairs = [(run, by_run[run["teacher"]["run"]]) for run in runs(name) if run.get("teacher")]
    return gain_over(*zip(*pairs, strict=True)) if pairs else None


def written(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A Markdown text with every table that it has a place for.

    Raises UserError for a place whose table there is not."""

    def fill(match: re.Match[str]) -> str:
        start, name, _, end = match.groups()
        if name not in tables:
            raise UserError(f"there is a place for a table {name!r}, and no such table")
        return f"{start}\n{tables[name]()}\n{end}"

    return PLACE.sub(fill, text)


def cost() -> str:
    """What all kept runs took, by network and schedule."""
    kinds: dict[str, list[float]] = {}
    for group in kept().values():
        for run in group:
            teacher = f" with {run['teacher']['arch']} as teacher" if run.get("teacher") else ""
            kind = f"{run['model']}{teacher}, {run['epochs']} epochs"
            kinds.setdefault(kind, []).append(run["seconds"] / 60)
    lines = [
        [kind, str(len(minutes)), f"{statistics.median(minutes):.1f}", f"{sum(minutes) / 60:.1f}"]
        for kind, minutes in sorted(kinds.items())
    ]
    everything = [minutes for times in kinds.values() for minutes in times]
    lines.append(["together", str(len(everything)), "", f"{sum(everything) / 60:.1f}"])
    return aligned(("", "Runs", "Minutes a run", "Hours"), lines)
