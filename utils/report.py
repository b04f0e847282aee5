"""Compares students with their teachers and baselines, and reports on all finished runs.

    python -m utils.report [--output output] [--filter "*fold*"] [--sort test/loss]

prints a line for each run under output/results and tables of them, in Markdown, and writes them
there to report.md; runs.csv gets every single value of their result.json, a line each.
"""

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from config import PATH, Config, Parser, UserError, shown
from data.files import atomic_write, csv_text, read_json
from utils import tables
from utils.script import run_script
from utils.tables import Result, aligned, cell, escaped, grouped, points, settings, title

# In a line for each run, beside what it is sorted by.
COLUMNS = ("settings", "val/accuracy", "test/accuracy", "test/loss", "parameters", "seconds")
COMPARISON_NOTE = """\
KD − baseline, KD − teacher: points of test accuracy over the run of the same fold and seed, with
95 % intervals: over folds or, on one split, seeds and photos. Agreement: with the teacher, on test.
A KD student's final training loss has other terms and cannot be compared with the others.
"""


def comparison(results: Sequence[Result], others: Sequence[Result] = ()) -> str:
    """Tables for each teacher and student, "" without students; others may be their baselines."""
    by_name, students = {result["run"]: result for result in (*others, *results)}, []
    for run in results:
        if run.get("distillation"):
            baseline = by_name.get(run["distillation"]["baseline"], {})
            # It may have been trained again since, on other photos or by another recipe.
            same = all(baseline.get(key) == run.get(key) for key in ("photos", "source", "recipe"))
            same = same and run["environment"]["precision"] == baseline["environment"]["precision"]
            added = {"baseline": baseline if same else None}
            students.append(run | added | {"taught_by": teacher_result(run, by_name)})
    return "\n".join(map(pair_tables, grouped(students, heading).values()))


def teacher_result(student: Result, by_name: Mapping[str, Result]) -> Result:
    """The teacher's result or, if it was trained again or elsewhere, what was measured with it."""
    teacher, own = student["teacher"], by_name.get(student["teacher"]["run"])
    if own and own["digest"] == teacher["digest"] and not teacher["other_split"]:
        return own
    return teacher | {"table": dict.fromkeys(student["table"]), "photos": student["photos"]}


def heading(student: Result) -> str:
    """The teacher and the student, each with its settings."""
    teacher = {"arch": student["distillation"]["teacher"], "tag": "", **student["teacher"]}
    return f"{title(teacher)} teaches {title(student)}"


def method_name(student: Result) -> str:
    """A method and its settings, as a row of a table calls them."""
    how = student["distillation"]
    weight = "" if how["weight"] is None else f", weight {how['weight']:.15g}"
    more = f", and {of} {how['unlabelled_digest'][:4]}" if (of := how.get("unlabelled")) else ""
    return f"{how['method']}, α {how['alpha']:.15g}, T {how['temperature']:.15g}{weight}{more}"


def pair_tables(students: Sequence[Result]) -> str:
    """Two tables: the main rows for the best method, and the comparison, one row per method."""
    methods = grouped(students, method_name)
    best = max(methods.values(), key=lambda rs: (len(rs), sum(r["val"]["accuracy"] for r in rs)))
    teachers = {(run["teacher"]["run"], run["photos"]["split"]): run for run in best}
    columns = {
        "Teacher": [run["taught_by"] for run in teachers.values()],
        "Student": [run["baseline"] for run in best if run["baseline"]],
        "KD Student": best,
    }
    chosen = f"The KD student is {method_name(best[0])}: most runs, then best on validation."
    rows = {**tables.SEVEN_ROWS, **tables.PARAMETERS}
    text = [f"### {escaped(heading(students[0]))}\n", tables.table(columns, rows)]
    text += [f"{escaped(chosen)}\n"] if len(methods) > 1 else []
    alone = {run["baseline"]["run"]: run["baseline"] for run in students if run["baseline"]}
    named = {"no teacher": [*alone.values()], **methods}
    head = ["Student", "Runs", "KD − baseline [95 %]", "KD − teacher [95 %]", *tables.COMPARED]
    text += [tables.aligned(head, [compared(n, r) for n, r in named.items() if r]), COMPARISON_NOTE]
    if any(student["teacher"]["other_split"] for student in students):
        text.append("WARNING: the teacher's split differs: it may have seen the test photos.\n")
    elif any(student["teacher"].get("other_labels") for student in students):
        text.append("WARNING: the teacher was trained with other labels than its student.\n")
    versions = {(student["teacher"]["run"], student["teacher"]["digest"]) for student in students}
    if len(versions) > len(dict(versions)):
        text.append("WARNING: a teacher was trained again: not all students had the same one.\n")
    return "\n".join(text)


def compared(name: str, runs: Sequence[Result]) -> list[str]:
    """A row of the comparison: students of one method, or their baselines."""
    pairs = [(run, run["baseline"]) for run in runs if run.get("baseline")]
    some = f" of {len(pairs)} runs" if 0 < len(pairs) < len(runs) else ""
    over_teacher = points([(run, run["teacher"]) for run in runs if "teacher" in run])
    cells = [cell(runs, row) if row[0] in runs[0] else "–" for row in tables.COMPARED.values()]
    return [name, str(len(runs)), points(pairs) + some, over_teacher, *cells]


def read_results(folder: Path) -> list[Result]:
    """Every finished run's result, by name, without copies; raises UserError when there is none."""
    found = {path.parent: read_json(path) for path in sorted(folder.glob("*/result.json"))}
    if copies := [str(place) for place, result in found.items() if result["run"] != place.name]:
        print(shown(f"NOTE: copies of other runs left out: {', '.join(copies)}"), file=sys.stderr)
    if len(copies) == len(found):
        raise UserError(f"{folder}: no finished run is there; train.py makes them")
    return [result for place, result in found.items() if result["run"] == place.name]


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """The plain values of a run by their names, such as test/accuracy."""
    if isinstance(value, dict):
        inner = [flattened(v, f"{name}/{key}".lstrip("/")) for key, v in value.items()]
        return {key: v for found in inner for key, v in found.items()}
    return {} if isinstance(value, list) else {name: value}


def leaderboard(lines: Sequence[dict[str, Any]], sort: str) -> str:
    """A table with a line for each run, sorted by a column: numbers from high to low."""

    def order(line: dict[str, Any]) -> tuple[bool, float, str]:
        value = line.get(sort)
        return value is None, 0 if isinstance(value, str | None) else -value, str(value)

    names = [*dict.fromkeys(["run", *COLUMNS, sort])]
    rows = ([line.get(name) for name in names] for line in sorted(lines, key=order))
    cut = [[f"{v:.{4 if abs(v) < 1 else 6}g}" if type(v) is float else v for v in r] for r in rows]
    return aligned(names, [["–" if v is None else str(v) for v in row] for row in cut])


def write_report(folder: Path, pattern: str = "*", sort: str = "val/accuracy") -> str:
    """Write runs.csv of all results, and report.md of those whose name matches; return that."""

    def conditions(run: Result) -> str:
        split = "division" if run["photos"]["folds"] else "split"
        keys = ("name", "image_size", "digest", "labels_per_class", split)
        return str([run["environment"]["precision"], *map(run["photos"].get, keys)])

    results = read_results(folder)
    lines = [flattened({"run": r["run"], "settings": settings(r), **r}) for r in results]
    names = dict.fromkeys(name for line in lines for name in line)
    if sort not in names:
        raise UserError(f"--sort {sort}: not a column of runs.csv")
    rows = [[line.get(name, "") for name in names] for line in lines]
    atomic_write(folder / "runs.csv", csv_text([[*names], *rows]))
    some = [run for run in results if fnmatchcase(run["run"], pattern)]
    lines = [line for line in lines if fnmatchcase(line["run"], pattern)]
    if not some:
        raise UserError(f"--filter {pattern}: no finished run in {folder} has such a name")
    parts = [leaderboard(lines, sort)]
    for runs in grouped(some, conditions).values():
        parts += filter(None, (tables.section(runs), comparison(runs, results)))
    text = "# Results\n\n" + "\n".join(parts)
    atomic_write(folder / "report.md", text)
    return text


def main(arguments: Sequence[str]) -> None:
    """Print and write the report of the --output that is given."""
    parser = Parser(__doc__, "python -m utils.report")
    parser.add_argument("--output", type=PATH, default=Config.output, help="as train.py's")
    parser.add_argument("--filter", default="*", help="only runs with such names, as '*kd*'")
    parser.add_argument("--sort", default="val/accuracy", help="a column of runs.csv, high to low")
    options = parser.parse_args(arguments)
    print(write_report(options.output / "results", options.filter, options.sort))


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
