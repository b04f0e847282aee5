"""Write a trained network as one file that needs nothing of this repo: pixels to probabilities.

    python -m utils.export output/checkpoints/RUN FOLDER [--format onnx|pt2]

The file takes upright RGB photos of any number and size, (N, H, W, 3) uint8, and gives their
probabilities (N, classes); resizing, normalisation and names are inside. It is tested on FOLDER.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import PATH, Parser, UserError, checkpoint, new_file
from data.batches import cached_side, eval_batch, normaliser, resampling, whole_images
from data.cache import read_square
from data.files import explained
from data.listing import photos_below
from data.photos import UnreadablePhoto, open_rgb
from models.checkpoint import load_classifier
from utils.script import run_script

OPSET = 18
COMPARED = 64  # photos at most
FACTS = ("arch", "classes", "image_size", "split", "photos")  # kept in an exported file
Classify = Callable[[Tensor], Tensor]  # photos (N, H, W, 3) uint8 to probabilities (N, classes)


class PhotoClassifier(nn.Module):
    """A network and the steps before and after it, as evaluation takes them: a photo is squashed to
    a square, as its decoded copy is, then resized to what the network sees, and normalised."""

    def __init__(self, model: nn.Module, about: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.image_size = model, about["image_size"]
        self.normalise = normaliser(about["mean"], about["std"], torch.device("cpu"))

    def forward(self, photos: Tensor) -> Tensor:
        images, low = photos.permute(0, 3, 1, 2).float(), torch.zeros(1)
        for side in (cached_side(self.image_size), self.image_size):
            # As Pillow resizes: antialiased, first along the rows, and rounded each time.
            rows, columns = (resampling(low, low + n, n, side)[0] for n in images.shape[2:])
            images = (rows @ (images @ columns.T).round()).round()
        return self.model(self.normalise(images)).float().softmax(1)


def save_exported(model: nn.Module, about: dict[str, Any], path: Path) -> None:
    """Write a network from load_classifier: as ONNX or, if the path ends in .pt2, as a program for
    torch.export.load. Raises UserError if it cannot be traced or packages are missing."""
    sizes = {i: torch.export.Dim(name) for i, name in enumerate(("photos", "height", "width"))}
    example = torch.zeros(2, 97, 101, 3, dtype=torch.uint8)
    facts = {name: json.dumps(about[name]) for name in FACTS}
    # Warnings are of deprecations inside of torch.
    with explained("this network cannot be exported"), warnings.catch_warnings(action="ignore"):
        classifier = PhotoClassifier(model, about).eval()
        program = torch.export.export(classifier, (example,), dynamic_shapes=(sizes,))
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files=facts)
            return
        how: Any = {"output_names": ["probabilities"], "opset_version": OPSET, "verbose": False}
        made: Any = torch.onnx.export(program, **how)
        made.model.metadata_props.update(facts)
        made.save(path, external_data=False)


def load_exported(path: Path) -> tuple[Classify, dict[str, Any]]:
    """Load a file of save_exported: a function that classifies photos, and the FACTS in the file.
    Raises UserError for any other file, and if onnxruntime is missing."""
    with explained(f"{path}: cannot be read as an export"):
        if path.suffix == ".pt2":
            facts: dict[str, Any] = dict.fromkeys(FACTS, "")
            logging.getLogger("torch.export").setLevel(logging.ERROR)  # it prints a traceback
            with warnings.catch_warnings(action="ignore"):
                classify: Classify = torch.export.load(path, extra_files=facts).module()
        else:
            import onnxruntime  # in the optional group export

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()  # as many as the checkpoints'
            session = onnxruntime.InferenceSession(path, options)
            facts = session.get_modelmeta().custom_metadata_map

            def classify(photos: Tensor) -> Tensor:
                return torch.tensor(session.run(None, {"photos": photos.numpy()})[0])

        return classify, {name: json.loads(facts[name]) for name in FACTS}


def load_any(path: Path, network: str = "", device: str = "cpu") -> tuple[Classify, dict[str, Any]]:
    """Load an exported file or a checkpoint: a function from photos of side `cached_side` to
    probabilities on the CPU, in float32, and the description. Raises UserError for others."""
    if path.suffix in (".onnx", ".pt2"):
        return load_exported(path)
    model, about = load_classifier(path, network)
    normalise = normaliser(about["mean"], about["std"], torch.device(device))
    model.to(device)

    def classify(photos: Tensor) -> Tensor:
        images = whole_images(photos.to(device), about["image_size"], normalise)
        return model(images).float().softmax(1).cpu()

    about["network"] = network if "." in about["arch"] else about["arch"]
    return classify, about | {"parameters": sum(p.numel() for p in model.parameters())}


def probabilities(classify: Classify, photos: Tensor) -> Tensor:
    """Probabilities (N, classes) of photos (N, H, W, 3) uint8. Raises UserError if not finite."""
    with torch.inference_mode():
        rows = torch.cat([classify(some) for some in photos.split(eval_batch(photos.shape[1]))])
    if not rows.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights cannot be right")
    return rows


def main(arguments: Sequence[str]) -> None:
    """Write the file, compare it with the checkpoint, and print how far they differ."""
    parser = Parser(__doc__, "python -m utils.export")
    parser.add_argument("checkpoint", type=checkpoint, help="a run's folder, or a checkpoint")
    parser.add_argument("photos", type=PATH, help="a folder with photos, to compare on")
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="default: onnx")
    parser.add_argument("--output", type=new_file, help="the file (default: RUN.onnx or RUN.pt2)")
    parser.add_argument("--network", default="", help="your own network, as FILE.py:FUNCTION")
    options = parser.parse_args(arguments)
    path: Path = options.checkpoint
    model, about = load_classifier(path, options.network)
    to = options.output or Path(f"{path.resolve().parent.name}.{options.format}")
    if to.suffix != f".{options.format}":
        raise UserError(f"--output {to}: --format {options.format} makes a .{options.format} file")
    before, side = load_any(path, options.network)[0], cached_side(about["image_size"])
    names = [*map(options.photos.joinpath, photos_below(options.photos))]
    squares, photos = [], []
    for name in names[:: 1 + len(names) // COMPARED]:
        with suppress(UnreadablePhoto):
            squares.append(read_square(name, side))
            photos.append(open_rgb(name, 4 * side))
    if not photos:
        raise UserError(f"{options.photos}: a folder with photos is needed, to compare on")
    expected = probabilities(before, torch.from_numpy(np.stack(squares)))
    to.parent.mkdir(parents=True, exist_ok=True)
    save_exported(model, about, to)
    after, _ = load_exported(to)
    found = torch.cat([probabilities(after, torch.from_numpy(np.array(p))[None]) for p in photos])
    same = int((expected.argmax(1) == found.argmax(1)).sum())
    print(f"{to}: {to.stat().st_size / 1e6:.1f} MB" + f", opset {OPSET}" * (to.suffix == ".onnx"))
    print(f"{same} of {len(found)} photos have the class that the checkpoint gives them;")
    print(f"probabilities differ by {(expected - found).abs().max():.4f} at most")
    if same < 0.9 * len(found) and (expected - found).abs().max() > 0.1:
        raise UserError(f"{to} is not the same network: do not use it")


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
