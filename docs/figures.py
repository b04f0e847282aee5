"""Draws the figures of docs/ and README from docs/results. Needs matplotlib."""

import csv
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from utils.comparison import Gain
from utils.tables import Columns, Result

COLOURS = ("#2f6fb0", "#e08a1e", "#c8442f", "#4f8f5b")
GREY = "#8a8a8a"


def draw_curves(path: Path, columns: Columns, quantity: str) -> None:
    """One colour for each of `columns`, four at most; `quantity` is loss or accuracy. Validation is
    a line, training dashes; the band spans all seeds."""
    _, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, runs), colour in zip(columns.items(), COLOURS, strict=False):
        for split, style in (("val", "-"), ("train", "--")):
            curves = np.array([history(run, f"{shown(quantity, split)}/{split}") for run in runs])
            if quantity == "accuracy":
                curves *= 100
            epochs = np.arange(1, curves.shape[1] + 1)
            label = f"{name}, {'validation' if split == 'val' else 'training'}"
            axes.plot(epochs, curves.mean(0), style, color=colour, linewidth=1.6, label=label)
            axes.fill_between(
                epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0
            )
    axes.set(xlabel="epoch", ylabel="accuracy, %" if quantity == "accuracy" else "cross-entropy")
    if quantity == "loss":
        axes.set_ylim(0, 2)
    finish(axes)
    axes.legend(fontsize=8, frameon=False)
    save(path)


def shown(quantity: str, split: str) -> str:
    """The column of history.csv. Of the loss in training, its cross-entropy with the labels alone:
    the teacher's part of a student's loss has another scale."""
    return "ce" if (quantity, split) == ("loss", "train") else quantity


def history(run: Result, column: str) -> list[float]:
    """One value an epoch."""
    with (run["folder"] / "history.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def draw_confusions(path: Path, columns: Columns) -> None:
    """Confusion matrices side by side, each summed over the seeds: percent of the true class."""
    _, panels = plt.subplots(1, len(columns), figsize=(15, 5.4), layout="constrained")
    for (name, runs), axes in zip(columns.items(), np.atleast_1d(panels), strict=True):
        counts = np.sum([run["test"]["confusion"] for run in runs], axis=0)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        classes = runs[0]["photos"]["classes"]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                colour = "white" if share > 50 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(places, classes, fontsize=8)
        accuracy = np.trace(counts) / counts.sum()
        axes.set_title(f"{name}: {accuracy:.1%}", fontsize=11)
        axes.set_xlabel("taken for")
    np.atleast_1d(panels)[0].set_ylabel("is")
    save(path)


def draw_gains(path: Path, panels: Mapping[str, Mapping[str, Gain]]) -> None:
    """One panel for each of `panels`, side by side, and in it a line for each comparison, the same
    in all: the gain in points of accuracy and its 95 % interval."""
    titles = list(next(iter(panels.values())))
    _, side_by_side = plt.subplots(
        1, len(panels), figsize=(9.6, 1.1 + 0.36 * len(titles)), sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for (panel, gains), axes in zip(panels.items(), np.atleast_1d(side_by_side), strict=True):
        for place, (mean, low, high) in enumerate(gains.values()):
            colour = "#2e7d4f" if low > 0 else COLOURS[2] if high < 0 else GREY
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2.4)
            axes.plot([100 * mean], [place], "o", color=colour, markersize=7)
            axes.text(100 * mean, place - 0.2, f"{100 * mean:+.1f}", ha="center", va="bottom",
                      fontsize=8, color=colour, bbox={"color": "white", "pad": 0})  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(titles)), titles, fontsize=9)
        axes.set_ylim(len(titles) - 0.4, -0.8)
        axes.set_xlabel("KD − student, points of accuracy", fontsize=9)
        axes.set_title(panel, fontsize=10, loc="left")
        finish(axes)
    save(path)


def finish(axes: Axes) -> None:
    """No frame, a faint grid."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(path: Path) -> None:
    """Write the current figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    plt.close()
