"""Compares students with their teachers and baselines, and reports on all finished runs.

    python -m utils.report [--output output]

prints Markdown tables of everything under output/results and writes them there to report.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import ROOT, UserError, shown
from data.files import atomic_write, read_json
from utils import tables
from utils.script import run_script
from utils.tables import Result, cell, escaped, grouped, points, title

COMPARISON_NOTE = """\
KD − baseline: points of test accuracy over the run of the same fold and seed without a teacher, and
its 95 % interval: over folds, else over seeds and photos, or photos alone. KD − teacher: over the
teacher. Agreement: share of test photos with the same class. KL(teacher ‖ student) in nats.
"""


def comparison(results: Sequence[Result]) -> str:
    """Tables for each teacher and student, each of one recipe; "" without students."""
    by_name, students = {result["run"]: result for result in results}, []
    for run in by_name.values():
        if "distillation" in run:
            baseline = by_name.get(run["distillation"]["baseline"], {})
            # It may have been trained again since, on other photos or by another recipe.
            same = all(baseline.get(key) == run[key] for key in ("photos", "recipe"))
            added = {"baseline": baseline if same else None}
            students.append(run | added | {"taught_by": as_it_taught(run, by_name)})
    return "\n".join(map(one_pair, grouped(students, heading).values()))


def as_it_taught(student: Result, by_name: Mapping[str, Result]) -> Result:
    """The teacher's result or, if it was trained again or elsewhere, what was measured with it."""
    teacher, own = student["teacher"], by_name.get(student["teacher"]["run"])
    if own and own["digest"] == teacher["digest"] and not teacher["other_split"]:
        return own
    known = {"best_val_accuracy": teacher["val"]["accuracy"]}
    known |= {f"test_{key}": teacher["test"][key] for key in ("loss", "accuracy")}
    return teacher | {"table": dict.fromkeys(student["table"]) | known, "photos": student["photos"]}


def heading(student: Result) -> str:
    """The teacher and the student, each with its settings."""
    teacher = {"model": student["distillation"]["teacher"], "tag": "", **student["teacher"]}
    return f"{title(teacher)} teaches {title(student)}"


def method_name(student: Result) -> str:
    """A method and its settings, as a row of a table calls them."""
    how = student["distillation"]
    weight = "" if how["weight"] is None else f", weight {how['weight']:.15g}"
    more = f", and {how['unlabelled']}" if how.get("unlabelled") else ""
    return f"{how['method']}, α {how['alpha']:.15g}, T {how['temperature']:.15g}{weight}{more}"


def one_pair(students: Sequence[Result]) -> str:
    """The tables of one teacher and one student: main rows for one method, and a row a method."""
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
    lines = [compared(name, runs) for name, runs in named.items() if runs]
    text += [tables.aligned(head, lines), COMPARISON_NOTE]
    if any(student["teacher"]["other_split"] for student in students):
        text.append("WARNING: the teacher's split is another: it may know the test photos.\n")
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
        note = f"note: left out as copies of other runs: {', '.join(copies)}"
        print(shown(note), file=sys.stderr)
    if not found:
        raise UserError(f"{folder}: no finished run is there; train.py makes them")
    return [result for place, result in found.items() if result["run"] == place.name]


def write_report(folder: Path) -> str:
    """Write report.md of all results under `folder`, and return it."""

    def photos(run: Result) -> str:
        split = "division" if run["photos"]["folds"] else "split"
        keys = ("name", "image_size", "digest", "labels_per_class", split)
        return str([run["photos"][key] for key in keys])

    results = read_results(folder)
    groups = grouped(results, photos).values()
    parts = [part for runs in groups for part in (tables.section(runs), comparison(runs)) if part]
    text = "# Results\n\n" + "\n".join(parts)
    atomic_write(folder / "report.md", text)
    return text


def main(arguments: Sequence[str]) -> None:
    """Print and write the report of the --output that is given."""
    parser = argparse.ArgumentParser(prog="python -m utils.report", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="that of the scripts")
    print(write_report(parser.parse_args(arguments).output / "results"))


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
