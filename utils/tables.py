"""Results as they are read, and Markdown tables of them."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from config import UserError

Result = dict[str, Any]
Columns = Mapping[str, Sequence[Result]]  # the runs of each column of a table, one a seed
Rows = dict[str, tuple[Callable[[Result], float | None], str]]  # what to read, how to print it

SIZE_ROWS: Rows = {
    "Parameters": (itemgetter("parameters"), ",.0f"),
    "Inference images per second": (itemgetter("inference_images_per_second"), ",.0f"),
}

# Without these, a file is not a result of the scripts.
NEEDED = {"model", "seed", "tag", "photos", "recipe", "table", "test"}

SEVEN_ROWS: Rows = {
    "Best validation loss": (lambda r: r["table"].get("best_val_loss"), ".4f"),
    "Best validation accuracy": (lambda r: r["table"]["best_val_accuracy"], ".2%"),
    "Final training loss": (lambda r: r["table"].get("final_train_loss"), ".4f"),
    "Final validation loss": (lambda r: r["table"].get("final_val_loss"), ".4f"),
    "Final validation accuracy": (lambda r: r["table"].get("final_val_accuracy"), ".2%"),
    "Test loss": (lambda r: r["table"]["test_loss"], ".4f"),
    "Test accuracy": (lambda r: r["table"]["test_accuracy"], ".2%"),
}
MORE_ROWS: Rows = {
    "Test macro-F1": (lambda r: r["test"]["macro_f1"], ".4f"),
    "Test calibration error": (lambda r: r["test"]["calibration_error"], ".4f"),
    "Best epoch": (itemgetter("best_epoch"), ".0f"),
    "Parameters": (itemgetter("parameters"), ",.0f"),
    "Training images per second": (itemgetter("images_per_second"), ",.0f"),
    "Training seconds": (itemgetter("seconds"), ",.0f"),
}


def read_result_file(path: Path) -> Result:
    """A result.json, and under `folder` the place where it lies, beside the test logits."""
    try:
        result = json.loads(path.read_text("utf-8"))
        if not isinstance(result, dict) or not result.keys() >= NEEDED:
            raise ValueError("something else than a result")
    except ValueError as problem:
        raise UserError(f"{path}: not a readable result; delete it or run it again") from problem
    return result | {"folder": path.parent}


def table(corner: str, columns: Columns, rows: Rows) -> str:
    """A Markdown table with one column for each of `columns` and one row for each of `rows`."""
    head = [", ".join(filter(None, (name, counted(runs)))) for name, runs in columns.items()]
    lines = [
        [title, *(mean_and_spread([read(run) for run in runs], spec) for runs in columns.values())]
        for title, (read, spec) in rows.items()
    ]
    return aligned([corner, *head], lines)


def counted(runs: Sequence[Result]) -> str:
    """Over how many folds and seeds these runs are; nothing for a single run of one split."""
    of_fold = Counter(run["photos"]["fold"] for run in runs if run.get("photos", {}).get("folds"))
    folds = f"{len(of_fold)} fold{'s' * (len(of_fold) > 1)}"
    if len(set(of_fold.values())) > 1:
        return f"{len(runs)} runs of {folds}"
    seeds = len(runs) // max(1, len(of_fold))
    return ", ".join([folds] * bool(of_fold) + [f"{seeds} seeds"] * (seeds > 1))


def division(result: Result) -> tuple[str, ...]:
    """What results have to share to stand in one table: photos, resolution, and the split or, of
    cross-validation, the division into folds."""
    photos = result["photos"]
    split = str(photos["split"])
    if photos.get("folds"):
        split = f"{photos['division']} {photos['digest']}"
    return str(photos["name"]), str(photos["image_size"]), split


def mean_and_spread(values: Sequence[float | None], spec: str) -> str:
    """`mean ± std` over several runs (sample standard deviation), or the value of a single one.

    A count that cannot differ between seeds, such as that of the parameters, stands alone too.
    Where a value is not known, there is a dash.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    mean = format(statistics.fmean(known), spec)
    if len(known) == 1 or (len(set(known)) == 1 and isinstance(known[0], int)):
        return mean
    return f"{mean.removesuffix('%')} ± {format(statistics.stdev(known), spec)}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def row(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "| " + " | ".join([first.ljust(widths[0]), *padded]) + " |\n"

    return row(head) + row(ruler) + "".join(map(row, lines))


def printable(name: str) -> str:
    """The name, or its repr if it is empty or has characters that would break a line."""
    return name if name and name.isprintable() else repr(name)
