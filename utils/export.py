"""Write a trained network as one file that needs nothing of this repo: pixels to probabilities.

    python -m utils.export output/checkpoints/RUN PHOTO_OR_FOLDER ... [--format onnx|pt2]

The file takes upright RGB photos of any number and size, (N, H, W, 3) uint8, and gives their
probabilities (N, classes); resizing and normalisation are inside, and so are the classes' names.
It is compared with the checkpoint on these photos.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from config import UserError
from data.batches import cached_side
from data.photos import open_rgb
from models.classifier import load_classifier
from models.exported import OPSET, load_any, load_exported, save_exported
from utils.predict import classified, photos_at
from utils.script import run_script

COMPARED = 64  # photos at most


def main(arguments: Sequence[str]) -> None:
    """Write the file, compare it with the checkpoint, and print how far they differ."""
    parser = argparse.ArgumentParser("python -m utils.export", allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or a checkpoint")
    parser.add_argument("photos", nargs="+", help="photos, or folders of some, to compare on")
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx")
    parser.add_argument("--output", type=Path, help="the file (default: RUN.onnx or RUN.pt2)")
    parser.add_argument("--network", default="", help="FILE.py:FUNCTION of a network of your own")
    options = parser.parse_args(arguments)
    path = options.checkpoint / "best.pt" if options.checkpoint.is_dir() else options.checkpoint
    to = options.output or Path(f"{path.resolve().parent.name}.{options.format}")
    if to.suffix != f".{options.format}":
        raise UserError(f"--output {to}: its name must end in .{options.format}")
    before, about = load_any(path, options.network)
    photos = islice(photos_at(options.photos), COMPARED)
    answers = list(classified(before, photos, about["image_size"]))
    expected = {photo: row for photo, row in answers if not isinstance(row, str)}
    if not expected:
        raise UserError(f"{answers[0][0]}: {answers[0][1]}; give photos to compare the file on")
    save_exported(*load_classifier(path, options.network), to)
    after, _ = load_exported(to)
    rows = []
    for photo in expected:  # each at a camera's size, or its own
        pixels = np.array(open_rgb(Path(photo), 4 * cached_side(about["image_size"])))
        rows.append(after(torch.from_numpy(pixels)[None])[0])
    ours, theirs = torch.stack([*expected.values()]), torch.stack(rows)
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    kind = f"ONNX, opset {OPSET}" if to.suffix == ".onnx" else "for torch.export.load"
    print(f"{to}: {to.stat().st_size / 1e6:.1f} MB, {kind}")
    print("takes    photos (N, H, W, 3) uint8, RGB and upright, of any number and size")
    print(f"gives    probabilities (N, {len(about['classes'])}); the classes' names are inside")
    print(f"checked  {same} of {len(rows)} photos have the class that the checkpoint gives them;")
    print(f"         probabilities differ by {(ours - theirs).abs().max():.4f} at most")


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
