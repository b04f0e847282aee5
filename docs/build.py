"""Makes the tables and figures in docs/ and README.md again: of kept runs.

pip install matplotlib
python -m docs.build                 # of the runs that are kept in docs/results
python -m docs.build --keep output   # first adds those of the scripts' --output

docs/results/runs.jsonl holds one run a line: what the documents need of its result.json and, as
`history`, of its history.csv. docs/tables.toml says which of them each table shows. A table stands
in a Markdown file between <!-- table: NAME --> and <!-- end -->.
"""

import argparse
import csv
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from config import EXPERIMENTS, ROOT, UserError
from data.files import atomic_write
from data.sample import TEXTURES
from utils import tables
from utils.report import read_results
from utils.tables import Columns, Result

Runs = Sequence[Result]
Rows = Sequence[Sequence[str]]  # a title and names of runs
matplotlib.use("agg")
plt.rc("axes", grid=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", alpha=0.25)
plt.rc("savefig", dpi=110)
DOCS = ROOT / "docs"
FILE = DOCS / "results" / "runs.jsonl"
TABLES: dict[str, dict[str, Any]] = tomllib.loads((DOCS / "tables.toml").read_text("utf-8"))
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
COLOURS = ("#2f6fb0", "#e08a1e", "#c8442f", "#4f8f5b")
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
    found = [run for run in read_results(output / "results") if run["run"].startswith(PHOTOS)]
    for result in found:
        path = output / "results" / result["run"] / "history.csv"
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        result["history"] = {key: [round(float(row[key]), 5) for row in rows] for key in CURVES}
        teacher = result.get("teacher", {"test": {}})
        teacher.pop("val", None)
        for part in (result["val"], result["test"], teacher["test"]):
            part.pop("recall", None)  # as the confusion matrix tells
        result["val"].pop("confusion", None)
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
KINDS: dict[str, dict[str, Show]] = {
    "distilled": {
        "Runs": lambda runs, _: str(len(runs)),
        "Teacher": lambda runs, _: accuracy([run["teacher"] for run in runs]),
        "Student": lambda _, alone: accuracy(alone),
        "KD student": lambda runs, _: accuracy(runs),
        "KD − student, test [95 %]": gain,
        "KD − teacher, test [95 %]": lambda runs, _: gain(runs, [run["teacher"] for run in runs]),
        "KD − student, validation [95 %]": lambda runs, alone: gain(runs, alone, "val"),
    },
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
KINDS["short"] = {k: show for k, show in KINDS["distilled"].items() if "KD − teacher" not in k}


def table(kind: str, rows: Rows) -> str:
    """A table of this kind."""
    if kind in ("each", "together"):
        return tables.table(columns(rows, kind), {**tables.SEVEN_ROWS, **tables.PARAMETERS})
    pairs = {title: compared(*names) for title, *names in rows}
    shows = KINDS[kind].values()
    lines = [[title, *(show(*pair) for show in shows)] for title, pair in pairs.items()]
    return tables.aligned(["", *KINDS[kind]], lines)


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A Markdown text with its tables in their places; raises KeyError for an unknown name."""
    return PLACE.sub(lambda place: f"{place[1]}\n{tables[place[2]]}\n{place[3]}", text)


def draw_curves(path: Path, columns: Columns, quantity: str) -> None:
    """One colour for each of `columns`, four at most; `quantity` is loss or accuracy. Validation is
    a line, training dashes; the band spans all seeds. The loss is cross-entropy with the labels, as
    the teacher's part of a student's loss has another scale."""
    axes = plt.figure(figsize=(8, 4.6), layout="constrained").subplots()
    for (name, runs), colour in zip(columns.items(), COLOURS, strict=False):
        for title, part, style in (("validation", "val", "-"), ("training", "train", "--")):
            key = f"{quantity}/{part}".replace("loss/train", "ce/train")
            curves = np.array([run["history"][key] for run in runs])
            curves *= 1 if quantity == "loss" else 100
            epochs, label = np.arange(1, curves.shape[1] + 1), f"{name}, {title}"
            axes.plot(epochs, curves.mean(0), style, color=colour, linewidth=1.6, label=label)
            band = curves.min(0), curves.max(0)
            axes.fill_between(epochs, *band, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="cross-entropy" if quantity == "loss" else "accuracy, %")
    axes.set_ylim(*((0, 2) if quantity == "loss" else ()))
    axes.legend(fontsize=8, frameon=False)
    plt.savefig(path)
    plt.close()


def draw_confusions(path: Path, columns: Columns) -> None:
    """Confusion matrices side by side, each summed over the seeds: percent of the true class."""
    panels = plt.figure(figsize=(15, 5.4), layout="constrained").subplots(1, len(columns))
    for (name, runs), axes in zip(columns.items(), panels, strict=True):
        counts = np.sum([run["test"]["confusion"] for run in runs], axis=0)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            style = {"color": "white" if share > 50 else "black", "ha": "center", "va": "center"}
            axes.text(column, row, f"{share:.0f}", fontsize=8, **style)
        axes.set_xticks(range(len(counts)), [*TEXTURES], rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(counts)), [*TEXTURES], fontsize=8)
        title = f"{name}: {np.trace(counts) / counts.sum():.1%}"
        axes.set(title=title, xlabel="predicted", ylabel="true")
    plt.savefig(path)
    plt.close()


def draw_gains(path: Path, rows: Rows) -> None:
    """What teachers add to the students of a table's rows on test and validation, in points of
    accuracy, with 95 % intervals."""
    pairs = {title: compared(*names) for title, *names in rows}
    size = 9.6, 1.1 + 0.36 * len(rows)
    panels = plt.figure(figsize=size, layout="constrained").subplots(1, 2, sharex=True, sharey=True)
    parts = {"test": "test, 371", "val": "validation, 750"}
    for axes, (part, title) in zip(panels, parts.items(), strict=True):
        for place, (runs, alone) in enumerate(pairs.values()):
            gain, low, high = 100 * tables.gain_over(list(zip(runs, alone, strict=True)), part)
            colour = "#2e7d4f" if low > 0 else COLOURS[2] if high < 0 else "#8a8a8a"
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
            axes.plot([gain], [place], "o", color=colour, markersize=7)
            style = {"color": colour, "ha": "center", "bbox": {"color": "white", "pad": 0}}
            axes.text(gain, place - 0.2, f"{gain:+.1f}", va="bottom", fontsize=8, **style)
        axes.axvline(0, color="black", linewidth=0.8)
        names = [f"{name} ({len(runs)})" for name, (runs, _) in pairs.items()]
        axes.set_yticks(range(len(rows)), names, fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.8)
        axes.set_xlabel("KD − student, points of accuracy", fontsize=9)
        axes.set_title(f"{title} photos; 95 % intervals", fontsize=10, loc="left")
    plt.savefig(path)
    plt.close()


def build() -> None:
    """Fill the tables into the documents, and draw every figure at its place in docs/."""
    made = {name: table(**what) for name, what in TABLES.items()}
    for document in DOCUMENTS:
        atomic_write(document, filled(document.read_text("utf-8"), made))
    draw_gains(DOCS / "illustration" / "result.png", TABLES["main"]["rows"])
    for name in EXPERIMENTS:
        kd, basic = (columns(**TABLES[f"{name} {kind}"]) for kind in ("kd 60 epochs", "basic"))
        draw_confusions(DOCS / name / "kd" / "Confusion.png", kd)
        for quantity in ("Accuracy", "Loss"):
            draw_curves(DOCS / name / "kd" / f"{quantity}.png", kd, quantity.lower())
            draw_curves(DOCS / name / "basic" / f"{quantity}.png", basic, quantity.lower())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.build", allow_abbrev=False)
    parser.add_argument("--keep", type=Path, help="the scripts' --output, whose runs to keep")
    output = parser.parse_args().keep
    try:
        if output:
            print(f"kept {keep(output)} runs")
        build()
    except (UserError, OSError) as problem:
        parser.error(str(problem))
