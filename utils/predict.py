"""Name the weather in photos with a trained network.

    python -m utils.predict output/checkpoints/RUN/best.pt PHOTO_OR_FOLDER ... [--top 3]

prints one line a photo, in the order given, with the most probable classes:

    rain/1.jpg: rain 93.1 %, snow 4.0 %, fogsmog 1.2 %

Photos are decoded, resized and normalised as a run's evaluation does it, and classified in float32
on the CPU, a few at a time. A photo that cannot be read is told on stderr; the others are named.
The exit status is 2 if there was such a photo, or if the checkpoint cannot be used.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import UserError, whole
from data.batches import EvalBatches, Normalise, cached_side
from data.cache import read_square
from data.photos import UnreadablePhoto, is_named_as_photo
from models.checkpoint import load_classifier
from models.factory import to_device
from utils.engine import Hardware, predict
from utils.tables import printable

CPU = torch.device("cpu")
# Photos in memory at once; lines come out as often as a batch is full.
BATCH = 16


def main(arguments: Sequence[str]) -> int:
    """Name the weather in every photo and return the exit status."""
    wanted = parse(arguments)
    # Lines come as they are ready, and a terminal that lacks a letter is no reason to stop.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        model, about = load_classifier(wanted.checkpoint)
    except UserError as problem:
        print(f"error: {printable(str(problem))}", file=sys.stderr)
        return 2
    model = to_device(model, CPU)
    photos = read_all(wanted.photos, cached_side(about["image_size"]))
    status = 0
    while batch := list(islice(photos, BATCH)):
        probabilities = classify(model, about, np.stack([pixels for _, pixels, _ in batch]))
        for (name, _, reason), row in zip(batch, probabilities, strict=True):
            if reason:
                print(f"error: {printable(name)}: {reason}", file=sys.stderr)
                status = 2
            else:
                print(f"{printable(name)}: {most_probable(row, about['classes'], wanted.top)}")
    return status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line: checkpoint (Path), photos (list of str) and top (int)."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.predict",
        description="Name the weather in photos with a trained network.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.pt or last.pt"
    )
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="a photo, or a folder: all files directly in it whose names end like an image's "
        "(.jpg, .png, ...), sorted by name, without hidden ones",
    )
    parser.add_argument(
        "--top", type=_one_or_more, default=3, metavar="N", help="classes to print (default: 3)"
    )
    return parser.parse_args(arguments)


def _one_or_more(text: str) -> int:
    try:
        return whole(1)(text)
    except ValueError as allowed:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: {allowed}") from None


def read_all(given: Iterable[str], side: int) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, pixels (side, side, 3) uint8, and "" of each photo given, by itself or in a folder.

    What cannot be read has the reason in place of "", and black pixels, so that a batch is whole.
    """
    for name in given:
        try:
            for path in photos_at(name):
                yield read_one(path, side)
        except UnreadablePhoto as problem:
            yield name, np.zeros((side, side, 3), np.uint8), str(problem)


def photos_at(name: str) -> list[str]:
    """The path of a photo as it is, or those of the photos directly in a folder, sorted.

    Raises UnreadablePhoto for a folder that may not be listed or holds no photo.
    """
    if not os.path.isdir(name):
        return [name]
    try:
        inside = [inner for inner in sorted(os.listdir(name)) if not inner.startswith(".")]
    except OSError as problem:
        raise UnreadablePhoto(f"the folder cannot be listed: {problem.strerror}") from problem
    paths = [os.path.join(name, i) for i in inside if is_named_as_photo(i)]
    photos = [path for path in paths if os.path.isfile(path)]
    if not photos:
        raise UnreadablePhoto("no photo directly in this folder; name its sub-folders or files")
    return photos


def read_one(path: str, side: int) -> tuple[str, np.ndarray, str]:
    """Name, pixels, and "" or the reason for having none, of one photo as in read_all."""
    try:
        return path, read_square(Path(path), side), ""
    except UnreadablePhoto as problem:
        return path, np.zeros((side, side, 3), np.uint8), str(problem)


def classify(model: nn.Module, about: dict[str, Any], pixels: np.ndarray) -> Tensor:
    """Probabilities (N, classes) float32 of photos (N, side, side, 3) uint8.

    `about` is the description of the checkpoint (see load_classifier). It is the code of a run's
    evaluation that computes here, so a run's test photos get the softmax of its test_logits.npz.
    """
    batches = EvalBatches(
        torch.from_numpy(pixels),
        rows=np.arange(len(pixels)),
        labels=np.zeros(len(pixels), np.int64),  # nobody knows them, and only logits are used
        size=about["image_size"],
        batch_size=len(pixels),
        normalise=Normalise(about["mean"], about["std"], CPU),
        device=CPU,
    )
    logits, _ = predict(model, batches, Hardware(CPU, bf16=False))
    return logits.softmax(1)


def most_probable(probabilities: Tensor, classes: Sequence[str], top: int) -> str:
    """The `top` classes of a photo, or all if there are fewer, with their (C,) probabilities."""
    order = probabilities.argsort(descending=True, stable=True)[:top].tolist()
    return ", ".join(f"{printable(classes[i])} {100 * probabilities[i]:.1f} %" for i in order)


if __name__ == "__main__":
    # Ctrl-C and `| head` end the command at once and quietly: there is nothing to tidy up.
    for ending in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(ending, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
