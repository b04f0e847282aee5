"""A teacher before it teaches: is it one that may, and how good is it?"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from config import UserError
from models.checkpoint import load_classifier, weights_digest
from models.factory import MEAN, STD, to_device
from utils.engine import predict
from utils.metrics import measure
from utils.setup import Setup


@dataclass(frozen=True)
class Teacher:
    """A trained network that fits the photos.

    `about` holds plain values for result.json: arch, run, digest, epochs, recipe, other_split,
    parameters, inference_images_per_second and its metrics on the validation photos.
    """

    model: nn.Module
    arch: str
    digest: str
    about: dict[str, Any]


def load_teacher(path: Path, setup: Setup) -> Teacher:
    """The teacher of a checkpoint, on the device, measured on the validation photos.

    Raises UserError when the checkpoint is unusable (see load_classifier), when its classes,
    resolution or normalisation are not the student's and, without --allow-other-split, when it
    learnt from another split.
    """
    model, description = load_classifier(path)
    check_teacher(path, description, setup)
    digest = weights_digest(model)
    model = to_device(model, setup.hardware.device)
    val, speed = measure_validation(setup, model)
    about = {
        "run": path.resolve().parent.name,
        "arch": description["arch"],
        "epochs": description["recipe"].get("epochs"),
        "recipe": description["recipe"],
        "digest": digest,
        "other_split": not of_this_split(description, setup),
        "parameters": sum(p.numel() for p in model.parameters()),
        "inference_images_per_second": speed,
        "val": val,
    }
    return Teacher(model, description["arch"], digest, about)


def check_teacher(path: Path, description: dict[str, Any], setup: Setup) -> None:
    """Raise UserError when a teacher that is so described cannot teach on these photos."""
    if description["classes"] != list(setup.classes):
        raise UserError(
            f"{path}: this teacher knows other classes, or the same in another order: "
            f"{', '.join(map(str, description['classes']))}\n"
            f"the photos have {', '.join(setup.classes)}"
        )
    if description["image_size"] != setup.image_size:
        raise UserError(
            f"{path}: this teacher was trained at {description['image_size']} px and would be "
            f"shown the student's {setup.image_size}: give --image-size "
            f"{description['image_size']} or train one at {setup.image_size}"
        )
    if (description["mean"], description["std"]) != (list(MEAN), list(STD)):
        raise UserError(f"{path}: this teacher expects photos that are normalised in another way")
    if not of_this_split(description, setup) and not setup.config.allow_other_split:
        theirs = (
            "other photos of the same names: it may have seen"
            if description["split"] == setup.split.hash
            else f"split {description['split']}, the photos are split as {setup.split.hash}: "
            "it has seen"
        )
        raise UserError(
            f"{path}: this teacher was trained on {theirs} the student's test photos.\n"
            "Train one on this split with train.py or, for a --teacher-checkpoint from elsewhere, "
            "if the tables may say so, give --allow-other-split"
        )


def of_this_split(description: dict[str, Any], setup: Setup) -> bool:
    """Whether a teacher that is so described learnt from the student's training photos; of those
    of earlier versions, from photos of these names."""
    photos = setup.split.hash, setup.decoded.digest
    return (description["split"], description.get("photos", photos[1])) == photos


def measure_validation(setup: Setup, model: nn.Module) -> tuple[dict[str, Any], float]:
    """A model's metrics on the validation photos, and how many of them it classified a second."""
    started = time.perf_counter()
    logits, labels = predict(model, setup.eval_batches("val"), setup.hardware)
    seconds = time.perf_counter() - started
    return measure(logits, labels, setup.classes), len(labels) / seconds
