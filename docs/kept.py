"""The runs behind the documents. docs/results/runs.jsonl holds one a line: what the documents need
of its result.json and, as `history`, of its history.csv."""

import csv
import json
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path

from config import ROOT, UserError
from data.files import atomic_write
from utils.report import Result, read_results

FILE = ROOT / "docs" / "results" / "runs.jsonl"
CURVES = ("loss/val", "accuracy/val", "ce/train", "accuracy/train")
PHOTOS = "weather-64px-"  # all runs are on these photos: what follows names them


@cache
def kept() -> dict[str, Result]:
    """The results by the runs' names."""
    lines = FILE.read_text("utf-8").splitlines()
    return {result["run"]: result for result in map(json.loads, lines)}


def keep(output: Path) -> int:
    """Add all finished runs on these photos from the scripts' --output, or replace those of their
    names; returns how many. Raises UserError when there is none, or one is of another split than
    the kept ones of its split seed and fold."""
    found = [run for run in read_results(output / "results") if run["run"].startswith(PHOTOS)]
    if not found:
        raise UserError(f"{output}: no finished run on the photos called weather at 64 px is there")
    splits = {split_of(run): run["photos"]["split"] for run in kept().values()}
    for result in found:
        split = result["photos"]["split"]
        if (known := splits.get(split_of(result), split)) != split:
            raise UserError(f"{result['run']}: of split {split}, and kept are runs of {known}")
        path = output / "results" / result["run"] / "history.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        result["history"] = {key: [round(float(row[key]), 5) for row in rows] for key in CURVES}
        teacher = result.get("teacher", {})
        for part in (result["val"], teacher.get("val", {}), teacher.get("test", {})):
            part.pop("confusion", None)
        teacher.get("val", {}).pop("wrong", None)
    results = kept() | {result["run"]: result for result in found}
    atomic_write(FILE, "".join(json.dumps(results[name]) + "\n" for name in sorted(results)))
    kept.cache_clear()
    return len(found)


def split_of(result: Result) -> tuple[int, int | None]:
    """The seed that drew the run's split, and its fold."""
    return result["recipe"]["split_seed"], result["photos"]["fold"]


def seeds(name: str) -> list[Result]:
    """The runs weather-64px-NAME-seedN by seed; raises UserError when there is none."""
    found = [run for run in kept().values() if run["run"] == f"{PHOTOS}{name}-seed{run['seed']}"]
    if not found:
        raise UserError(f"{FILE}: no run {PHOTOS}{name}-seedN is kept there")
    return sorted(found, key=itemgetter("seed"))


def together(*names: str) -> list[list[Result]]:
    """The runs of each name, of the seeds that all of the names have."""
    groups = [seeds(name) for name in names]
    shared = set.intersection(*({run["seed"] for run in group} for group in groups))
    return [[run for run in group if run["seed"] in shared] for group in groups]


def on_splits(*names: str) -> list[list[Result]]:
    """The runs of each name on six splits, with the seed of the same number."""
    endings = ["-seed0", *(f"-split{split}-seed{split}" for split in range(1, 6))]
    return [[kept()[PHOTOS + name + ending] for ending in endings] for name in names]


def on_folds(name: str) -> list[Result]:
    """One run for each of ten folds, of seed 0."""
    return [kept()[f"{PHOTOS}{name}-fold{fold}of10-seed0"] for fold in range(10)]


def baselines(students: Sequence[Result]) -> list[Result]:
    """The same student without a teacher, for each of them."""
    return [kept()[student["distillation"]["baseline"]] for student in students]


def teachers(students: Sequence[Result]) -> list[Result]:
    """Each student's teacher; raises UserError when it was trained again since."""
    for student in students:
        if kept()[student["teacher"]["run"]]["digest"] != student["teacher"]["digest"]:
            raise UserError(f"{student['run']}: its teacher was trained again since")
    return [kept()[student["teacher"]["run"]] for student in students]
