"""Classify photos with a trained network, as a run's evaluation does, in float32 on the CPU.

    python -m utils.predict output/checkpoints/RUN/best.pt PHOTO_OR_FOLDER ... [--top 3]

prints a line for each photo in the order given: rain/1.jpg: rain 93.1 %, snow 4.0 %, hail 1.2 %
The exit status is 2 if the checkpoint or a photo cannot be used; stderr says why.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import UserError, number, shown
from data.batches import Normalise, cached_side, whole_images
from data.cache import read_square
from data.photos import UnreadablePhoto, is_named_as_photo
from models.classifier import load_classifier
from utils.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Print the classes of every photo; raises UserError at the end if some could not be read."""
    parser = argparse.ArgumentParser("python -m utils.predict", allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="a run's best.pt")
    parser.add_argument("photos", nargs="+", help="photos, or folders with photos directly in them")
    parser.add_argument("--top", type=number(int, 1), default=3, help="classes to print")
    parser.add_argument("--network", default="", help="FILE.py:FUNCTION of a network of your own")
    options = parser.parse_args(arguments)
    model, about = load_classifier(options.checkpoint, options.network)
    unreadable = 0
    for path in [path for given in options.photos for path in photos_at(given)]:
        try:
            pixels = read_square(Path(path), cached_side(about["image_size"]))
        except (UnreadablePhoto, OSError) as problem:
            reason = getattr(problem, "strerror", None) or str(problem)
            if os.path.isdir(path):
                reason = "no readable photo directly in this folder; give its sub-folders or files"
            print(f"error: {shown(path, keep='')}: {reason}", file=sys.stderr)
            unreadable += 1
            continue
        probabilities, labels = classify(model, about, pixels).sort(descending=True, stable=True)
        answers = [
            f"{shown(about['classes'][label], keep='')} {100 * probability:.1f} %"
            for probability, label in zip(probabilities, labels, strict=True)
        ]
        print(f"{shown(path, keep='')}: {', '.join(answers[: options.top])}")
    if unreadable:
        raise UserError(f"{unreadable} of these could not be read")


def photos_at(given: str) -> list[str]:
    """The photos directly in a folder, sorted and without hidden ones; any other path as it is."""
    _, _, names = next(os.walk(given), ("", [], []))
    names = [name for name in sorted(names) if is_named_as_photo(name) and name[0] != "."]
    paths = [os.path.join(given, name) for name in names]
    return [path for path in paths if os.path.isfile(path)] or [given]


def classify(model: nn.Module, about: dict[str, Any], pixels: np.ndarray) -> Tensor:
    """Probabilities (classes,) float32 of a photo (side, side, 3) uint8; `about` is the description
    of load_classifier."""
    normalise = Normalise(about["mean"], about["std"], torch.device("cpu"))
    images = whole_images(torch.tensor(pixels)[None], about["image_size"], normalise)
    with torch.inference_mode():
        probabilities = model(images)[0].softmax(0)
    if not probabilities.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights cannot be right")
    return probabilities


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
