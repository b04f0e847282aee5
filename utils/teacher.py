"""A teacher before it teaches: does it fit the photos, and how good is it?"""

from pathlib import Path
from typing import Any

from config import UserError
from data.batches import MEAN, STD
from data.dataset import Dataset
from models.checkpoint import load_classifier, weights_digest
from models.factory import channels_last
from utils.runs import Run, Teacher


def load_teacher(path: Path, student: Run) -> Teacher:
    """The teacher of a checkpoint, on the device, measured on the student's validation photos.

    Raises UserError as load_classifier and check_teacher do.
    """
    model, description = load_classifier(path)
    check_teacher(path, description, student)
    digest = weights_digest(model)
    model = channels_last(model, student.device.device)
    about = {
        "run": path.resolve().parent.name,
        "arch": description["arch"],
        "epochs": description["recipe"].get("epochs"),
        "recipe": description["recipe"],
        "digest": digest,
        "other_split": not same_photos(description, student.data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "val": student.measure(model, "val")[0],
    }
    return Teacher(model, about)


def check_teacher(path: Path, description: dict[str, Any], student: Run) -> None:
    """Raise UserError when a teacher's classes, resolution or normalisation are not the student's,
    and, without --allow-other-split, when it was trained on another split."""
    config, data = student.config, student.data
    if description["classes"] != list(data.classes):
        raise UserError(
            f"{path}: this teacher knows other classes, or the same in another order: "
            f"{', '.join(map(str, description['classes']))}\n"
            f"the photos have {', '.join(data.classes)}"
        )
    if description["image_size"] != config.image_size:
        raise UserError(
            f"{path}: this teacher was trained at {description['image_size']} px and would see "
            f"the student's {config.image_size}: give --image-size "
            f"{description['image_size']} or train one at {config.image_size}"
        )
    if (description["mean"], description["std"]) != (list(MEAN), list(STD)):
        raise UserError(f"{path}: this teacher expects photos that are normalised in another way")
    if not same_photos(description, data) and not student.kd.allow_other_split:
        theirs = (
            "other photos of the same names: it may have seen"
            if description["split"] == data.split.hash
            else f"split {description['split']}, the photos are split as {data.split.hash}: "
            "it has seen"
        )
        raise UserError(
            f"{path}: this teacher was trained on {theirs} the student's test photos.\n"
            "Train one on this split with train.py or, for a --teacher-checkpoint from elsewhere, "
            "if the tables may say so, give --allow-other-split"
        )


def same_photos(description: dict[str, Any], data: Dataset) -> bool:
    """Whether a teacher was trained on the same split of the same photos."""
    theirs = description["split"], description["photos"]
    return theirs == (data.split.hash, data.decoded.digest)
