"""Distil a teacher into a student, and measure whether it helped.

    python knowledge_distillation.py                       DenseNet169 teaches ResNet18
    python knowledge_distillation.py --experiment experiment_2 --method kd dist rkd
    python knowledge_distillation.py --reverse             ResNet18 teaches DenseNet169
    python knowledge_distillation.py --data FOLDER --image-size 64 --seeds 0 1 2 --teacher-tag long

Finished teachers and baselines of the same photos, split, size, recipe, tag and seed are used.
Missing ones are trained first, except those of --teacher-tag. Ends with the results of teacher,
student and KD student, and the difference that the teacher made.
"""

import sys
from collections.abc import Sequence

from config import parse
from utils.distillation import METHODS, Distillation
from utils.engine import CrossEntropy
from utils.report import comparison
from utils.runs import Run, Teacher, describe, load_finished, lock_runs, prepare, train_and_test
from utils.script import print_paths, run_script
from utils.tables import Result
from utils.teacher import check_teachers, inspect, load_teacher, teacher_of, with_name, with_teacher

Results = dict[str, Result]  # by the runs' names
Loaded = dict[object, Teacher]  # by file, digest and fold


def main(arguments: Sequence[str]) -> None:
    """Train the baselines that are missing, distil every student, and compare."""
    configs = with_teacher(parse(arguments, __doc__, METHODS))
    students = [with_name(run) for run in prepare(configs)]
    teachers = [teacher_of(student) for student in students]
    baselines = [student.baseline for student in students]
    check_teachers(students, teachers)
    used = list(dict.fromkeys([*filter(None, teachers), *baselines]))
    # With --teacher-tag, teachers must be finished already, and may have any recipe.
    needed = baselines if students[0].kd.teacher_tag else used
    loaded: Loaded = {}  # only the last teacher
    runs = [*used, *students]
    with lock_runs(students, needed, [run for run in used if run not in needed]) as release:
        describe(students)
        results = {run.name: load_finished(run) for run in used if run.finished}
        for number, (student, teacher) in enumerate(zip(students, teachers, strict=True), 1):
            for missing in (teacher, student.baseline):
                if missing and missing.name not in results:
                    print(f"{missing.name}: not trained yet, so it is trained first")
                    objective = CrossEntropy(missing.config.label_smoothing)
                    results[missing.name] = train_and_test(missing, objective, runs)
                    release(missing)
            print(f"{number} of {len(students)}", end="  ")
            results[student.name] = distil(student, teacher, results, loaded, runs)
    print(comparison(list(results.values())))
    print_paths(configs[0].output)


def distil(
    student: Run, teacher_run: Run | None, results: Results, loaded: Loaded, runs: Sequence[Run]
) -> Result:
    """Train a student on its teacher's outputs for the student's own crops, or read the result of a
    student that is already finished, without loading the teacher."""
    path = teacher_run.best if teacher_run else student.kd.teacher_checkpoint
    assert path
    expected = inspect(path, student.config)["digest"]
    if student.finished:
        student.check_taught_by(expected)
        return load_finished(student)
    key = path, expected, student.config.fold
    if key not in loaded:
        loaded.clear()
        loaded[key] = load_teacher(path, expected, student)
        report_teacher(loaded[key], results[student.baseline.name], student.kd.teacher)
    objective = Distillation(student.config, loaded[key].model, student.device.device)
    return train_and_test(student, objective, runs, loaded[key])


def report_teacher(teacher: Teacher, baseline: Result, network: str) -> None:
    """Print how good the teacher is, and warn when its student is better without it."""
    own, theirs = baseline["val"]["accuracy"], teacher.about["val"]["accuracy"]
    alone = f"the student without it: {own:.2%}"
    print(f"teacher {teacher.about['run']}: validation accuracy {theirs:.2%}; {alone}")
    if theirs < own:
        print("WARNING  this teacher is worse than its student and may harm it: train it longer,")
        print(f"         train.py --models {network} --epochs 60 --tag NAME with the same")
        print("         seeds and photo settings, then give --teacher-tag NAME")
    if teacher.about["other_split"]:
        print("WARNING  this teacher was trained on another split and may have seen test photos")
    print()


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:], resumes=True))
