"""Did the teacher help? Students with a teacher beside the same students without one."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from config import EARLIER_CROPS, Config, recipe
from utils.metrics import mean_interval
from utils.tables import (
    SEVEN_ROWS,
    SIZE_ROWS,
    Result,
    aligned,
    division,
    mean_and_spread,
    table,
)

Gain = tuple[float, float, float]
NO_TEACHER = "no teacher"
DIFFERENCE_HEAD = (
    "Student", "Runs", "Validation accuracy", "Test accuracy", "KD − baseline [95 %]",
    "KD − teacher [95 %]", "Agreement with teacher", "KL to teacher", "Calibration error",
)  # fmt: skip
DIFFERENCE_NOTE = """\
KD − baseline is in points of test accuracy: each run against the one without a teacher of the same
fold and seed, on the same photos. Its 95 % interval is over folds; without folds over seeds and
photos; with one seed over photos alone. KD − teacher is the same against the teacher. Agreement is
the share of test photos that student and teacher give one class, KL the mean of
KL(teacher ‖ student) in nats.
"""


def comparison(results: Sequence[Result]) -> str:
    """What teachers did for students: for each pair of them two tables, the user's seven rows and
    one row for each lesson with the difference to the student that had no teacher."""
    by_name = {result["run"]: result for result in results}
    return "\n".join(one_pair(students, by_name) for students in pairs_of(by_name.values()))


def pairs_of(results: Iterable[Result]) -> list[list[Result]]:
    """Distilled students, those together that share photos, teacher, architecture, tag, recipe,
    and their teachers' recipe."""
    pairs: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if lesson := result.get("lesson"):
            key = (*division(result), lesson["teacher"], result["model"], result["tag"])
            recipes = str(whole_recipe(result)), str(result.get("teacher", {}).get("recipe"))
            pairs.setdefault((*key, *recipes), []).append(result)
    return list(pairs.values())


def one_pair(students: Sequence[Result], by_name: Mapping[str, Result]) -> str:
    """The tables of one teacher and one student, of all lessons, folds and seeds. The first is of
    the lesson that is best on validation, among those with most runs, and of its runs alone."""
    rows = difference_rows(students, by_name)
    lessons = [row for row in rows if row.name != NO_TEACHER]
    most = max(len(row.runs) for row in lessons)
    repeated = [row for row in lessons if len(row.runs) == most]
    best = max(repeated, key=lambda row: statistics.fmean(row.values["validation accuracy"]))
    by_split = {(run["teacher"]["run"], run["photos"]["split"]): run for run in best.runs}
    columns = {"Teacher": [as_it_taught(student, by_name) for student in by_split.values()]}
    if baselines := baselines_of(best.runs, by_name):
        columns["Student"] = baselines
    columns["KD Student"] = best.runs
    text = [
        f"### {who_teaches_whom(students[0])}\n",
        table("", columns, SEVEN_ROWS | SIZE_ROWS),
    ]
    if len(lessons) > 1:
        text.append(
            f"The KD student is {best.name}: of {len(repeated)}, the best on validation.\n"
            if len(repeated) > 1
            else f"The KD student is {best.name}: of {len(lessons)}, the one with most runs.\n"
        )
    text += [aligned(DIFFERENCE_HEAD, [row.cells() for row in rows]), DIFFERENCE_NOTE]
    if any(student["teacher"]["other_split"] for student in students):
        text.append(
            "WARNING: the teacher learnt from another split and may have seen the test photos.\n"
        )
    return "\n".join(text)


def as_it_taught(student: Result, by_name: Mapping[str, Result]) -> Result:
    """The teacher's own result. Of one that is of another split, was brought as a checkpoint, or
    trained again since, only what was measured when it taught: nothing of its past."""
    teacher, own = student["teacher"], by_name.get(student["teacher"]["run"])
    if own and (own["digest"], own["photos"]["split"]) == (
        teacher["digest"],
        student["photos"]["split"],
    ):
        return own
    table = {
        "best_val_accuracy": teacher["val"]["accuracy"],
        "test_loss": teacher["test"]["loss"],
        "test_accuracy": teacher["test"]["accuracy"],
    }
    return teacher | {"table": table, "photos": student["photos"]}


def baseline_of(student: Result, by_name: Mapping[str, Result]) -> Result | None:
    """The same network without a teacher; None of a baseline, and where there is none of the
    student's photos, split and recipe, as after another --overwrite."""
    baseline = by_name.get(student["lesson"]["baseline"]) if student.get("lesson") else None
    if baseline is None or whole_recipe(baseline) != whole_recipe(student):
        return None
    theirs, own = baseline["photos"], student["photos"]
    alike = all(theirs[key] == own[key] for key in ("image_size", "split"))
    digests = theirs.get("digest"), own.get("digest")  # earlier versions wrote none
    return baseline if alike and (None in digests or digests[0] == digests[1]) else None


def whole_recipe(result: Result) -> dict[str, Any]:
    """Its recipe, with the defaults of settings that there were not yet when it was trained."""
    return recipe(Config()) | {"crops": EARLIER_CROPS} | result["recipe"]


def baselines_of(students: Sequence[Result], by_name: Mapping[str, Result]) -> list[Result]:
    """Each of the students' baselines once."""
    found = filter(None, (baseline_of(student, by_name) for student in students))
    return list({baseline["run"]: baseline for baseline in found}.values())


def who_teaches_whom(student: Result) -> str:
    """A pair of teacher and student, as a heading calls it."""
    tag = f" ({student['tag']})" if student["tag"] else ""
    return f"{student['lesson']['teacher']} teaches {student['model']}{tag}"


def lesson_name(lesson: Mapping[str, Any]) -> str:
    """A method and its settings, as a row of a table calls them."""
    weight = "" if lesson["weight"] is None else f", weight {lesson['weight']:g}"
    return f"{lesson['method']}, α {lesson['alpha']:g}, T {lesson['temperature']:g}{weight}"


@dataclass(frozen=True)
class Difference:
    """One row of the comparison: a lesson, or none, over its folds and seeds.

    `values` holds one number a run, `pairs` is the number of runs with a baseline; `gain` is KD
    minus baseline in test accuracy with the ends of its 95 % interval, `over_teacher` KD minus
    teacher; None where there is nothing to compare.
    """

    name: str
    runs: list[Result]
    values: dict[str, list[float]]
    pairs: int
    gain: Gain | None
    over_teacher: Gain | None

    def cells(self) -> list[str]:
        """The row as Markdown shows it."""
        specs = {"validation accuracy": ".2%", "test accuracy": ".2%", "agreement": ".1%"}
        texts = {
            key: mean_and_spread(values, specs.get(key, ".3f")) if values else ""
            for key, values in self.values.items()
        }
        first, second, *others = texts.values()
        gain = in_points(self.gain)
        if self.gain and self.pairs < len(self.runs):
            gain += f" of {self.pairs} runs"
        gains = gain, in_points(self.over_teacher)
        return [self.name, str(len(self.runs)), first, second, *gains, *others]

    def record(self) -> dict[str, Any]:
        """The row as CSV has it: means, and sample standard deviations of several runs."""
        record: dict[str, Any] = {"lesson": self.name, "runs": len(self.runs)}
        for key, values in self.values.items():
            record[key] = statistics.fmean(values) if values else ""
            record[f"{key} std"] = statistics.stdev(values) if len(values) > 1 else ""
        for name, gain in (("gain", self.gain), ("over teacher", self.over_teacher)):
            names = (name, f"{name} low", f"{name} high")
            record |= dict(zip(names, gain or ("", "", ""), strict=True))
        return record


def difference_rows(students: Sequence[Result], by_name: Mapping[str, Result]) -> list[Difference]:
    """The student without a teacher, if its runs are there, then one row for each lesson."""
    by_lesson: dict[str, list[Result]] = {}
    for student in students:
        by_lesson.setdefault(lesson_name(student["lesson"]), []).append(student)
    baselines = baselines_of(students, by_name)
    rows = {NO_TEACHER: baselines} if baselines else {}
    return [difference(name, runs, by_name) for name, runs in (rows | by_lesson).items()]


def difference(name: str, runs: list[Result], by_name: Mapping[str, Result]) -> Difference:
    """A lesson's row; runs without a baseline are left out of the gain."""
    taught = [run for run in runs if run.get("lesson")]
    found = [(run, baseline_of(run, by_name)) for run in taught]
    pairs = [(run, baseline) for run, baseline in found if baseline]
    over_teacher = gain_over([(run, run["teacher"]) for run in taught])
    values = {
        "validation accuracy": [run["val"]["accuracy"] for run in runs],
        "test accuracy": [run["test"]["accuracy"] for run in runs],
        "agreement": [run["agreement"]["top1"] for run in runs if "agreement" in run],
        "kl": [run["agreement"]["kl"] for run in runs if "agreement" in run],
        "calibration error": [run["test"]["calibration_error"] for run in runs],
    }
    return Difference(name, runs, values, len(pairs), gain_over(pairs), over_teacher)


def gain_over(pairs: Sequence[tuple[Result, Result]], part: str = "test") -> Gain | None:
    """How much better the first of each pair is than the second: the difference in accuracy over
    all photos of `part` (test or val), -1..1, and the ends of its 95 % interval (mean_interval).

    Pairs with a result of an earlier version, which does not tell which photos were wrong, are left
    out; without pairs there is no gain.
    """
    known = [pair for pair in pairs if all("wrong" in result[part] for result in pair)]
    if not known:
        return None
    gained = [recognised(first[part]) - recognised(second[part]) for first, second in known]
    mean, low, high = mean_interval(by_split([first for first, _ in known], gained))
    return mean, max(low, -1), min(high, 1)


def accuracy_over(runs: Sequence[Result], part: str = "test") -> Gain:
    """Accuracy over all photos of `part`, 0..1, and the ends of its 95 % interval."""
    mean, low, high = mean_interval(by_split(runs, [recognised(run[part]) for run in runs]))
    return mean, max(low, 0), min(high, 1)


def by_split(runs: Iterable[Result], of_photos: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What was measured of each test photo of each run, as a (seeds, photos) array a split."""
    splits: dict[str, list[np.ndarray]] = {}
    for run, values in zip(runs, of_photos, strict=True):
        splits.setdefault(run["photos"]["split"], []).append(values)
    return [np.stack(group) for group in splits.values()]


def in_points(gain: Gain | None) -> str:
    """A gain as tables show it, in points (hundredths); nothing where there is none."""
    if gain is None:
        return ""
    mean, low, high = (100 * value for value in gain)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def recognised(measured: Mapping[str, Any]) -> np.ndarray:
    """(photos,) float64: 1 for each photo of a split that was classified rightly, else 0."""
    right = np.ones(measured["photos"])
    right[measured["wrong"]] = 0
    return right
