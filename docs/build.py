"""Makes the tables and figures in docs/ and README.md again: of kept runs, and of the sample.

pip install matplotlib
python -m docs.build                 # of the runs that are kept in docs/results
python -m docs.build --keep output   # first adds those of the scripts' --output

A table stands in a Markdown file between <!-- table: NAME --> and <!-- end -->.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from config import EXPERIMENTS, ROOT, UserError
from data.files import atomic_write
from data.sample import CLASSES, draw_photo
from docs.contents import Groups, columns, declared, groups, keep, table
from utils.tables import Columns, gain_over

matplotlib.use("agg")
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
COLOURS = ("#2f6fb0", "#e08a1e", "#c8442f", "#4f8f5b")


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
    save(path)


def draw_confusions(path: Path, columns: Columns) -> None:
    """Confusion matrices side by side, each summed over the seeds: percent of the true class."""
    panels = plt.figure(figsize=(15, 5.4), layout="constrained").subplots(1, len(columns))
    for (name, runs), axes in zip(columns.items(), panels, strict=True):
        counts = np.sum([run["test"]["confusion"] for run in runs], axis=0)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            style = {"color": "white" if share > 50 else "black", "ha": "center", "va": "center"}
            axes.text(column, row, f"{share:.0f}", fontsize=8, **style)
        ticks = range(len(counts)), runs[0]["photos"]["classes"]
        axes.set_xticks(*ticks, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(*ticks, fontsize=8)
        axes.set_title(f"{name}: {np.trace(counts) / counts.sum():.1%}", fontsize=11)
        axes.set_xlabel("taken for")
    panels[0].set_ylabel("is")
    save(path, grid=False)


def draw_gains(path: Path, groups: Groups) -> None:
    """What teachers add to groups of students on test and validation, in points of accuracy, with
    95 % intervals."""
    size = 9.6, 1.1 + 0.36 * len(groups)
    panels = plt.figure(figsize=size, layout="constrained").subplots(1, 2, sharex=True, sharey=True)
    parts = {"test": "test, 371", "val": "validation, 750"}
    for axes, (part, title) in zip(panels, parts.items(), strict=True):
        for place, (runs, alone) in enumerate(groups.values()):
            gain, low, high = 100 * gain_over(list(zip(runs, alone, strict=True)), part)
            colour = "#2e7d4f" if low > 0 else COLOURS[2] if high < 0 else "#8a8a8a"
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
            axes.plot([gain], [place], "o", color=colour, markersize=7)
            style = {"color": colour, "ha": "center", "bbox": {"color": "white", "pad": 0}}
            axes.text(gain, place - 0.2, f"{gain:+.1f}", va="bottom", fontsize=8, **style)
        axes.axvline(0, color="black", linewidth=0.8)
        names = [f"{name} ({len(runs)})" for name, (runs, _) in groups.items()]
        axes.set_yticks(range(len(groups)), names, fontsize=9)
        axes.set_ylim(len(groups) - 0.4, -0.8)
        axes.set_xlabel("KD − student, points of accuracy", fontsize=9)
        axes.set_title(f"{title} photos; 95 % intervals", fontsize=10, loc="left")
    save(path)


def draw_sample_sheet(path: Path) -> None:
    """Each class of the sample: its name and six photos."""
    sheet = Image.new("RGB", (70 + 6 * 90, len(CLASSES) * 90), "white")
    for row, name in enumerate(CLASSES):
        ImageDraw.Draw(sheet).text((6, 90 * row + 44), name, "black", anchor="lm")
        for column in range(6):
            sheet.paste(draw_photo(name, column, size=88), (70 + 90 * column, 90 * row))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def save(path: Path, grid: bool = True) -> None:
    """Write the current figure as PNG, with a faint grid instead of frames."""
    for axes in plt.gcf().axes if grid else ():
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=110)
    plt.close()


def build() -> None:
    """Fill the tables into the documents, and draw every figure at its place in docs/."""
    about = declared()
    made = {name: table(**what) for name, what in about.items()}
    for document in DOCUMENTS:
        atomic_write(document, filled(document.read_text("utf-8"), made))
    draw_sample_sheet(DOCS / "illustration" / "sample.png")
    draw_gains(DOCS / "illustration" / "result.png", groups(about["main"]["rows"]))
    for name in EXPERIMENTS:
        kd, basic = (columns(**about[f"{name} {kind}"]) for kind in ("kd 60 epochs", "basic"))
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
