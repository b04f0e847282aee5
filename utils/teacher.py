"""Find a student's teacher, check that it fits the photos, load it and measure it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from config import Config, UserError, network_name
from data.batches import MEAN, STD
from models.checkpoint import load_classifier, read_tensors, weights_digest
from models.factory import channels_last, create_model
from models.weights import load_weights, read_weights
from utils.distillation import check_method
from utils.runs import Run, Teacher

INSPECTED: dict[Path, dict[str, Any]] = {}  # during a command


def with_teacher(configs: list[Config]) -> list[Config]:
    """The configurations with the network of their --teacher-checkpoint, if they have one. Raises
    UserError for a checkpoint of another network than --teacher, and a method that does not fit."""
    INSPECTED.clear()  # the file may be another one by now
    kd = configs[0].kd
    if kd and kd.teacher_checkpoint:
        about = inspect(kd.teacher_checkpoint, configs[0])
        found = kd.teacher or about["arch"]
        configs = [replace(c, kd=replace(c.kd, teacher=found)) for c in configs if c.kd]
    for config in configs:
        check_method(config)
    return configs


def with_name(student: Run) -> Run:
    """The student's run, which names its teacher; UserError if the method does not fit."""
    check_method(student.config, len(student.data.classes), len(student.data.unlabelled))
    teacher, path = network_name(student.kd.teacher), student.kd.teacher_checkpoint
    if path:
        teacher += f".{inspect(path, student.config)['digest'][:8]}"
    if student.kd.teacher_tag:
        teacher += f".{student.kd.teacher_tag}"
    return replace(student, teacher=teacher)


def teacher_of(student: Run) -> Run | None:
    """The teacher's run of the student's fold and seed; None for a --teacher-checkpoint."""
    kd, baseline = student.kd, student.baseline
    if kd.teacher_checkpoint:
        return None
    tag = kd.teacher_tag or baseline.config.tag
    config = replace(baseline.config, model=kd.teacher, tag=tag, weights=None)
    return replace(baseline, config=config)


def check_teachers(students: Sequence[Run], teachers: Sequence[Run | None]) -> None:
    """Raise UserError, before anything is trained, for teachers that are missing or do not fit."""
    recipes: dict[str, str] = {}
    for student, teacher in zip(students, teachers, strict=True):
        path, tag = student.kd.teacher_checkpoint, student.kd.teacher_tag
        if teacher and tag:
            if not teacher.finished:
                how = f"train.py --models {student.kd.teacher} --tag {tag} on the same photos"
                what = f"there is no finished run {teacher.name}; first train it: {how}"
                raise UserError(f"--teacher-tag {tag}: {what}")
            recipes.setdefault(str(teacher.result()["recipe"]), teacher.name)
            path = teacher.best
        if found := teacher.best if teacher and teacher.finished else path:
            digest = inspect(found, student.config)["digest"]
            if teacher and digest != teacher.result()["digest"]:
                raise UserError(f"{found} does not belong to its run: retrain it with train.py")
            if not student.config.overwrite:
                student.check_taught_by(digest)
        if path:
            check_teacher(path, student)
    if len(recipes) > 1:  # over seeds, they would be averaged as one
        what = f"{' and '.join(recipes.values())} were trained by different recipes"
        raise UserError(f"--teacher-tag {tag}: {what}; give one of them another tag")


def check_teacher(path: Path, student: Run) -> None:
    """Raise UserError when a teacher's classes, resolution or normalisation are not the student's,
    and, without --allow-other-split, when it was trained on another split."""
    has, wanted = inspect(path, student.config), student.settings
    if isinstance(has["classes"], int):  # a file of weights has no names
        wanted["classes"] = len(wanted["classes"])
    for name in ("classes", "image_size", "mean", "std"):
        if has[name] != wanted[name]:
            what = f"this teacher has {name} {has[name]}, the student {wanted[name]}"
            raise UserError(f"{path}: {what}; train one on these photos and at this --image-size")
    differs = differences(has, student)
    if differs["other_split"] and not student.kd.allow_other_split:
        why = "it, or its own teacher, was trained on another split or on other photos"
        hint = "--allow-other-split uses a --teacher-checkpoint anyway, and tables say so"
        seen = "it may have seen the student's test photos"
        raise UserError(f"{path}: {why}: {seen}.\nTrain one on this split, or {hint}")
    if differs["other_labels"] and not differs["other_split"]:
        print(f"NOTE     {path}: this teacher was trained on other labels of this split\n")


def load_teacher(path: Path, expected: str, student: Run) -> Teacher:
    """Load a teacher onto the device and measure it on the student's validation photos. Raises
    UserError if its digest is not `expected`, that of the weights that were checked before."""
    model, description = load(path, student.config)
    if weights_digest(model) != expected:
        hint = "start again or, if that does not help, train the teacher again"
        raise UserError(f"{path} has changed since it was evaluated: {hint}")
    model = channels_last(model, student.device.device)
    about = {
        "run": description.get("run", path.name),  # a file of weights does not come from a run
        "recipe": description["recipe"],
        "source": description.get("source"),
        "digest": expected,
        **differences(description, student),
        "parameters": sum(p.numel() for p in model.parameters()),
        "val": student.measure_part(model, "val")[0],
    }
    return Teacher(model, about)


def differences(description: dict[str, Any], student: Run) -> dict[str, bool]:
    """Whether a teacher may have seen the student's test photos; whether it had other labels."""
    ours = student.data.decoded.digest, student.data.split.held_out
    elsewhere = (description["photos"], description.get("held_out")) != ours
    labels = description.get("labels", description["split"]) != student.data.split.hash
    return {"other_split": elsewhere, "other_labels": labels}


def inspect(checkpoint: Path, config: Config) -> dict[str, Any]:
    """What a teacher's checkpoint, read once a command, says of itself; its weights' digest."""
    if checkpoint not in INSPECTED:
        model, description = load(checkpoint, config)
        INSPECTED[checkpoint] = description | {"digest": weights_digest(model)}
    return INSPECTED[checkpoint]


def load(checkpoint: Path, config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """Load a run's checkpoint or, given --teacher and --allow-other-split, a file of weights, which
    is assumed to have the student's class order, image size and normalisation."""
    assert config.kd
    network, image_size, ours = config.kd.teacher, config.image_size, True
    with suppress(Exception):  # load_classifier says why it cannot be read
        ours = isinstance(read_tensors(checkpoint).get("format"), int)
    if ours:
        model, about = load_classifier(checkpoint, network)
        if network and network_name(network) != about["arch"]:
            raise UserError(f"{checkpoint} is for {about['arch']}, not for {network_name(network)}")
        return model, about
    if not (network and config.kd.allow_other_split):
        raise UserError(f"{checkpoint} has only weights: give --teacher and --allow-other-split")
    two = create_model(network, 2, image_size, seed=0).state_dict()
    state = read_weights(checkpoint, two)
    same = {k: v for k, v in state.items() if k in two and v.shape[1:] == two[k].shape[1:]}
    classes = next((len(v) for k, v in same.items() if v.ndim and v.shape != two[k].shape), 2)
    model = create_model(network, classes, image_size, seed=0)
    loaded, random = load_weights(model, network, checkpoint)
    if random:
        raise UserError(f"{checkpoint}: a teacher needs all weights of {network}: {loaded}")
    about = {"arch": network_name(network), "classes": classes, "image_size": image_size}
    about |= {"mean": list(MEAN), "std": list(STD), "recipe": {}, "split": "", "photos": ""}
    return model.eval(), about
