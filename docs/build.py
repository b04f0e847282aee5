"""Regenerates the tables and figures in docs/ and README.md from the saved runs.

pip install matplotlib
python -m docs.build                 # of the runs that are kept in docs/results
python -m docs.build --keep output   # first adds those of the scripts' --output

docs/results holds what the documents need of each run's result.json and history.csv, a line a run;
docs/tables.toml the runs of each table, which stands between <!-- table: NAME --> and <!-- end -->.
"""

import csv
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from config import EXPERIMENTS, ROOT, Parser, UserError
from data.files import atomic_write
from utils import tables
from utils.report import read_results
from utils.script import run_script
from utils.tables import Columns, Result

Rows = Sequence[Sequence[str]]  # a title, a name of runs, and that of those to compare them with
matplotlib.use("agg")
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "savefig.dpi": 110})
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
TABLES: dict[str, dict[str, Any]] = tomllib.loads((DOCS / "tables.toml").read_text("utf-8"))
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
COLOURS = ("#2f6fb0", "#e08a1e", "#c8442f", "#4f8f5b")
CURVES = ("loss/val", "accuracy/val", "ce/train", "accuracy/train")
PHOTOS = "weather-"  # all runs are on these photos: what follows names them
ENDINGS = {"": "-seed{}", "folds": "-fold{}of10-seed0"}


@cache
def kept() -> dict[str, Result]:
    """The results by the runs' names."""
    text = "".join(path.read_text("utf-8") for path in RESULTS.glob("*.jsonl"))
    return {result["run"]: result for result in map(json.loads, text.splitlines())}


def keep(output: Path) -> int:
    """Add the finished runs in the scripts' --output, or replace their names'; returns how many."""
    found = [run for run in read_results(output / "results") if run["run"].startswith(PHOTOS)]
    for result in found:
        path = output / "results" / result["run"] / "history.csv"
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        result["history"] = {key: [round(float(row[key]), 4) for row in rows] for key in CURVES}
        teacher = result.get("teacher", {"test": {}})
        teacher.pop("val", None)
        for part in (result["val"], result["test"], teacher["test"]):
            part.pop("recall", None)  # as the confusion matrix tells
        result["val"].pop("confusion", None)
    files: dict[str, list[str]] = {}  # of less than a megabyte each
    for _, run in sorted((kept() | {result["run"]: result for result in found}).items()):
        of = run["photos"]
        kind = "labels" if of.get("labels_per_class") else "folds" if of["folds"] else "seeds"
        name = f"{of['image_size']}px-{kind}{'-kd' * ('teacher' in run)}.jsonl"
        files.setdefault(name, []).append(json.dumps(run, separators=(",", ":")) + "\n")
    for name, lines in files.items():
        atomic_write(RESULTS / name, "".join(lines))
    kept.cache_clear()
    return len(found)


def runs_of(name: str) -> dict[str, Result]:
    """The runs of a name by seed or, of NAME@folds, by fold; raises UserError if there are none."""
    name, _, kind = name.partition("@")
    ends = [ENDINGS[kind].format(number) for number in range(10)]
    if not (found := [end for end in ends if PHOTOS + name + end in kept()]):
        raise UserError(f"{RESULTS}: no runs called {name} are kept there")
    return {end: kept()[PHOTOS + name + end] for end in found}


def pairs_of(name: str, other: str = "") -> list[tuple[Result, Result]]:
    """Runs with those that they are compared with: of the other name, or else their baselines."""
    runs = runs_of(name)
    if not other:
        return [(run, kept()[run["distillation"]["baseline"]]) for run in runs.values()]
    others = runs_of(other)
    return [(runs[end], others[end]) for end in runs if end in others]


def table(rows: Rows, *, columns: bool = False, seconds: bool = False) -> str:
    """A table with a line for each of `rows`, or the seven rows with a column for each."""
    if columns:
        return tables.table(columns_of(rows), {**tables.SEVEN_ROWS, **tables.PARAMETERS})
    lines = []
    for title, *names in rows:
        pairs = pairs_of(*names)
        runs = [run for run, _ in pairs]
        teachers = [run["teacher"] for run in runs if "teacher" in run]
        line = [title, str(len(runs)), *[tables.cell(runs, ("seconds", ",.0f"))] * seconds]
        line.append(tables.cell(teachers, ("test", "accuracy", ".2%")))
        for part in ("test", "val"):
            gain = "" if pairs[0][0] is pairs[0][1] else tables.points(pairs, part)
            line += [tables.cell(runs, (part, "accuracy", ".2%")), gain]
        lines.append(line)
    head = ["", "Runs", *["Seconds"] * seconds, "Teacher, test"]
    head += ["Test", "Gain [95 %]", "Validation", "Gain [95 %]"]
    return tables.aligned(head, lines)


def columns_of(rows: Rows) -> Columns:
    """The runs of each row, of those seeds or folds that all rows have."""
    found = {title: runs_of(name) for title, name in rows}
    ends = [end for end in found[rows[0][0]] if all(end in runs for runs in found.values())]
    return {title: [runs[end] for end in ends] for title, runs in found.items()}


def filled(text: str, made: Mapping[str, str]) -> str:
    """A Markdown text with its tables in their places; raises KeyError for an unknown name."""
    return PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]]}\n{place[3]}", text)


def draw_curves(path: Path, columns: Columns, quantity: str) -> None:
    """One colour for each of `columns`, four at most; `quantity` is loss or accuracy. Lines
    (validation) and dashes (training) are medians over the runs, bands show the interquartile
    range. The loss is cross-entropy with the labels: a teacher's part of it has another scale."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, runs), colour in zip(columns.items(), COLOURS, strict=False):
        for title, part, style in (("validation", "val", "-"), ("training", "train", "--")):
            key = f"{quantity}/{part}".replace("loss/train", "ce/train")
            curves = np.array([run["history"][key] for run in runs])
            curves *= 1 if quantity == "loss" else 100
            epochs, label = np.arange(1, curves.shape[1] + 1), f"{name}, {title}"
            low, median, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
            axes.plot(epochs, median, style, color=colour, linewidth=1.6, label=label)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="cross-entropy" if quantity == "loss" else "accuracy, %")
    axes.set_ylim(*((0, 2) if quantity == "loss" else ()))
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def draw_confusions(path: Path, columns: Columns) -> None:
    """Confusion matrices side by side, each summed over the runs: percent of the true class."""
    figure, panels = plt.subplots(1, len(columns), figsize=(15, 5.4), layout="constrained")
    for (name, runs), axes in zip(columns.items(), panels, strict=True):
        counts = np.sum([run["test"]["confusion"] for run in runs], axis=0)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            style = {"color": "white" if share > 50 else "black", "ha": "center", "va": "center"}
            axes.text(column, row, f"{share:.0f}", fontsize=8, **style)
        classes = runs[0]["photos"]["classes"]
        axes.set_xticks(range(len(counts)), classes, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(counts)), classes, fontsize=8)
        title = f"{name}: {np.trace(counts) / counts.sum():.1%}"
        axes.set(title=title, xlabel="predicted", ylabel="true, % of each row")
    figure.savefig(path)


def draw_accuracies(path: Path, rows: Rows) -> None:
    """Test accuracy over the folds of a table's rows, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(8.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    for place, (_, name, *_) in enumerate(rows):
        mean, low, high = 100 * tables.gain_over([(run, None) for run in runs_of(name).values()])
        colour = COLOURS["-from-" in name]
        axes.plot([low, mean, high], [place] * 3, "o-", color=colour, lw=2.4, ms=7, markevery=[1])
        axes.annotate(f"{mean:.1f}", (mean, place), (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rows)), [title for title, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlabel("test accuracy, %, with 95 % intervals; orange: with a teacher")
    figure.savefig(path)


def main(arguments: Sequence[str]) -> None:
    """Fill the tables into the documents, and draw every figure at its place in docs/."""
    parser = Parser(__doc__, "python -m docs.build")
    parser.add_argument("--keep", type=Path, help="the scripts' --output, whose runs to keep")
    if output := parser.parse_args(arguments).keep:
        print(f"kept {keep(output)} runs")
    made = {name: table(**what) for name, what in TABLES.items()}
    for document in DOCUMENTS:
        atomic_write(document, filled(document.read_text("utf-8"), made))
    draw_accuracies(DOCS / "illustration" / "result.png", TABLES["main"]["rows"])
    for name in EXPERIMENTS:
        for kind in ("basic", "kd"):
            columns = columns_of(TABLES[f"{name} {kind}"]["rows"])
            for quantity in ("Accuracy", "Loss"):
                draw_curves(DOCS / name / kind / f"{quantity}.png", columns, quantity.lower())
        draw_confusions(DOCS / name / "kd" / "Confusion.png", columns)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
