"""Distil a teacher into a student, and measure whether it helped.

    python knowledge_distillation.py                       DenseNet169 teaches ResNet18
    python knowledge_distillation.py --experiment experiment_2 --method kd dist rkd
    python knowledge_distillation.py --reverse             ResNet18 teaches DenseNet169
    python knowledge_distillation.py --data FOLDER --image-size 64 --seeds 0 1 2 --teacher-tag long

Teacher and student baselines that train.py left for the same photos, split, resolution and seed are
used; those that are missing are trained first. Ends with the results of teacher, student and KD
student, and the difference that the teacher made.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from config import Config, UserError, parse
from data.dataset import Dataset, describe, load_datasets
from models.checkpoint import load_classifier, weights_digest
from models.factory import check_models
from utils import ranks
from utils.device import Device, find_device
from utils.distillation import METHODS, Distillation, check_method
from utils.engine import CrossEntropy
from utils.report import comparison
from utils.runs import Run, Teacher, finished, lock_runs, train_and_test
from utils.script import ETA, print_paths, run_script
from utils.teacher import check_teacher, load_teacher

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Train the baselines that are missing, distil every student, and compare."""
    described.cache_clear()  # a checkpoint may be another one by now
    configs = with_architecture(parse(arguments, __doc__, METHODS))
    device = find_device(configs[0])
    check_models({m for c in configs if c.kd for m in (c.model, c.kd.teacher) if m}, configs[0])
    datasets = load_datasets(configs, device.device, ranks.count())
    students = [plan_student(config, datasets[config.fold], device) for config in configs]
    teachers = [teacher_run(student) for student in students]
    check_teachers(students, teachers)
    # What is trained here where it is missing: baselines, and teachers of no other recipe.
    own = [] if students[0].kd.teacher_tag else filter(None, teachers)
    baselines = [student.baseline for student in students]
    needed = list(dict.fromkeys([*own, *baselines]))
    # Finished ones are read now: another process may train them again meanwhile.
    kept = [run for run in dict.fromkeys([*filter(None, teachers), *baselines]) if run.finished]
    results = {run.name: run.result() for run in kept}
    loaded: dict[Path, Teacher] = {}  # the last one
    with lock_runs(students, needed):
        describe(configs, datasets)
        print(f"device   {device}, {device.precision}{', CUDA graphs' * device.graphs}\n")
        eta = ETA([*needed, *students])
        for run in kept:
            print(f"{run.name}: finished before, kept")
            eta.done(run, results[run.name])
        for student, teacher in zip(students, teachers, strict=True):
            for missing in (teacher, student.baseline):
                if missing and missing.name not in results:
                    results[missing.name] = eta.done(missing, train_baseline(missing))
            results[student.name] = eta.done(student, distil(student, teacher, results, loaded))
    print(comparison(list(results.values())))
    print_paths(configs[0].output)


@cache
def described(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, and the digest of its weights."""
    model, description = load_classifier(checkpoint)
    return description | {"digest": weights_digest(model)}


def with_architecture(configs: list[Config]) -> list[Config]:
    """The configurations with the architecture of their --teacher-checkpoint, if they have one.

    Raises UserError when it is no checkpoint, or not of the --teacher that was asked for.
    """
    kd = configs[0].kd
    if kd is None or kd.teacher_checkpoint is None:
        return configs
    arch = described(kd.teacher_checkpoint)["arch"]
    if kd.teacher not in (None, arch):
        raise UserError(f"--teacher {kd.teacher}: {kd.teacher_checkpoint} is a {arch}; omit it")
    return [replace(c, kd=replace(c.kd, teacher=arch)) for c in configs if c.kd]


def plan_student(config: Config, data: Dataset, device: Device) -> Run:
    """The student's run; its name says which teacher it has."""
    check_method(config, len(data.classes))
    student = Run(config, data, device)
    teacher = str(student.kd.teacher)
    if student.kd.teacher_checkpoint:
        teacher += f".{described(student.kd.teacher_checkpoint)['digest'][:8]}"
    if student.kd.teacher_tag:
        teacher += f".{student.kd.teacher_tag}"
    return replace(student, teacher=teacher)


def teacher_run(student: Run) -> Run | None:
    """The teacher of the student's fold and seed; None of a --teacher-checkpoint."""
    kd, baseline = student.kd, student.baseline
    if kd.teacher_checkpoint or kd.teacher is None:
        return None
    config = replace(baseline.config, model=kd.teacher)
    if kd.teacher_tag is None:
        return replace(baseline, config=config)
    # Its recipe may be another one, pretrained or not.
    runs = [
        replace(baseline, config=replace(config, tag=kd.teacher_tag, pretrained=pretrained))
        for pretrained in (config.pretrained, not config.pretrained)
    ]
    return next((run for run in runs if run.finished), runs[0])


def check_teachers(students: Sequence[Run], teachers: Sequence[Run | None]) -> None:
    """Raise UserError, before anything is trained, for teachers that are missing or do not fit."""
    recipes: dict[str, str] = {}
    for student, teacher in zip(students, teachers, strict=True):
        path, tag = student.kd.teacher_checkpoint, student.kd.teacher_tag
        if teacher and tag and not teacher.finished:
            raise UserError(
                f"--teacher-tag {tag}: there is no finished run {teacher.name}; first train it, on "
                f"the same photos: train.py --models {student.kd.teacher} --tag {tag}"
            )
        if teacher and teacher.finished and not teacher.best.exists():
            raise UserError(f"{teacher.best} is gone: train the teacher again with train.py")
        if teacher and tag:
            path = teacher.best
            recipes.setdefault(str(teacher.result()["recipe"]), teacher.name)
        if path:
            check_teacher(path, described(path), student)
    if len(recipes) > 1:  # over seeds, they would be averaged as one
        raise UserError(
            f"--teacher-tag {tag}: {' and '.join(recipes.values())} were trained by different "
            "recipes; give one of them another tag"
        )


def train_baseline(run: Run) -> Result:
    """A baseline as train.py trains it."""
    print(f"{run.name}: there is no such baseline yet, so it is trained first")
    return train_and_test(run, CrossEntropy(run.config.label_smoothing))


def distil(
    student: Run, teacher_run: Run | None, results: dict[str, Result], loaded: dict[Path, Teacher]
) -> Result:
    """Train a student on its teacher's outputs for the student's own crops, or read what an earlier
    command has left, for which no teacher is needed."""
    path = teacher_run.best if teacher_run else student.kd.teacher_checkpoint
    assert path
    expected = results[teacher_run.name]["digest"] if teacher_run else described(path)["digest"]
    if student.finished:
        result = finished(student)
        if result["teacher"]["digest"] != expected:
            raise UserError(
                f"{student.name} was taught by {path.parent.name} before that was trained again: "
                "--overwrite distils it anew"
            )
        return result
    if path not in loaded:
        loaded.clear()
        loaded[path] = load_teacher(path, student)
        report_teacher(loaded[path], results[student.baseline.name])
    teacher = loaded[path]
    if teacher.about["digest"] != expected:
        raise UserError(
            f"{path} has changed since {teacher.about['run']} was measured: start again or, if "
            "that does not help, train the teacher again"
        )
    objective = Distillation(
        student.config, teacher.about["arch"], teacher.model, student.device.device
    )
    return train_and_test(student, objective, teacher)


def report_teacher(teacher: Teacher, baseline: Result) -> None:
    """Print how good the teacher is, and warn when its student is better without it."""
    own, theirs = baseline["val"]["accuracy"], teacher.about["val"]["accuracy"]
    print(
        f"teacher {teacher.about['run']}: validation accuracy {theirs:.2%}; "
        f"the student without it: {own:.2%}"
    )
    if theirs < own:
        print(
            "WARNING  this teacher is worse than its student and may harm it; a longer schedule\n"
            "         may help: train.py --epochs 60 --tag long, then --teacher-tag long"
        )
    if teacher.about["other_split"]:
        print("WARNING  this teacher was trained on another split and may know the test photos")
    print()


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
