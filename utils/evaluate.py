"""Measure trained networks on labelled photos, side by side: how good they are, and what they cost.

    python -m utils.evaluate output/checkpoints/TEACHER output/checkpoints/STUDENT student.onnx DATA

DATA is a folder, a CSV or an archive, as for --data. If a network was trained on these photos, only
its test photos are used; else their test part, if they are split, or all. Float32 (TF32 on GPUs).
"""

import sys
from collections.abc import Sequence
from functools import partial
from os.path import basename
from pathlib import Path
from timeit import timeit

import numpy as np
import torch
from torch import Tensor

from config import DEVICE, PATH, Config, Parser, UserError, checkpoint, file_digest, new_file, shown
from data.batches import cached_side
from data.cache import Decoded, decode_photos
from data.files import atomic_write, csv_text
from data.layouts import read_table
from data.listing import PARTS, find_photos
from models.factory import multiply_adds
from utils.device import find_device
from utils.export import Classify, load_any, probabilities
from utils.metrics import measure
from utils.script import run_script
from utils.tables import Result, confusion_table, table

ROUNDS = 15  # of timing: each network in turn
ROWS: dict[str, tuple[str, ...]] = {
    "Accuracy": ("test", "accuracy", ".2%"),
    "Macro-F1": ("test", "macro_f1", ".4f"),
    "Loss": ("test", "loss", ".4f"),
    "Calibration error": ("test", "calibration_error", ".4f"),
    "Parameters": ("parameters", ",.0f"),
    "File, MB": ("megabytes", ".1f"),
    "Multiply-adds, millions": ("multiply_adds", ",.1f"),
    "One photo, ms": ("milliseconds", ".2f"),
    "Photos per second, up to 32 at a time": ("throughput", ",.0f"),
}


def main(arguments: Sequence[str]) -> None:
    """Print quality, costs, recall and confusion, and write a table of the mistakes."""
    parser = Parser(__doc__, "python -m utils.evaluate")
    parser.add_argument("networks", nargs="+", type=checkpoint, help="runs' folders or exports")
    parser.add_argument("data", type=PATH, help="labelled photos: a folder, a CSV, an archive")
    parser.add_argument("--mistakes", type=new_file, default="mistakes.csv", help="file to write")
    parser.add_argument("--device", type=DEVICE, default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--network", default="", help="your own network, as FILE.py:FUNCTION")
    parser.add_argument("--cache", type=PATH, default=Config.cache, help="as train.py's")
    options = parser.parse_intermixed_args(arguments)
    options.mistakes.parent.mkdir(parents=True, exist_ok=True)
    device = find_device(Config(device=options.device, precision="float32"))
    files = [*dict.fromkeys(options.networks)]
    loaded = [load_any(file, options.network, str(device.device)) for file in files]
    networks, abouts = zip(*loaded, strict=True)
    classes, size = abouts[0]["classes"], abouts[0]["image_size"]
    for file, about in zip(files, abouts, strict=True):
        if (about["classes"], about["image_size"]) != (classes, size):
            raise UserError(f"{file} has other classes or another image size than {files[0]}")
    photos = find_photos(options.data, options.cache / "unpacked")
    if unknown := sorted({*photos.classes} - {*classes}):
        raise UserError(f"{options.data} has a class {unknown[0]!r} that the networks do not have")
    decoded = decode_photos(photos, cached_side(size), options.cache)
    places, which = select_photos(decoded, files, abouts)
    squares = torch.from_numpy(decoded.pixels[decoded.rows[places]])
    own = np.array([classes.index(name) for name in photos.classes])
    labels = own[decoded.photos.labels[places]]
    for note in (*photos.notes, *map(" is left out: ".join, decoded.unreadable)):
        print(f"NOTE: {shown(note, keep='')}", file=sys.stderr)
    print(f"{which}; {device}, float32\n")
    costs = measure_costs(networks, files, abouts, squares)
    mistakes: list[tuple[object, ...]] = [("network", "path", "class", "predicted", "probability")]
    columns, matrices = {}, []
    names = [about.get("run", f.name) for f, about in zip(files, abouts, strict=True)]
    names = names if len(set(names)) == len(files) else [str(file) for file in files]
    if device.device.type == "cuda":  # which exported files do not use
        names = [n + " (CPU)" * ("network" not in a) for n, a in zip(names, abouts, strict=True)]
    for network, name, cost in zip(networks, names, costs, strict=True):
        scores = probabilities(network, squares)
        log = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
        test = measure(log, torch.from_numpy(labels), tuple(classes))
        columns[name] = [cost | {"test": test}]
        matrices.append(confusion_table(test["confusion"], classes, f"{name}: "))
        for place in test["wrong"]:
            probability, guess = scores[place].max(0)
            path, truth = decoded.photos.paths[places[place]], classes[labels[place]]
            mistakes.append((name, path, truth, classes[guess], f"{probability:.4f}"))
    counts = zip(classes, np.bincount(labels, minlength=len(classes)), strict=True)
    recall = {f"Recall, {c} ({n})": ("test", "recall", c, ".1%") for c, n in counts if n}
    print("\n".join([table(columns, ROWS | recall), *matrices]))
    atomic_write(options.mistakes, csv_text(mistakes))
    print(f"{len(mistakes) - 1} mistakes are listed in {options.mistakes}")


def select_photos(
    decoded: Decoded, files: Sequence[Path], abouts: Sequence[Result]
) -> tuple[np.ndarray, str]:
    """Indices of the photos to measure on, and these in words. Raises UserError if networks were
    trained on these photos and their test photos are unknown or not the same. Warns of photos that
    have been seen otherwise: by a teacher, unlabelled, or under these names."""
    photos, tests, seen = decoded.photos, dict[str, frozenset[str]](), set[tuple[str, str]]()
    for file, about in zip(files, abouts, strict=True):
        run = file.resolve().parent
        path = run.parent.parent / "results" / run.name / "split.csv"
        rows = read_table(path)[1] if path.exists() and file_digest(path) == about["split"] else []
        test = frozenset(row["path"] for row in rows if row["split"] == "test")
        if about["photos"] == decoded.digest:
            test = test or tests.get(about["split"], frozenset())
            tests[about["split"]] = test if test <= {*photos.paths} else frozenset()
        else:
            seen |= {(r["class"], basename(r["path"])) for r in rows if r["split"] in PARTS[:2]}
        if (about.get("distillation") or {}).get("unlabelled_digest") == decoded.digest:
            print(f"WARNING: {file} has seen these photos without labels", file=sys.stderr)
        if about.get("held_out") == "":  # as of a student of --allow-other-split
            print(f"WARNING: {file}: its teacher may have seen these photos", file=sys.stderr)
    if tests and (len({*tests.values()}) > 1 or not any(tests.values())):
        hint = "test photos are unknown or differ: give runs in output/ of one split and their DATA"
        raise UserError(f"networks were trained on {photos.root}, and their {hint}")
    places, which = np.flatnonzero(photos.given == "test"), "photos of the given test part"
    if tests:
        split, test = next(iter(tests.items()))
        places = np.flatnonzero([path in test for path in photos.paths])
        which = f"test photos of split {split}"
    elif not len(places):
        places, which = np.arange(len(photos)), "photos"
    names = [(photos.classes[photos.labels[n]], basename(photos.paths[n])) for n in places]
    if common := sum(name in seen for name in names):
        what = f"{common:,} photos have the class and file name of a network's training photos"
        print(f"WARNING: {what}: if they are the same, its scores are too high", file=sys.stderr)
    elif any(about["photos"] != decoded.digest for about in abouts):
        which += f", assuming that no {'other ' * bool(tests)}network was trained with their labels"
    return places, f"{len(places):,} {which}"


def measure_costs(
    networks: Sequence[Classify], files: Sequence[Path], abouts: Sequence[Result], squares: Tensor
) -> list[Result]:
    """Cost of each network, by the names in ROWS; times are medians of interleaved rounds."""
    costs: list[Result] = []
    for file, about in zip(files, abouts, strict=True):
        cost = {"megabytes": file.stat().st_size / 1e6, "parameters": about.get("parameters")}
        network, size = about.get("network"), (len(about["classes"]), about["image_size"])
        costs.append(cost | {"multiply_adds": network and multiply_adds(network, *size) / 1e6})
    for count in (1, 32):
        batch = squares[:1].expand(count, -1, -1, -1).contiguous()
        turns = [partial(probabilities, network, batch) for network in networks] * (ROUNDS + 2)
        seconds = [timeit(turn, number=1) for turn in turns]
        times = np.median(np.reshape(seconds, (-1, len(networks)))[2:], axis=0)  # warm
        for cost, one in zip(costs, times.tolist(), strict=True):
            cost |= {"milliseconds": 1000 * one} if count == 1 else {"throughput": count / one}
    return costs


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
