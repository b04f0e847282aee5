"""Classify photos with a trained network, prepared as for a run's test, in float32 on the CPU.

    python -m utils.predict output/checkpoints/RUN PHOTO_OR_FOLDER ... [--top 3] [--csv | --json]
    find . -name '*.jpg' | python -m utils.predict student.onnx -

prints a line for each photo in the order given: rain/1.jpg: rain 93.1 %, snow 4.0 %, hail 1.2 %
A folder stands for all photos in it and its sub-folders, `-` for paths on stdin, one per
line. The exit status is 2 if the network or a photo cannot be used; stderr says why.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import Parser, UserError, checkpoint, number, shown
from data.batches import cached_side, eval_batch
from data.cache import read_square
from data.files import csv_text
from data.listing import photos_below
from data.photos import UnreadablePhoto
from utils.export import Classify, load_any, probabilities
from utils.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Print the classes of every photo; raises UserError at the end if some could not be read."""
    parser = Parser(__doc__, "python -m utils.predict")
    parser.add_argument("network", type=checkpoint, help="a run's folder, checkpoint or export")
    parser.add_argument("photos", nargs="+", help="photos, folders, or - for paths on stdin")
    parser.add_argument("--top", type=number(int, 1), default=3, help="classes shown (default: 3)")
    parser.add_argument("--network", dest="code", default="", help="your own FILE.py:FUNCTION")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--csv", action="store_true", help="lines of path,rank,class,probability")
    style.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_intermixed_args(arguments)
    classify, about = load_any(options.network, options.code)
    unreadable = 0
    if options.csv:
        print("path,rank,class,probability")
    for path, answer in classify_paths(classify, photos_at(options.photos), about["image_size"]):
        if isinstance(answer, str):
            print(f"error: {shown(path, keep='')}: {answer}", file=sys.stderr)
            unreadable += 1
            continue
        values, places = answer.sort(descending=True, stable=True)
        names = [shown(about["classes"][place], keep="") for place in places]
        top = list(zip(names, values.tolist(), strict=True))[: options.top]
        if options.csv:
            rows = ((path, n, name, f"{p:.4f}") for n, (name, p) in enumerate(top, 1))
            print(csv_text(rows), end="")
        elif options.json:
            print(json.dumps({"path": path, "classes": {name: round(p, 4) for name, p in top}}))
        else:
            text = ", ".join(f"{name} {100 * p:.1f} %" for name, p in top)
            print(f"{shown(path, keep='')}: {text}")
    if unreadable:
        raise UserError(f"{unreadable} photos could not be read")


def photos_at(given: Iterable[str]) -> Iterator[str]:
    """Paths of photos: as given, in given folders (sorted, without hidden ones), or from stdin."""
    for name in given:
        if name == "-":
            yield from (os.fsdecode(x.rstrip(b"\r\n")) for x in getattr(sys.stdin, "buffer", ()))
        elif os.path.isdir(name):
            yield from [os.path.join(name, path) for path in photos_below(Path(name))] or [name]
        else:
            yield name


def classify_paths(
    classify: Classify, paths: Iterable[str], image_size: int
) -> Iterator[tuple[str, Tensor | str]]:
    """Each path and the probabilities (classes,) of its photo, or why it cannot be read."""
    paths, side = iter(paths), cached_side(image_size)
    read, count = partial(_read, side), eval_batch(side)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(paths, count)):
            squares = list(pool.map(read, some))
            good = [square for square in squares if not isinstance(square, str)]
            each = iter(probabilities(classify, torch.from_numpy(np.stack(good))) if good else ())
            for path, square in zip(some, squares, strict=True):
                yield path, square if isinstance(square, str) else next(each)


def _read(side: int, path: str) -> np.ndarray | str:
    try:
        return read_square(Path(path), side)
    except (UnreadablePhoto, OSError, ValueError) as problem:  # ValueError: an impossible path
        why = getattr(problem, "strerror", None) or str(problem)
        return "a folder without photos, or given on stdin" if os.path.isdir(path) else why


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
