"""Tables of finished runs, made from their result.json alone.

    python -m utils.report [--output output]

prints Markdown tables of everything under output/results and writes them there to report.md, and
every number of every run to runs.csv. Runs that differ in nothing but fold and seed share a column:
mean ± standard deviation over the runs, and for folds the accuracy over all photos.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem, itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from config import MODELS, ROOT, UserError
from data.files import atomic_write, csv_text
from utils.metrics import mean_interval

T = TypeVar("T")
Result = dict[str, Any]
Columns = Mapping[str, Sequence[Result]]  # the runs of each column of a table
Rows = Mapping[str, tuple[str, ...]]  # the keys that lead to a value, and how to print it
Interval = tuple[float, float, float]  # a mean, and the ends of its 95 % interval

SEVEN_ROWS: Rows = {
    "Best validation loss": ("table", "best_val_loss", ".4f"),
    "Best validation accuracy": ("table", "best_val_accuracy", ".2%"),
    "Final training loss": ("table", "final_train_loss", ".4f"),
    "Final validation loss": ("table", "final_val_loss", ".4f"),
    "Final validation accuracy": ("table", "final_val_accuracy", ".2%"),
    "Test loss": ("table", "test_loss", ".4f"),
    "Test accuracy": ("table", "test_accuracy", ".2%"),
}
SIZE_ROWS: Rows = {"Parameters": ("parameters", ",.0f")}
MORE_ROWS: Rows = {
    "Test macro-F1": ("test", "macro_f1", ".4f"),
    "Test calibration error": ("test", "calibration_error", ".4f"),
    "Best epoch": ("best_epoch", ".0f"),
    **SIZE_ROWS,
    "Training images per second": ("images_per_second", ",.0f"),
    "Training seconds": ("seconds", ",.0f"),
}
COMPARED: Rows = {
    "Validation accuracy": ("val", "accuracy", ".2%"),
    "Test accuracy": ("test", "accuracy", ".2%"),
    "Agreement with teacher": ("agreement", "top1", ".1%"),
    "KL to teacher": ("agreement", "kl", ".3f"),
    "Calibration error": ("test", "calibration_error", ".3f"),
}
COMPARISON_NOTE = """\
KD − baseline: points of test accuracy, each run against the one without a teacher of the same fold
and seed, with a 95 % interval over folds; without folds over seeds and photos; with one seed over
photos alone. KD − teacher: the same against the teacher. Agreement: share of test photos that
student and teacher give one class. KL: mean of KL(teacher ‖ student) in nats.
"""
# What every result contains; a distilled student's also `distillation`, `teacher`, `agreement`.
NEEDED = {
    str: "run model tag digest",
    int: "seed epochs best_epoch parameters",
    float: "seconds images_per_second",
    dict: "photos recipe table val test",
}


def read_result(path: Path) -> Result:
    """The content of a result.json. Raises UserError when it is none: when it is no JSON, lacks a
    key, or its own tables cannot be made of it."""
    try:
        result = json.loads(path.read_bytes()) if path.is_file() else {}
        for kind, keys in NEEDED.items():
            if wrong := [key for key in keys.split() if not isinstance(result[key], kind)]:
                raise ValueError(f"{', '.join(wrong)}: not of type {kind.__name__}")
        for part in (result["val"], result["test"]):
            if set(part["wrong"]) - set(range(part["photos"])):
                raise ValueError("more photos are wrong than there are")
            if [*part["recall"]] != result["photos"]["classes"]:
                raise ValueError("recalls of other classes")
        if ("distillation" in result) != ("teacher" in result):
            raise ValueError("a teacher without distillation")
        section([result])
        differences("", [result], {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        what = printable(f"{type(problem).__name__}: {problem}")
        raise UserError(
            f"{path}: not a readable result ({what}); delete it or train the run again"
        ) from problem
    return dict(result)


def read_results(folder: Path) -> list[Result]:
    """Every finished run's result under `folder`, by name; raises UserError when there is none.

    A folder that is not named as its run is a copy, which is left out: a run counts once.
    """
    found = {path.parent: read_result(path) for path in sorted(folder.glob("*/result.json"))}
    for place, result in found.items():
        if result["run"] != place.name:
            note = f"note: {place} is a copy of {result['run']} and is left out"
            print(printable(note), file=sys.stderr)
    if not found:
        raise UserError(f"{folder}: no finished run is there; train.py makes them")
    return [result for place, result in found.items() if result["run"] == place.name]


def grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """The items of equal keys together, in the order in which the keys first appear."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(repr(key(item)), []).append(item)
    return list(groups.values())


def division(result: Result) -> tuple[str, ...]:
    """What results share in one section: photos, resolution, and the split or, of
    cross-validation, the division into folds."""
    photos = result["photos"]
    split = f"{photos['division']} {photos['digest']}" if photos["folds"] else photos["split"]
    return photos["name"], photos["image_size"], split


def section(results: Sequence[Result]) -> str:
    """The tables of runs that share photos, resolution, and split or division into folds."""
    photos = results[0]["photos"]
    folds, split = "", f"split {photos['split']}."
    if photos["folds"]:
        folds = f", {photos['folds']} folds"
        here = len({result["photos"]["fold"] for result in results})
        split = f"fold {photos['fold']} of division {photos['division']}. "
        split += f"Runs of {here} of {photos['folds']} folds are here."
    counts = ", ".join(f"{part} {count}" for part, count in photos["counts"].items())
    drawn = " Drawn by this repo, not photographed." if photos["sample"] else ""
    text = [
        f"## {escaped(photos['name'])} at {photos['image_size']} px{folds}\n",
        escaped(f"{len(photos['classes'])} classes: {counts}; {split}{drawn}"),
        "The test photos were used once, with the weights of the best validation accuracy.\n",
    ]
    if columns := columns_of(run for run in results if "distillation" not in run):
        recall = {name: ("test", "recall", name, ".1%") for name in photos["classes"]}
        text.append(table("", columns, SEVEN_ROWS))
        text += [pooled(columns)] if folds else []
        text += [table("", columns, MORE_ROWS), table("Test recall of", columns, recall)]
        text.append(settings(columns))
    return "\n".join(filter(None, [*text, comparison(results)]))


def columns_of(results: Iterable[Result]) -> Columns:
    """The runs of each model, start, tag and recipe under the column's name, in MODELS' order."""

    def place(run: Result) -> tuple[int, str, bool, str, int]:
        known = MODELS.index(run["model"]) if run["model"] in MODELS else len(MODELS)
        return known, run["model"], run["recipe"]["pretrained"], run["tag"], run["seed"]

    columns: dict[str, list[Result]] = {}
    kind = itemgetter("model", "tag", "recipe")
    for runs in grouped(sorted(results, key=place), kind):
        model, tag, recipe = kind(runs[0])
        notes = ", ".join(filter(None, ["pretrained" * recipe["pretrained"], tag]))
        title = f"{model} ({notes})" if notes else model
        others = sum(name.split(" #")[0] == title for name in columns)
        columns[f"{title} #{others + 1}" if others else title] = runs
    return columns


def pooled(columns: Columns) -> str:
    """The test accuracy over the photos of all folds, one row for each column."""
    lines = []
    for name, runs in columns.items():
        mean, *ends = (f"{max(0, end):.2%}" for end in gain_over((run, None) for run in runs))
        photos = sum({run["photos"]["fold"]: run["test"]["photos"] for run in runs}.values())
        lines.append([name, f"{photos:,}", counted(runs), mean, " to ".join(ends)])
    return aligned(("", "Test photos", "Over", "Test accuracy", "95 % interval"), lines)


def settings(columns: Columns) -> str:
    """The recipe in one line, and the settings in which columns differ in one line each."""
    recipes = {name: runs[0]["recipe"] for name, runs in columns.items()}
    shared, lines = [], []
    for key in dict.fromkeys(key for recipe in recipes.values() for key in recipe):
        values = {name: str(recipe.get(key)) for name, recipe in recipes.items()}
        if len(set(values.values())) == 1:
            shared.append(f"{key} {values.popitem()[1]}")
        else:
            lines.append(f"- {key}: " + ", ".join(f"{v} ({name})" for name, v in values.items()))
    return "\n".join(map(escaped, [f"Settings: {', '.join(shared)}.", *lines])) + "\n"


def comparison(results: Sequence[Result]) -> str:
    """What teachers did for students: tables for each group of students that share photos, teacher,
    architecture, tag, recipe and their teachers' recipe. "" without students."""

    def kind(run: Result) -> tuple[object, ...]:
        who = run["distillation"]["teacher"], run["model"], run["tag"]
        return *division(run), *who, run["recipe"], run["teacher"]["recipe"]

    by_name = {result["run"]: result for result in results}
    students = [result for result in by_name.values() if "distillation" in result]
    return "\n".join(one_pair(group, by_name) for group in grouped(students, kind))


def one_pair(students: Sequence[Result], by_name: Mapping[str, Result]) -> str:
    """The tables of one teacher and one student: the seven rows of teacher, student and KD student,
    and one row a method. The first is of the method that is best on validation among those with
    most runs, and of its runs alone."""
    alone = {run["run"]: found for run in students if (found := baseline_of(run, by_name))}
    methods = {method_name(runs[0]): runs for runs in grouped(students, method_name)}
    most = max(map(len, methods.values()))
    repeated = [name for name, runs in methods.items() if len(runs) == most]
    best = max(repeated, key=lambda n: np.mean([run["val"]["accuracy"] for run in methods[n]]))
    taught = grouped(methods[best], lambda run: (run["teacher"]["run"], run["photos"]["split"]))
    columns = {
        "Teacher": [as_it_taught(runs[0], by_name) for runs in taught],
        "Student": [alone[run["run"]] for run in methods[best] if run["run"] in alone],
        "KD Student": methods[best],
    }
    columns = {name: runs for name, runs in columns.items() if runs}
    tag = f" ({students[0]['tag']})" if students[0]["tag"] else ""
    title = f"{students[0]['distillation']['teacher']} teaches {students[0]['model']}{tag}"
    text = [f"### {escaped(title)}\n", table("", columns, {**SEVEN_ROWS, **SIZE_ROWS})]
    if len(methods) > 1:
        why = "the one with most runs" if len(repeated) == 1 else "the best on validation"
        of = len(methods) if len(repeated) == 1 else len(repeated)
        text.append(escaped(f"The KD student is {best}: of {of}, {why}.") + "\n")
    baselines = {run["run"]: run for run in alone.values()}
    rows = {"no teacher": list(baselines.values())} | methods
    gains = "KD − baseline [95 %]", "KD − teacher [95 %]"
    head = ["Student", "Runs", *[*COMPARED][:2], *gains, *[*COMPARED][2:]]
    lines = [differences(name, runs, alone) for name, runs in rows.items() if runs]
    text += [aligned(head, lines), COMPARISON_NOTE]
    if any(student["teacher"]["other_split"] for student in students):
        text.append(
            "WARNING: the teacher learnt from another split and may have seen the test photos.\n"
        )
    return "\n".join(text)


def method_name(student: Result) -> str:
    """A method and its settings, as a row of a table calls them."""
    how = student["distillation"]
    weight = "" if how["weight"] is None else f", weight {how['weight']:g}"
    return f"{how['method']}, α {how['alpha']:g}, T {how['temperature']:g}{weight}"


def differences(name: str, runs: Sequence[Result], alone: Mapping[str, Result]) -> list[str]:
    """A row of the comparison: students of one method, or their baselines."""
    pairs = [(run, alone[run["run"]]) for run in runs if run["run"] in alone]
    gain = in_points(gain_over(pairs)) if pairs else ""
    if 0 < len(pairs) < len(runs):
        gain += f" of {len(pairs)} runs"
    taught = "teacher" in runs[0]
    over_teacher = in_points(gain_over((run, run["teacher"]) for run in runs)) if taught else ""
    cells = [cell(runs, row) if row[0] in runs[0] else "" for row in COMPARED.values()]
    return [name, str(len(runs)), *cells[:2], gain, over_teacher, *cells[2:]]


def as_it_taught(student: Result, by_name: Mapping[str, Result]) -> Result:
    """The teacher's own result. Of one that is of another split, was given as a checkpoint, or
    was trained again since, only what was measured when it taught."""
    teacher, own = student["teacher"], by_name.get(student["teacher"]["run"])
    split = student["photos"]["split"]
    if own and (own["digest"], own["photos"]["split"]) == (teacher["digest"], split):
        return own
    known = {
        "best_val_accuracy": teacher["val"]["accuracy"],
        "test_loss": teacher["test"]["loss"],
        "test_accuracy": teacher["test"]["accuracy"],
    }
    unknown = dict.fromkeys(key for _, key, _ in SEVEN_ROWS.values())
    return teacher | {"table": unknown | known, "photos": student["photos"]}


def baseline_of(student: Result, by_name: Mapping[str, Result]) -> Result | None:
    """The same network without a teacher; None where there is none of the student's photos, split
    and recipe, as after another --overwrite."""

    def shared(run: Result) -> list[Any]:
        return [run["recipe"], *(run["photos"][key] for key in ("image_size", "split", "digest"))]

    baseline = by_name.get(student["distillation"]["baseline"])
    return baseline if baseline and shared(baseline) == shared(student) else None


def gain_over(pairs: Iterable[tuple[Result, Result | None]], part: str = "test") -> Interval:
    """How much better the first of each pair is than the second, or than nothing: the difference
    in accuracy over all photos of `part` (test or val), -1..1, and its 95 % interval."""
    splits: dict[str, list[np.ndarray]] = {}
    for pair in pairs:
        hits = [recognised(run[part]) for run in pair if run]
        splits.setdefault(pair[0]["photos"]["split"], []).append(hits[0] - sum(hits[1:]))
    mean, low, high = mean_interval([np.stack(seeds) for seeds in splits.values()])
    return mean, max(low, -1), min(high, 1)


def recognised(measured: Mapping[str, Any]) -> np.ndarray:
    """(photos,) float64: 1 for each photo of a split that was classified rightly, else 0."""
    right = np.ones(measured["photos"])
    right[measured["wrong"]] = 0
    return right


def in_points(gain: Interval) -> str:
    """A gain and its interval as tables show it, in points (hundredths)."""
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in gain))


def table(corner: str, columns: Columns, rows: Rows) -> str:
    """A Markdown table with one column for each of `columns` and one row for each of `rows`."""
    head = [", ".join(filter(None, (name, counted(runs)))) for name, runs in columns.items()]
    lines = [
        [title, *(cell(runs, row) for runs in columns.values())] for title, row in rows.items()
    ]
    return aligned([corner, *head], lines)


def counted(runs: Sequence[Result]) -> str:
    """Over how many folds and seeds these runs are; nothing for a single run of one split."""
    folds = Counter(run["photos"]["fold"] for run in runs if run["photos"]["folds"])
    text = f"{len(folds)} fold{'s' * (len(folds) > 1)}"
    if len(set(folds.values())) > 1:
        return f"{len(runs)} runs of {text}"
    seeds = len(runs) // max(1, len(folds))
    return ", ".join([text] * bool(folds) + [f"{seeds} seeds"] * (seeds > 1))


def cell(runs: Sequence[Result], row: Sequence[str]) -> str:
    """`mean ± std` over several runs (sample standard deviation), or the value of a single one.

    A count that cannot differ between seeds, such as that of the parameters, stands alone too.
    Where a value is not known, there is a dash.
    """
    *keys, spec = row
    values: list[Any] = [reduce(getitem, keys, run) for run in runs]
    if None in values:
        return "–"
    numbers = [float(value) for value in values]
    mean = format(np.mean(numbers), spec)
    if len(values) == 1 or (len(set(values)) == 1 and isinstance(values[0], int)):
        return mean
    return f"{mean.removesuffix('%')} ± {format(np.std(numbers, ddof=1), spec)}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; numbers to the right."""
    rows = [[escaped(cell) for cell in line] for line in (head, *lines)]
    first, *others = zip(*rows, strict=True)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    rulers = [("-" * (len(c[0]) - 1)) + ("-" if c is columns[0] else ":") for c in columns]
    top, *rest = zip(*columns, strict=True)
    return "".join(f"| {' | '.join(row)} |\n" for row in (top, rulers, *rest))


def escaped(text: str) -> str:
    """Text that is nothing but text in Markdown."""
    return printable(text).replace("<", "&lt;").replace("|", "&#124;") if text else ""


def printable(name: str) -> str:
    """The name, or its repr if it is empty or has characters that would break a line."""
    return name if name and name.isprintable() else repr(name)


def write_report(folder: Path) -> str:
    """Render all results under `folder`, write report.md and runs.csv there, and return the text.

    Raises UserError when there are none, or when one cannot be read.
    """
    results = read_results(folder)
    text = "# Results\n\n" + "\n".join(map(section, grouped(results, division)))
    atomic_write(folder / "report.md", text)
    records = [flat(result) for result in results]
    names = dict.fromkeys(name for record in records for name in record)
    rows = [[record.get(name, "") for name in names] for record in records]
    atomic_write(folder / "runs.csv", csv_text([names, *rows]))
    return text


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All single values of a result: {"test": {"loss": 1}} becomes {"test.loss": 1}."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            values[prefix + key] = value
    return values


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.report", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="that of the scripts")
    folder = parser.parse_args(arguments).output / "results"
    try:
        code = sys.stdout.encoding or "utf-8"  # a terminal may lack letters
        print(write_report(folder).encode(code, "backslashreplace").decode(code), flush=True)
    except BrokenPipeError:  # whoever reads has read enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
