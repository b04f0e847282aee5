"""Tables of finished runs, made from their result.json alone.

    python -m utils.report [--output output]

prints Markdown tables of everything under output/results and writes them to
output/results/report.md. Runs that differ in nothing but fold and seed share a column: mean ±
standard deviation over the runs, and for folds the accuracy over all photos with its interval.
"""

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from config import MODELS, ROOT, UserError
from data.locks import write_whole
from utils.comparison import (
    accuracy_over,
    comparison,
    difference_rows,
    pairs_of,
    whole_recipe,
)
from utils.tables import (
    MORE_ROWS,
    SEVEN_ROWS,
    Columns,
    Result,
    Rows,
    aligned,
    counted,
    division,
    printable,
    read_result_file,
    table,
)


def read_results(folder: Path) -> list[Result]:
    """Every finished run's result.json under `folder`, sorted by the run's name.

    Raises UserError when there is none, or when one cannot be read.
    """
    results = [read_result_file(path) for path in sorted(folder.glob("*/result.json"))]
    if not results:
        raise UserError(f"{folder}: no finished run is there; train.py makes them")
    return results


def render(results: Iterable[Result]) -> str:
    """All tables as Markdown: one section for each set of photos, resolution, and split or division
    into folds."""
    sections: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        sections.setdefault(division(result), []).append(result)
    return "\n".join(map(section, sections.values()))


def section(results: Sequence[Result]) -> str:
    """The tables of runs that share photos, resolution, and split or division into folds."""
    photos = results[0]["photos"]
    baselines = [result for result in results if not result.get("lesson")]
    counts = ", ".join(f"{part} {count}" for part, count in photos["counts"].items())
    drawn = " Drawn by this repo, not photographed." if photos["sample"] else ""
    folds, split = photos.get("folds"), f"split {photos['split']}"
    if folds:
        here = len({result["photos"]["fold"] for result in results})
        split = f"fold {photos['fold']} of division {photos['division']}. "
        split += f"Runs of {here} of {folds} folds are here"
    text = [
        f"## {photos['name']} at {photos['image_size']} px{f', {folds} folds' if folds else ''}\n",
        f"{len(photos['classes'])} classes: {counts}; {split}.{drawn}",
        "The test photos were used once, with the weights of the best validation accuracy.\n",
    ]
    if baselines:
        columns = columns_of(baselines)
        recall: Rows = {
            printable(name).replace("|", "&#124;"): (
                lambda r, name=name: r["test"]["recall"][name],  # type: ignore[misc]
                ".1%",
            )
            for name in photos["classes"]
        }
        text += [
            table("", columns, SEVEN_ROWS),
            *([pooled(columns)] if folds else []),
            table("", columns, MORE_ROWS),
            table("Test recall of", columns, recall),
            settings(columns),
        ]
    if len(baselines) < len(results):
        text.append(comparison(results))
    return "\n".join(text)


def pooled(columns: Columns) -> str:
    """The test accuracy over the photos of all folds, one row for each column."""
    lines = []
    for name, runs in columns.items():
        mean, low, high = (f"{value:.2%}" for value in accuracy_over(runs))
        photos = sum({run["photos"]["fold"]: run["test"]["photos"] for run in runs}.values())
        lines.append([name, f"{photos:,}", counted(runs), mean, f"{low} to {high}"])
    return aligned(("", "Test photos", "Over", "Test accuracy", "95 % interval"), lines)


def columns_of(results: Iterable[Result]) -> Columns:
    """The runs of each model, start, tag and recipe under the column's name, in MODELS' order."""
    columns: dict[str, list[Result]] = {}
    for result in sorted(results, key=_place):
        model, recipe = result["model"], whole_recipe(result)
        notes = ", ".join(filter(None, (recipe["pretrained"] and "pretrained", result["tag"])))
        title = name = f"{model} ({notes})" if notes else model
        others = itertools.count(2)
        while name in columns and whole_recipe(columns[name][0]) != recipe:
            name = f"{title} #{next(others)}"
        columns.setdefault(name, []).append(result)
    return columns


def _place(result: Result) -> tuple[int, str, bool, str, int]:
    model = result["model"]
    place = MODELS.index(model) if model in MODELS else len(MODELS)
    return place, model, result["recipe"]["pretrained"], result["tag"], result["seed"]


def settings(columns: Columns) -> str:
    """The recipe in one line, and the settings in which columns differ in one line each."""
    recipes = {name: whole_recipe(runs[0]) for name, runs in columns.items()}
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
    """Render all results under `folder`, write report.md and its tables there as CSV, and return
    the text."""
    results = read_results(folder)
    text = "# Results\n\n" + render(results)
    write_whole(folder / "report.md", text)
    write_whole(folder / "runs.csv", to_csv([run_record(result) for result in results]))
    by_name = {result["run"]: result for result in results}
    lessons = [
        {"teacher": pair[0]["lesson"]["teacher"], "student": pair[0]["model"]}
        | {"tag": pair[0]["tag"], "photos": pair[0]["photos"]["name"]}
        | dict(zip(("image_size", "split"), division(pair[0])[1:], strict=True))
        | row.record()
        for pair in pairs_of(results)
        for row in difference_rows(pair, by_name)
    ]
    if lessons:
        write_whole(folder / "comparison.csv", to_csv(lessons))
    return text


def run_record(result: Result) -> dict[str, object]:
    """One run as a line of runs.csv."""
    lesson = {
        key: value for key, value in (result.get("lesson") or {}).items() if key != "baseline"
    }
    names = ("run", "model", "seed", "tag", "epochs", "best_epoch", "parameters", "seconds")
    metrics = {f"test_{key}": result["test"][key] for key in ("macro_f1", "calibration_error")}
    empty = dict.fromkeys(("method", "alpha", "temperature", "weight", "teacher"), "")
    fold = {name: result["photos"].get(name) for name in ("folds", "fold")}
    values = {name: result[name] for name in names} | fold
    return values | result["table"] | metrics | empty | lesson


def to_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Lines of values under a line of names, which all records share."""
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.report", allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output", help="the scripts' --output"
    )
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        print(write_report(parser.parse_args(arguments).output / "results"))
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
