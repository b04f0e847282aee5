"""Tables of finished runs, made from their result.json alone.

    python -m utils.report [--output output]

prints Markdown tables of everything under output/results and writes them to
output/results/report.md. Runs that differ in nothing but the seed share a column: mean ± standard
deviation over the seeds.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from config import MODELS, ROOT, UserError

Result = dict[str, Any]
Columns = Mapping[str, Sequence[Result]]  # the runs of each column of a table, one a seed
Rows = Mapping[str, tuple[Callable[[Result], float], str]]  # what to read, how to print it

# Without these, a file is not a result of the scripts.
NEEDED = {"model", "seed", "tag", "photos", "recipe", "table", "test"}

SEVEN_ROWS: Rows = {
    "Best validation loss": (lambda r: r["table"]["best_val_loss"], ".4f"),
    "Best validation accuracy": (lambda r: r["table"]["best_val_accuracy"], ".2%"),
    "Final training loss": (lambda r: r["table"]["final_train_loss"], ".4f"),
    "Final validation loss": (lambda r: r["table"]["final_val_loss"], ".4f"),
    "Final validation accuracy": (lambda r: r["table"]["final_val_accuracy"], ".2%"),
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


def read_results(folder: Path) -> list[Result]:
    """Every finished run's result.json under `folder`, sorted by the run's name.

    Raises UserError when there is none, or when one cannot be read.
    """
    results = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            result = json.loads(path.read_text("utf-8"))
            if not isinstance(result, dict) or not result.keys() >= NEEDED:
                raise ValueError("something else than a result")
            results.append(result)
        except ValueError as problem:
            raise UserError(
                f"{path}: not a readable result; delete it or run it again"
            ) from problem
    if not results:
        raise UserError(f"{folder}: no finished run is there; train.py makes them")
    return results


def render(results: Iterable[Result]) -> str:
    """All tables as Markdown: one section for each set of photos, split and resolution."""
    sections: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        photos = result["photos"]
        key = photos["name"], photos["image_size"], photos["split"]
        sections.setdefault(key, []).append(result)
    return "\n".join(section(runs) for runs in sections.values())


def section(results: Sequence[Result]) -> str:
    """The tables of runs that share photos, split and resolution."""
    photos, columns = results[0]["photos"], columns_of(results)
    counts = ", ".join(f"{part} {count}" for part, count in photos["counts"].items())
    drawn = " Drawn by this repo, not photographed." if photos["sample"] else ""
    recall: Rows = {
        name: (lambda r, name=name: r["test"]["recall"][name], ".1%")  # type: ignore[misc]
        for name in photos["classes"]
    }
    return "\n".join(
        [
            f"## {photos['name']} at {photos['image_size']} px\n",
            f"{len(photos['classes'])} classes: {counts}; split {photos['split']}.{drawn}",
            "The test photos were used once, with the weights of the best validation accuracy.\n",
            table("", columns, SEVEN_ROWS),
            table("", columns, MORE_ROWS),
            table("Test recall of", columns, recall),
            settings(columns),
        ]
    )


def columns_of(results: Iterable[Result]) -> Columns:
    """The runs of each model, start, tag and recipe under the column's name, in MODELS' order."""
    columns: dict[str, list[Result]] = {}
    for result in sorted(results, key=_place):
        model, recipe = result["model"], result["recipe"]
        notes = ", ".join(filter(None, (recipe["pretrained"] and "pretrained", result["tag"])))
        title = name = f"{model} ({notes})" if notes else model
        others = itertools.count(2)
        while name in columns and columns[name][0]["recipe"] != recipe:
            name = f"{title} #{next(others)}"
        columns.setdefault(name, []).append(result)
    return columns


def _place(result: Result) -> tuple[int, str, bool, str, int]:
    model = result["model"]
    place = MODELS.index(model) if model in MODELS else len(MODELS)
    return place, model, result["recipe"]["pretrained"], result["tag"], result["seed"]


def table(corner: str, columns: Columns, rows: Rows) -> str:
    """A Markdown table with one column for each of `columns` and one row for each of `rows`."""
    head = [
        f"{name}, {len(runs)} seeds" if len(runs) > 1 else name for name, runs in columns.items()
    ]
    lines = [
        [title, *(mean_and_spread([read(run) for run in runs], spec) for runs in columns.values())]
        for title, (read, spec) in rows.items()
    ]
    return aligned([corner, *head], lines)


def mean_and_spread(values: Sequence[float], spec: str) -> str:
    """`mean ± std` over several seeds (sample standard deviation), or the value of a single one.

    A count that cannot differ between seeds, such as that of the parameters, stands alone too.
    """
    mean = format(statistics.fmean(values), spec)
    if len(values) == 1 or (len(set(values)) == 1 and isinstance(values[0], int)):
        return mean
    return f"{mean.removesuffix('%')} ± {format(statistics.stdev(values), spec)}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def row(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "| " + " | ".join([first.ljust(widths[0]), *padded]) + " |\n"

    return row(head) + row(ruler) + "".join(map(row, lines))


def settings(columns: Columns) -> str:
    """The recipe in one line, and the settings in which columns differ in one line each."""
    recipes = {name: runs[0]["recipe"] for name, runs in columns.items()}
    keys = dict.fromkeys(itertools.chain(*recipes.values()))
    values = {key: {name: recipe.get(key) for name, recipe in recipes.items()} for key in keys}
    shared = [f"{k} {_one(v)}" for k, v in values.items() if len(set(map(str, v.values()))) == 1]
    lines = ["Settings: " + ", ".join(shared) + "."]
    for key, by_column in values.items():
        if len(set(map(str, by_column.values()))) > 1:
            lines.append(f"- {key}: " + ", ".join(f"{v} ({name})" for name, v in by_column.items()))
    return "\n".join(lines) + "\n"


def _one(by_column: Mapping[str, object]) -> str:
    return str(next(iter(by_column.values())))


def write_report(folder: Path) -> str:
    """Render all results under `folder`, write report.md there and return its text."""
    text = "# Results\n\n" + render(read_results(folder))
    unfinished = folder / "report.md.unfinished"
    unfinished.write_text(text, "utf-8")
    unfinished.replace(folder / "report.md")
    return text


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.report", allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output", help="the scripts' --output"
    )
    try:
        print(write_report(parser.parse_args(arguments).output / "results"))
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
