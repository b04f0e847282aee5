"""Draws what each family of distillation compares: docs/illustration/kd_*.png. Needs matplotlib."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

TEACHER, STUDENT, LOSS, INK = "#2f6fb0", "#c8442f", "#5b5b5b", "#222222"
TEACHERS_ROW, STUDENTS_ROW = 2.75, 0.75
STAGES = (2.6, 3.7, 4.8, 5.9)


def draw_illustrations(folder: Path) -> None:
    """Write kd_response-based.png, kd_feature-based.png and kd_relation-based.png to `folder`."""
    for family, draw in (
        ("response", answers),
        ("feature", features),
        ("relation", relations),
    ):
        figure = plt.figure(figsize=(9, 3.6))
        axes = canvas(figure)
        networks(axes)
        draw(axes)
        figure.savefig(folder / f"kd_{family}-based.png", dpi=110)
        plt.close(figure)


def canvas(figure: Figure) -> Axes:
    """Axes in units of about an inch, without a frame."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9.4), ylim=(0, 3.7), aspect="equal")
    axes.axis("off")
    return axes


def networks(axes: Axes) -> None:
    """What all families share: one batch of photos, the teacher above, the student below."""
    for shift in (0.16, 0.08, 0):
        axes.add_patch(
            Rectangle((0.25 + shift, 1.35 + shift), 0.8, 0.8, facecolor="#dfe8ee", edgecolor=INK)
        )
    axes.text(0.73, 1.1, "the same crops", ha="center", va="top", fontsize=9)
    for row, name, colour in (
        (TEACHERS_ROW, "teacher, frozen", TEACHER),
        (STUDENTS_ROW, "student, learns", STUDENT),
    ):
        arrow(axes, (1.3, 1.85 if row > 2 else 1.65), (STAGES[0] - 0.45, row), INK)
        for number, (place, height) in enumerate(zip(STAGES, (1.1, 0.9, 0.7, 0.5), strict=True)):
            width = 0.62 if colour == TEACHER else 0.36
            box(axes, (place, row), (width, height), colour)
            if number:
                arrow(axes, (STAGES[number - 1] + width / 2, row), (place - width / 2, row), INK)
        axes.text(
            STAGES[0] - 0.45, row + (0.72 if row > 2 else -0.72), name, color=colour, fontsize=11,
            va="center", weight="bold",
        )  # fmt: skip


def answers(axes: Axes) -> None:
    """kd, dkd, dist: the probabilities over the classes."""
    for row, colour, shares in (
        (TEACHERS_ROW, TEACHER, (0.1, 0.62, 0.22, 0.06)),
        (STUDENTS_ROW, STUDENT, (0.2, 0.4, 0.25, 0.15)),
    ):
        arrow(axes, (STAGES[3] + 0.32, row), (7.0, row), INK)
        for number, share in enumerate(shares):
            axes.add_patch(
                Rectangle((7.1 + 0.24 * number, row - 0.4), 0.2, share * 1.3, facecolor=colour)
            )
    compare(axes, 7.57, "KL( p(t, T) ‖ p(s, T) )\nthe answers, softened by T")
    axes.text(8.25, STUDENTS_ROW, "+ cross-entropy\nwith the label", fontsize=9, va="center")


def features(axes: Axes) -> None:
    """fitnet, attention: maps of the same stride."""
    for place in STAGES:
        compare(axes, place, "")
    text = "attention: where each of\nfour stages looks\nfitnet: one map in the middle,\n"
    axes.text(6.4, 1.75, text + "through a 1×1 adapter", fontsize=9, va="center")


def relations(axes: Axes) -> None:
    """rkd, sp: how the photos of a batch lie to each other."""
    shapes = {
        TEACHERS_ROW: (TEACHER, ((0.0, 0.3), (0.95, 0.38), (0.55, -0.38))),
        STUDENTS_ROW: (STUDENT, ((0.1, 0.35), (0.8, 0.15), (0.75, -0.35))),
    }
    for row, (colour, points) in shapes.items():
        arrow(axes, (STAGES[3] + 0.32, row), (7.0, row), INK)
        corners = [(7.15 + x, row + y) for x, y in points]
        xs, ys = zip(*corners, corners[0], strict=True)
        axes.plot(xs, ys, color=colour, linewidth=1.2, marker="o", markersize=7)
    text = "distances and angles (rkd),\nsimilarities (sp) between\n"
    compare(axes, 7.6, text + "the photos of the batch")


def compare(axes: Axes, place: float, text: str) -> None:
    """A two-headed arrow between the rows, with what is compared beside it."""
    axes.add_patch(
        FancyArrowPatch(
            (place, TEACHERS_ROW - 0.6), (place, STUDENTS_ROW + 0.6), arrowstyle="<->",
            mutation_scale=16, linewidth=1.8, linestyle="--", color=LOSS,
        )
    )  # fmt: skip
    axes.text(place + 0.12, 1.75, text, fontsize=9, va="center", color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A thin arrow of the forward pass."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="->", mutation_scale=10, color=colour, shrinkA=0, shrinkB=0
        )
    )


def box(axes: Axes, middle: tuple[float, float], size: tuple[float, float], colour: str) -> None:
    """A stage of a network."""
    (x, y), (width, height) = middle, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=0.06", facecolor=colour, edgecolor="none",
            alpha=0.85,
        )
    )  # fmt: skip
