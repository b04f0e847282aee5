"""A teacher before it teaches: does it fit the photos, and how good is it?"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from config import Config, UserError
from data.batches import MEAN, STD
from data.dataset import Dataset
from models.checkpoint import load_classifier, weights_digest
from models.factory import channels_last
from utils import ranks
from utils.device import Device
from utils.engine import predict
from utils.metrics import measure


@dataclass(frozen=True)
class Teacher:
    """A trained network that fits the photos.

    `about` holds plain values for result.json: run, arch, epochs, recipe, digest, other_split,
    parameters, inference_images_per_second and its metrics on the validation photos.
    """

    model: nn.Module
    about: dict[str, Any]


def load_teacher(path: Path, config: Config, data: Dataset, device: Device) -> Teacher:
    """The teacher of a checkpoint, on the device, measured on the validation photos of the student
    with this configuration. Raises UserError as load_classifier and check_teacher do."""
    model, description = load_classifier(path)
    check_teacher(path, description, config, data)
    digest = weights_digest(model)
    model = channels_last(model, device.device)
    val, speed = measure_validation(model, config, data, device)
    about = {
        "run": path.resolve().parent.name,
        "arch": description["arch"],
        "epochs": description["recipe"].get("epochs"),
        "recipe": description["recipe"],
        "digest": digest,
        "other_split": not same_photos(description, data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "inference_images_per_second": speed,
        "val": val,
    }
    return Teacher(model, about)


def check_teacher(path: Path, description: dict[str, Any], config: Config, data: Dataset) -> None:
    """Raise UserError when a teacher's classes, resolution or normalisation are not the student's,
    and, without --allow-other-split, when it was trained on another split."""
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
    allowed = config.kd and config.kd.allow_other_split
    if not same_photos(description, data) and not allowed:
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


def measure_validation(
    model: nn.Module, config: Config, data: Dataset, device: Device
) -> tuple[dict[str, Any], float]:
    """A model's metrics on the validation photos, and how many of them it classified a second."""
    shard = ranks.shard(data.counts["val"])
    started = time.perf_counter()
    logits, labels = predict(model, data.eval_batches("val", config, device.device, shard), device)
    seconds = time.perf_counter() - started
    return measure(logits, labels, data.classes), len(labels) / seconds
