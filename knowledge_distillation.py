"""Distil a teacher into a student, and tell whether it helped.

    python knowledge_distillation.py                       DenseNet169 teaches ResNet18
    python knowledge_distillation.py --experiment experiment_2 --method kd dist rkd
    python knowledge_distillation.py --reverse             ResNet18 teaches DenseNet169
    python knowledge_distillation.py --data FOLDER --image-size 64 --seeds 0 1 2 --teacher-epochs 60

Teacher and student baselines that train.py left for the same photos, split, resolution and seed are
used; those that are missing are trained first. Ends with the results of teacher, student and KD
student, and the difference that the teacher made.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from config import METHODS, Config, UserError, pair, parse
from models.checkpoint import load_classifier, weights_digest
from utils.agenda import Agenda
from utils.comparison import comparison, whole_recipe
from utils.distillation import Distillation, Lesson
from utils.engine import CrossEntropy
from utils.runs import Run, claimed, plan, read_result, run_name, train_and_test
from utils.script import run_script, say_where
from utils.setup import Setup, describe, prepare
from utils.teacher import Teacher, check_teacher, load_teacher


@dataclass(frozen=True)
class Lineup:
    """The runs of one fold and seed; a teacher that was brought as a checkpoint has none."""

    teacher: Run | None
    baseline: Run
    students: list[Run]

    @property
    def tagged(self) -> Run | None:
        """A teacher that was named by its tag: of any recipe, and never trained here."""
        return self.teacher if self.baseline.config.teacher_tag else None

    @property
    def needed(self) -> list[Run]:
        """What is trained here where it is missing: teacher and baseline, one run where a network
        is to teach itself."""
        if self.teacher is None or self.tagged or self.teacher == self.baseline:
            return [self.baseline]
        return [self.teacher, self.baseline]


def main(arguments: Sequence[str]) -> None:
    """Parse, prepare, see to the baselines, distil for every lesson, fold and seed, and compare."""
    config = parse(arguments, __doc__, distils=True)
    brought = read_teacher_checkpoint(config)
    if brought:
        config = replace(config, teacher=brought["arch"])
    setups = prepare(config)  # one for each fold
    for setup in setups:
        check_lessons(setup, brought)
    lineups = [line_up(setup, seed, brought) for setup in setups for seed in config.seeds]
    check_alike([lineup.tagged for lineup in lineups if lineup.tagged])
    needed = [run for lineup in lineups for run in lineup.needed]
    students = [run for lineup in lineups for run in lineup.students]
    results = []
    with claimed(students, needed):
        describe(setups)
        agenda = Agenda(needed + students)
        for lineup in lineups:
            results += [agenda.done(run, train_baseline(run)) for run in lineup.needed]
            if lineup.tagged:
                results.append(read_result(lineup.tagged))
            check_taught(lineup)
            teacher = None
            if not all(run.finished for run in lineup.students):
                teacher = load_and_report_teacher(lineup)
            results += [agenda.done(run, distil(run, teacher)) for run in lineup.students]
    print(comparison(results))
    say_where(config.output)


def read_teacher_checkpoint(config: Config) -> dict[str, Any] | None:
    """What a --teacher-checkpoint says of itself, and its digest; read before any work.

    Raises UserError when it is no checkpoint, or not of the --teacher that was asked for.
    """
    path = config.teacher_checkpoint
    if path is None:
        return None
    model, description = load_classifier(path)
    if config.teacher not in (None, description["arch"]):
        raise UserError(
            f"--teacher {config.teacher}: {path} is a {description['arch']}; omit --teacher"
        )
    return description | {"digest": weights_digest(model)}


def check_lessons(setup: Setup, brought: dict[str, Any] | None) -> None:
    """Raise UserError, before anything is trained, for what cannot be taught on these photos."""
    config = setup.config
    if "dkd" in config.method and len(setup.classes) < 3:
        raise UserError("--method dkd: it needs three classes or more; kd does with two")
    if brought and config.teacher_checkpoint:
        check_teacher(config.teacher_checkpoint, brought, setup)


def line_up(setup: Setup, seed: int, brought: dict[str, Any] | None) -> Lineup:
    """The baselines, and a student for each combination of method, alpha, temperature, weight."""
    config = setup.config
    teacher, student = pair(config)
    (baseline,) = plan(setup, [seed], [student])
    teacher_run = None
    if brought:
        teacher += f".{brought['digest'][:8]}"
    else:
        own = with_teachers_recipe(config)
        teacher_run = Run(run_name(setup, own, teacher, seed), teacher, seed, setup, own)
        if config.teacher_tag and not teacher_run.finished:
            teacher_run = of_the_other_start(setup, teacher_run)
        check_teacher_run(setup, teacher_run)
        if config.teacher_tag:
            if teacher_run.config.pretrained != config.pretrained:
                teacher += ".scratch" if config.pretrained else ".pretrained"
            teacher += f".{own.tag}"
        elif own != config:
            teacher += f".{own.epochs}epochs"
    students = []
    for method, alpha, temperature in product(config.method, config.alpha, config.temperature):
        for weight in config.weight or (METHODS[method],):
            lesson = Lesson(method, alpha, temperature, weight)
            name = run_name(setup, config, f"{student}-from-{teacher}-{lesson}", seed)
            about = asdict(lesson) | {"teacher": teacher, "baseline": baseline.name}
            students.append(Run(name, student, seed, setup, config, about))
    return Lineup(teacher_run, baseline, students)


def of_the_other_start(setup: Setup, run: Run) -> Run:
    """For a student from scratch the pretrained teacher of the same tag, or the other way about;
    the `run` itself where there is none."""
    config = replace(run.config, pretrained=not run.config.pretrained)
    name = run_name(setup, config, run.model, run.seed)
    other = Run(name, run.model, run.seed, setup, config)
    return other if other.finished else run


def check_teacher_run(setup: Setup, run: Run) -> None:
    """Raise UserError where a teacher that was named by its tag is not there or does not fit, and
    where the weights of a finished one are gone."""
    if run.finished and not run.best.exists():
        raise UserError(f"{run.best} is gone: train the teacher again with train.py")
    if run.config.teacher_tag is None:
        return
    if not run.finished:
        split = f" --split-seed {run.config.split_seed}" if run.config.split_seed else ""
        if run.config.fold:
            split += f" --folds {run.config.folds} --fold {run.config.fold[0]}"
        raise UserError(
            f"--teacher-tag {run.config.tag}: there is no finished run {run.name}; first train it, "
            f"on the same --data: train.py --models {run.model} --tag {run.config.tag} "
            f"--seeds {run.seed} --image-size {setup.image_size}{split}"
        )
    check_teacher(run.best, load_classifier(run.best)[1], setup)


def check_alike(teachers: Sequence[Run]) -> None:
    """Raise UserError for teachers of one tag that were trained by different recipes: over seeds,
    they would be averaged as one."""
    for run in teachers[1:]:
        if whole_recipe(read_result(run)) != whole_recipe(read_result(teachers[0])):
            raise UserError(
                f"--teacher-tag {run.config.tag}: {teachers[0].name} and {run.name} were trained "
                "by different recipes; give one of them another tag"
            )


def with_teachers_recipe(config: Config) -> Config:
    """The settings by which the teacher is trained, or the tag under which it was.

    Of a longer schedule the tag tells, so that `train.py --epochs 60 --tag 60epochs` makes the
    very teacher of --teacher-epochs 60.
    """
    if config.teacher_tag is not None:
        return replace(config, tag=config.teacher_tag)
    epochs = config.teacher_epochs or config.epochs
    if epochs == config.epochs:
        return config
    tag = f"{epochs}epochs.{config.tag}".rstrip(".")
    return replace(config, epochs=epochs, tag=tag)


def train_baseline(run: Run) -> dict[str, Any]:
    """A baseline as train.py trains it, or the one that it has left."""
    if not run.finished:
        print(f"{run.name}: there is no such baseline yet, so it is trained first")
    return train_and_test(run, lambda: CrossEntropy(run.config.label_smoothing))


def check_taught(lineup: Lineup) -> None:
    """Raise UserError for a finished student whose teacher has been trained again since."""
    if lineup.teacher is None:
        return
    digest = read_result(lineup.teacher)["digest"]
    for run in lineup.students:
        if run.finished and read_result(run)["teacher"]["digest"] != digest:
            raise UserError(
                f"{run.name} was taught by {lineup.teacher.name} before that was trained again: "
                "--overwrite distils it anew"
            )


def load_and_report_teacher(lineup: Lineup) -> Teacher:
    """Load the teacher, say how good it is, and warn when its student is better without it."""
    run, setup = lineup.teacher, lineup.baseline.setup
    path = run.best if run else setup.config.teacher_checkpoint
    assert path
    teacher = load_teacher(path, setup)
    if run and read_result(run)["digest"] != teacher.digest:
        raise UserError(f"{path} is not what {run.name} was tested with: train it again")
    own = read_result(lineup.baseline)["val"]["accuracy"]
    theirs = teacher.about["val"]["accuracy"]
    print(
        f"teacher {teacher.about['run']}: validation accuracy {theirs:.2%}; "
        f"the student without it: {own:.2%}"
    )
    if theirs < own:
        print(
            "WARNING  this teacher is weaker than its student and will hold it back; a longer "
            "schedule\n         may help: --teacher-epochs or --teacher-tag"
        )
    if teacher.about["other_split"]:
        print("WARNING  this teacher learnt from another split and may know the test photos")
    print()
    return teacher


def distil(run: Run, teacher: Teacher | None) -> dict[str, Any]:
    """Train a student on what the teacher says about the student's own crops, or read what an
    earlier command has left, for which no teacher is needed."""

    def objective() -> Distillation:
        assert teacher
        assert run.lesson
        return Distillation(
            Lesson(*(run.lesson[field.name] for field in fields(Lesson))),
            run.model,
            teacher.arch,
            teacher.model,
            label_smoothing=run.config.label_smoothing,
            seed=run.seed,
            device=run.setup.hardware.device,
        )

    return train_and_test(run, objective, teacher)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
