"""Draws the figures of docs/ and README from docs/results. Needs matplotlib."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from config import EXPERIMENTS
from docs.contents import basic, students, three
from docs.kept import baselines
from utils.report import Columns, Interval, gain_over

matplotlib.use("agg")
COLOURS = ("#2f6fb0", "#e08a1e", "#c8442f", "#4f8f5b")


def draw_curves(path: Path, columns: Columns, quantity: str) -> None:
    """One colour for each of `columns`, four at most; `quantity` is loss or accuracy. Validation is
    a line, training dashes; the band spans all seeds.

    Of the loss in training, its cross-entropy with the labels alone: the teacher's part of a
    student's loss has another scale.
    """
    _, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    loss = quantity == "loss"
    for (name, runs), colour in zip(columns.items(), COLOURS, strict=False):
        for title, key, style in (
            ("validation", f"{quantity}/val", "-"),
            ("training", "ce/train" if loss else "accuracy/train", "--"),
        ):
            curves = np.array([run["history"][key] for run in runs]) * (1 if loss else 100)
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.mean(0), style, color=colour, linewidth=1.6,
                      label=f"{name}, {title}")  # fmt: skip
            axes.fill_between(
                epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0
            )
    axes.set(xlabel="epoch", ylabel="cross-entropy" if loss else "accuracy, %")
    if loss:
        axes.set_ylim(0, 2)
    axes.legend(fontsize=8, frameon=False)
    save(path, axes)


def draw_confusions(path: Path, columns: Columns) -> None:
    """Confusion matrices side by side, each summed over the seeds: percent of the true class."""
    _, panels = plt.subplots(1, len(columns), figsize=(15, 5.4), layout="constrained")
    for (name, runs), axes in zip(columns.items(), panels, strict=True):
        counts = np.sum([run["test"]["confusion"] for run in runs], axis=0)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        classes = runs[0]["photos"]["classes"]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                colour = "white" if share > 50 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set_title(f"{name}: {np.trace(counts) / counts.sum():.1%}", fontsize=11)
        axes.set_xlabel("taken for")
    panels[0].set_ylabel("is")
    save(path)


def draw_gains(path: Path, panels: Mapping[str, Mapping[str, Interval]]) -> None:
    """One panel for each of `panels`, side by side, and in it a line for each comparison, the same
    in all: the gain in points of accuracy and its 95 % interval."""
    titles = list(next(iter(panels.values())))
    _, side_by_side = plt.subplots(
        1, len(panels), figsize=(9.6, 1.1 + 0.36 * len(titles)), sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for (panel, gains), axes in zip(panels.items(), side_by_side, strict=True):
        for place, (mean, low, high) in enumerate(100 * np.array(list(gains.values()))):
            colour = "#2e7d4f" if low > 0 else COLOURS[2] if high < 0 else "#8a8a8a"
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
            axes.plot([mean], [place], "o", color=colour, markersize=7)
            axes.text(mean, place - 0.2, f"{mean:+.1f}", ha="center", va="bottom", fontsize=8,
                      color=colour, bbox={"color": "white", "pad": 0})  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(titles)), titles, fontsize=9)
        axes.set_ylim(len(titles) - 0.4, -0.8)
        axes.set_xlabel("KD − student, points of accuracy", fontsize=9)
        axes.set_title(panel, fontsize=10, loc="left")
    save(path, *side_by_side)


def save(path: Path, *framed: Axes) -> None:
    """Write the current figure as PNG, of these axes with a faint grid instead of a frame."""
    for axes in framed:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    plt.close()


def draw_result(path: Path) -> None:
    """What teachers add to the students of the main table."""
    draw_gains(path, {
        f"{title} photos; 95 % intervals": {
            f"{row} ({len(runs)})": gain_over(zip(runs, baselines(runs), strict=True), part)
            for row, runs in students().items()
        }
        for part, title in (("test", "test, 371"), ("val", "validation, 750"))
    })  # fmt: skip


FIGURES: dict[str, Callable[[Path], None]] = {"docs/illustration/result.png": draw_result}
for name, (teacher, student) in EXPERIMENTS.items():
    columns = three(f"{teacher}.patient", student)
    FIGURES[f"docs/{name}/kd/Confusion.png"] = partial(draw_confusions, columns=columns)
    for quantity in ("accuracy", "loss"):
        for folder, shown in (("basic", basic(name)), ("kd", columns)):
            FIGURES[f"docs/{name}/{folder}/{quantity.capitalize()}.png"] = partial(
                draw_curves, columns=shown, quantity=quantity
            )
