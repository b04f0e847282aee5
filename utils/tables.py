"""Markdown tables of finished runs: those that differ in fold and seed alone share a column."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np

from config import Config, shown
from utils.metrics import mean_interval

Result = dict[str, Any]
Columns = Mapping[str, Sequence[Result]]  # the runs of each column of a table
Pairs = Sequence[tuple[Result, Result | None]]  # a run, and the one it is compared with
Rows = Mapping[str, tuple[str, ...]]  # the keys that lead to a value, and how to print it

SEVEN_ROWS: Rows = {
    "Best validation loss": ("table", "best_val_loss", ".4f"),
    "Best validation accuracy": ("val", "accuracy", ".2%"),
    "Final training loss": ("table", "final_train_loss", ".4f"),
    "Final validation loss": ("table", "final_val_loss", ".4f"),
    "Final validation accuracy": ("table", "final_val_accuracy", ".2%"),
    "Test loss": ("test", "loss", ".4f"),
    "Test accuracy": ("test", "accuracy", ".2%"),
}
PARAMETERS: Rows = {"Parameters": ("parameters", ",.0f")}
MORE_ROWS: Rows = {
    **PARAMETERS,
    "Test macro-F1": ("test", "macro_f1", ".4f"),
    "Test calibration error": ("test", "calibration_error", ".4f"),
    "Best epoch": ("best_epoch", ".0f"),
    "Training seconds": ("seconds", ",.0f"),
}
COMPARED: Rows = {
    "Validation accuracy": ("val", "accuracy", ".2%"),
    "Test accuracy": ("test", "accuracy", ".2%"),
    "Calibration error": ("test", "calibration_error", ".3f"),
    "Agreement with teacher": ("agreement", "top1", ".1%"),
}


def grouped(results: Iterable[Result], key: Callable[[Result], str]) -> dict[str, list[Result]]:
    """The results by their keys, in the order in which the keys first appear."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def section(results: Sequence[Result]) -> str:
    """The photos and the baselines of runs with the same photos, size, split and precision."""
    photos, names = results[0]["photos"], results[0]["photos"]["classes"]
    counts = ", ".join(f"{part} {count}" for part, count in photos["counts"].items())
    about = f"{len(names)} classes, split {photos['split']}: {counts}."
    if folds := photos["folds"]:
        here = len({result["photos"]["fold"] for result in results})
        about = f"{len(names)} classes; {here} of {folds} folds of division {photos['division']}."
    if few := photos.get("labels_per_class"):
        about += f" Labels per class: {'a fraction of' if few < 1 else 'at most'} {few:g}."
    on = {"{device}, torch {torch}".format_map(run["environment"]) for run in results}
    about += f" Computed in {results[0]['environment']['precision']}: {'; '.join(sorted(on))}."
    about += " Synthetic images, not photographs." * photos["sample"]
    if (test := photos["counts"]["test"]) < 200 and not folds:
        about += f" Few test photos: each counts {100 / test:.1f} points."
    once = "The test photos were used once, using the weights with the best validation accuracy.\n"
    text = [f"## {escaped(photos['name'])} at {photos['image_size']} px\n", escaped(about), once]
    if columns := grouped((run for run in results if not run.get("distillation")), title):
        text.append(table(columns, SEVEN_ROWS))
        if folds:
            lines = [[k, points([(r, None) for r in runs], sign="")] for k, runs in columns.items()]
            each = [len({run["photos"]["fold"] for run in runs}) for runs in columns.values()]
            over = "all photos" if min(each) == folds else "the folds of each network"
            text.append(aligned(["", f"Test accuracy over {over}, % [95 %]"], lines))
        recall = {f"Test recall, {name}": ("test", "recall", name, ".1%") for name in names}
        text.append(table(columns, {**MORE_ROWS, **recall}))
    return "\n".join(text)


def settings(run: Result) -> str:
    """The settings that are not the default ones, and the number of processes."""
    default, ranks = Config().recipe, run.get("environment", {}).get("ranks", 1)
    changed = [f"{k} {v}" for k, v in run["recipe"].items() if v != default.get(k, v)]
    return ", ".join([*changed, *[f"{ranks} processes"] * (ranks > 1)])


def title(run: Result) -> str:
    """The model, with its tag, the hash of its own code, and settings that are not the default."""
    notes = ", ".join(filter(None, (run["tag"], (run.get("source") or "")[:6], settings(run))))
    return f"{run['arch']} ({notes})" if notes else str(run["arch"])


def gain_over(pairs: Pairs, part: str = "test") -> np.ndarray:
    """Accuracy of the first run of each pair minus that of the second, if there is one: the mean
    over all photos of `part` (test or val), -1..1, and the ends of its 95 % confidence interval."""
    splits: dict[str, list[np.ndarray]] = {}
    for pair in pairs:
        hits = [1.0 - np.isin(range(r[part]["photos"]), r[part]["wrong"]) for r in pair if r]
        splits.setdefault(pair[0]["photos"]["split"], []).append(hits[0] - sum(hits[1:]))
    least = -1 if pairs[0][1] else 0
    return np.clip(mean_interval([np.stack(seeds) for seeds in splits.values()]), least, 1)


def points(pairs: Pairs, part: str = "test", sign: str = "+") -> str:
    """`gain_over` and its interval as text, in points (hundredths); a dash without pairs."""
    ends = 100 * gain_over(pairs, part) if pairs else ()
    return "{:{s}z.2f} [{:{s}.2f}, {:{s}.2f}]".format(*ends, s=sign) if pairs else "–"


def table(columns: Columns, rows: Rows) -> str:
    """A Markdown table with one column for each of `columns` and one row for each of `rows`."""
    head = [""]
    for name, runs in columns.items():
        if len(runs) > 1:
            folds = {run["photos"]["fold"] for run in runs} - {None}
            what = "seeds" if not folds else "folds" if len(folds) == len(runs) else "runs"
            name = f"{name}, {len(runs)} {what}"
        head.append(name)
    lines = [[name, *(cell(runs, row) for runs in columns.values())] for name, row in rows.items()]
    return aligned(head, lines)


def cell(runs: Sequence[Result], row: Sequence[str]) -> str:
    """`mean ± std` (of the sample); one value, or a count that all share, alone; – if unknown."""
    *keys, spec = row
    values: list[Any] = [reduce(getitem, keys, run) for run in runs]
    if not values or None in values:
        return "–"
    mean = format(np.mean([float(value) for value in values]), spec)
    if len(values) == 1 or (len(set(values)) == 1 and isinstance(values[0], int)):
        return mean
    return f"{mean.removesuffix('%')} ± {format(np.std(values, ddof=1), spec)}"


def confusion_table(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str) -> str:
    """Counts (C, C), rows = true class; columns are numbers, since names would be broken there."""
    numbers = [str(number) for number in range(1, 1 + len(classes))]
    rows = zip(numbers, classes, counts, strict=True)
    lines = [[f"{n} {label}", *(str(count or "") for count in row)] for n, label, row in rows]
    return aligned([f"{name}true ↓ predicted →", *numbers], lines)


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; numbers to the right."""
    rows = [[escaped(text) for text in line] for line in (head, *lines)]
    first, *widths = (max(2, *map(len, column)) for column in zip(*rows, strict=True))
    rows.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in widths)])
    padded = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def escaped(text: str) -> str:
    """Escape the text so that a Markdown table shows it literally."""
    return shown(text, keep="").replace("<", "&lt;").replace("|", "&#124;")
