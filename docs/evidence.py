"""The runs behind docs/ and README: their results, kept in docs/results, and the tables of them.

A table stands in a Markdown file between two comments, and `written` puts it there again:

    <!-- table: NAME -->
    ...
    <!-- end -->
"""

import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from config import ROOT, UserError
from utils.comparison import Gain, gain_over, in_points
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
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n)((?:(?!<!-- table).)*?)(<!-- end -->)", re.S)


@cache
def kept() -> dict[str, list[Result]]:
    """The results in docs/results by name, each name's in the order of their seeds, from 0."""
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
    `output` into docs/results; returns their names.

    Raises UserError when there are none, or when they are of another split than those kept that
    were drawn by the same seed.
    """
    found = [
        path.parent
        for path in sorted((output / "results").glob("*/result.json"))
        if NAME.fullmatch(path.parent.name)
    ]
    if not found:
        raise UserError(
            f"{output}: there is no finished run on the photos called weather, at 64 px"
        )
    splits = {drawn_by(run): run["photos"]["split"] for group in kept().values() for run in group}
    for source in found:
        run = read_result_file(source / "result.json")
        split = run["photos"]["split"]
        known = splits.setdefault(drawn_by(run), split)
        if split != known:
            raise UserError(f"{source}: of split {split}, and kept are runs of {known}")
    for source in found:
        folder = RESULTS / source.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "history.csv"):
            shutil.copy(source / name, folder)
    kept.cache_clear()
    return [source.name for source in found]


def drawn_by(run: Result) -> tuple[int, int | None]:
    """The seed of the run's split, and its fold."""
    return int(run["recipe"]["split_seed"]), run["photos"].get("fold")


def seven_rows(columns: Columns) -> str:
    """The seven rows of validation, training and test, and the parameters."""
    return table("", columns, SEVEN_ROWS | PARAMETERS)


def each(columns: dict[str, str]) -> Columns:
    """The results behind names of runs, of all seeds that each of them has."""
    return {title: runs(name) for title, name in columns.items()}


def together(columns: dict[str, str]) -> Columns:
    """The results behind names of runs, of the seeds that all of them have; raises UserError when
    there is no such seed."""
    groups = each(columns)
    shared = set.intersection(*({run["seed"] for run in group} for group in groups.values()))
    if not shared:
        raise UserError(f"{', '.join(columns.values())}: they have no seed in common")
    return {
        title: [run for run in group if run["seed"] in shared] for title, group in groups.items()
    }


def lessons(rows: Columns) -> str:
    """One row for each group of students: the test accuracy of their teachers, of themselves
    without a teacher, and with it, what was gained over either, and over the student on
    validation."""
    head = ("", "Seeds", "Teacher", "Student", "KD Student", "KD − student", "KD − teacher",
            "validation: KD − student")  # fmt: skip
    lines = []
    for title, taught in rows.items():
        sides = [taught_by(run) for run in taught], [alone(run) for run in taught], taught
        cells = [
            mean_and_spread([run["test"]["accuracy"] for run in side], ".2%") for side in sides
        ]
        gains = [in_points(gain_of(taught, side)) for side in sides[1::-1]]
        on_validation = in_points(gain_of(taught, sides[1], "val"))
        lines.append([title, str(len(taught)), *cells, *gains, on_validation])
    return aligned(head, lines)


def comparisons(rows: dict[str, str], other: str) -> str:
    """One row for each name of runs: what they came to, and their gains over the `other` runs of
    the same seeds; seeds that the others do not have are left out."""
    head = ("", "Seeds", "Validation accuracy", "Validation gain", "Test accuracy", "Test gain",
            "Test loss")  # fmt: skip
    lines = []
    for title, name in rows.items():
        mine, others = together({title: name, "": other}).values()
        cells = []
        for part in ("val", "test"):
            cells.append(mean_and_spread([run[part]["accuracy"] for run in mine], ".2%"))
            cells.append(in_points(gain_of(mine, others, part)) if name != other else "")
        loss = mean_and_spread([run["test"]["loss"] for run in mine], ".3f")
        lines.append([title, str(len(mine)), *cells, loss])
    return aligned(head, lines)


def differences(rows: dict[str, tuple[str, str]], splits: Sequence[int]) -> str:
    """One row for each two names of runs: how much better the first are than the second on
    validation and on test, over `splits`."""
    lines = []
    for title, names in rows.items():
        mine, others = (on_splits(name, splits) for name in names)
        lines.append([title, *(in_points(gain_of(mine, others, part)) for part in ("val", "test"))])
    return aligned((f"over {len(splits)} splits", "Validation", "Test"), lines)


def over_splits(columns: dict[str, str], splits: Sequence[int]) -> str:
    """One row for each split, of the run whose seed is the split's, and their mean: the accuracies
    of all columns, and in brackets what they are better than the first in points. A mean has the
    standard deviation over the splits beside it, and below it the gain with its interval.
    Validation, then test."""
    groups = [on_splits(name, splits) for name in columns.values()]
    lines = []
    for part, title in (("val", "validation"), ("test", "test")):
        accuracies = np.array([[run[part]["accuracy"] for run in group] for group in groups]).T
        gains = 100 * (accuracies - accuracies[:, :1])
        for split, row, gained in zip(splits, accuracies, gains, strict=True):
            cells = [f"{a:.2%} ({g:+.2f})" for a, g in zip(row[1:], gained[1:], strict=True)]
            lines.append([f"{title}, split {split}", f"{row[0]:.2%}", *cells])
        first, *others = (mean_and_spread(list(column), ".2%") for column in accuracies.T)
        spreads = [f"{gained.mean():+.2f} ± {gained.std(ddof=1):.2f}" for gained in gains.T[1:]]
        cells = [f"{mean} ({spread})" for mean, spread in zip(others, spreads, strict=True)]
        lines.append([f"{title}, mean", first, *cells])
        intervals = [in_points(gain_of(group, groups[0], part)) for group in groups[1:]]
        lines.append([f"{title}, mean gain [95 %]", "", *intervals])
    return aligned(("", *columns), lines)


def of_split(name: str, split: int) -> Result:
    """The run of one split and the seed of the same number."""
    ending = f"-split{split}" if split else ""
    return run_named(f"weather-64px-{name}{ending}-seed{split}")


def on_splits(name: str, splits: Sequence[int]) -> list[Result]:
    """One run for each split."""
    return [of_split(name, split) for split in splits]


def on_folds(name: str, folds: int) -> list[Result]:
    """The runs of seed 0, one for each fold."""
    return [run_named(f"weather-64px-{name}-fold{fold}of{folds}-seed0") for fold in range(folds)]


def gain_of(mine: Sequence[Result], others: Sequence[Result], part: str = "test") -> Gain:
    """How much better `mine` are than `others`, pair by pair, in accuracy on test or val."""
    gain = gain_over(list(zip(mine, others, strict=True)), part)
    assert gain
    return gain


def gain_of_teaching(students: Sequence[Result], part: str = "test") -> Gain:
    """Of students over the same without a teacher, in accuracy on test or val."""
    return gain_of(students, [alone(student) for student in students], part)


def alone(student: Result) -> Result:
    """The same student without a teacher."""
    return run_named(student["lesson"]["baseline"])


def taught_by(student: Result) -> Result:
    """The student's teacher; raises UserError when it was trained again since."""
    teacher = run_named(student["teacher"]["run"])
    if teacher["digest"] != student["teacher"]["digest"]:
        raise UserError(f"{student['run']}: the teacher that is kept is not the one that taught it")
    return teacher


def run_named(whole_name: str) -> Result:
    """A kept run by its whole name; raises UserError when it is not kept."""
    match = NAME.fullmatch(whole_name)
    for run in kept().get(match[1], []) if match else []:
        if run["run"] == whole_name:
            return run
    raise UserError(f"{RESULTS}: no run {whole_name} is kept there")


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
            ending = "" if run["epochs"] == 1 else "s"
            kind = f"{run['model']}{teacher}, {run['epochs']} epoch{ending}"
            kinds.setdefault(kind, []).append(run["seconds"] / 60)
    lines = [
        [kind, str(len(minutes)), f"{statistics.median(minutes):.1f}", f"{sum(minutes) / 60:.1f}"]
        for kind, minutes in sorted(kinds.items())
    ]
    everything = [minutes for times in kinds.values() for minutes in times]
    lines.append(["together", str(len(everything)), "", f"{sum(everything) / 60:.1f}"])
    return aligned(("", "Runs", "Minutes a run", "Hours"), lines)


def grid(name: str, alphas: Sequence[str], temperatures: Sequence[str]) -> str:
    """Best validation accuracy and lowest validation loss of seed 0 by α and T; `name` has places
    for both. What was not tried stays empty."""
    lines = []
    for alpha in alphas:
        cells = [f"α {alpha}"]
        for temperature in temperatures:
            tried = kept().get(name.format(alpha=alpha, temperature=temperature), [])
            rows = [run["table"] for run in tried if run["seed"] == 0]
            cells += [f"{r['best_val_accuracy']:.2%}, {r['best_val_loss']:.3f}" for r in rows] or [
                ""
            ]
        lines.append(cells)
    return aligned(("", *(f"T {temperature}" for temperature in temperatures)), lines)
