"""From settings to photos on the device: everything that happens before the first training step."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import ROOT, Config, UserError, model_names
from data.batches import EvalBatches, Normalise, TrainBatches, cached_side, growing_side, place
from data.cache import Decoded, decode_photos
from data.photos import find_photos
from data.sample import draw_sample
from data.split import Split, split_photos
from models.factory import MEAN, STD, create_model, smallest_image
from utils import ranks
from utils.engine import Hardware

EVAL_BATCH = 128
# On images up to this side ResNets halve maps of one pixel, and in bfloat16 on a CPU oneDNN leaves
# part of the gradient of such a kernel uninitialised (torch 2.11 and 2.12).
NO_BF16_ON_CPU = 16
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Setup:
    """What runs share: settings, hardware, photos and their split, of one fold if there are."""

    config: Config
    hardware: Hardware
    photos_name: str
    is_sample: bool
    image_size: int
    decoded: Decoded
    pixels: Tensor
    split: Split
    division: str | None = None  # the hash of what the fold is one of

    def fold(self, number: int) -> "Setup":
        """With one fold of the division that is the split here."""
        config = replace(self.config, fold=(number,))
        return replace(self, config=config, split=self.split.fold(number), division=self.split.hash)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.decoded.photos.classes

    @property
    def counts(self) -> dict[str, int]:
        """How many photos each part of the split has."""
        return {part: len(self.split.indices(part)) for part in PARTS}

    def rows_and_labels(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the pixels and class numbers of the photos of `train`, `val` or `test`."""
        chosen = self.split.indices(part)
        return self.decoded.rows[chosen], self.decoded.photos.labels[chosen]

    def train_batches(self, config: Config, seed: int, steps: int | None = None) -> TrainBatches:
        """The training photos for a run with these settings, or as many of them as make an epoch
        of `steps` steps."""
        rows, labels = self.rows_and_labels("train")
        photos = len(rows) if steps is None else steps * config.batch_size
        rows, labels = rows[:photos], labels[:photos]
        return TrainBatches(
            self.pixels,
            rows,
            labels,
            classes=len(self.classes),
            size_in=partial(
                growing_side, epochs=config.epochs, side=self.image_size, first=config.grow_from
            ),
            batch_size=config.batch_size,
            seed=seed,
            crop_scale=config.crop_scale,
            mixup=config.mixup,
            normalise=Normalise(MEAN, STD, self.hardware.device),
            device=self.hardware.device,
            share=ranks.share(config.batch_size),
        )

    def eval_batches(self, part: str) -> EvalBatches:
        """The photos of `val` or `test`, or this rank's stretch of them."""
        rows, labels = self.rows_and_labels(part)
        rows, labels = (whole[ranks.share(len(whole))] for whole in (rows, labels))
        return EvalBatches(
            self.pixels,
            rows,
            labels,
            size=self.image_size,
            batch_size=EVAL_BATCH,
            normalise=Normalise(MEAN, STD, self.hardware.device),
            device=self.hardware.device,
        )


def prepare(config: Config) -> list[Setup]:
    """Find, decode and split the photos, and refuse what cannot work before anything is trained.

    One setup, or with --folds one for each fold, whose config names it alone.
    """
    hardware = find_hardware(config)
    check_folder("--output", config.output)
    check_folder("--cache", config.cache)
    path, is_sample = find_data(config)
    image_size = config.image_size or (64 if is_sample else 224)
    check_image_size(config, image_size)
    hardware = with_safe_precision(hardware, config, image_size)
    if config.pretrained:
        for model in model_names(config):  # downloads now or fails now, not after the first run
            create_model(model, classes=2, pretrained=True, seed=0)
    photos = find_photos(path, config.cache / "unpacked")
    decoded = decode_photos(
        photos,
        cached_side(image_size),
        config.cache,
        workers=config.workers or os.cpu_count() or 1,
        strict=config.strict,
    )
    name = "sample" if is_sample else photos_name(path)
    pixels = place(decoded.pixels, hardware.device, config.photos_on)
    ending = f"-{config.folds}folds" if config.folds else ""
    manifest = decoded.folder / f"split-seed{config.split_seed}{ending}.csv"
    split = split_photos(
        decoded.photos, decoded.signatures, manifest, config.split_seed, config.folds
    )
    whole = Setup(config, hardware, name, is_sample, image_size, decoded, pixels, split)
    setups = [whole.fold(number) for number in numbers_of_folds(config)] or [whole]
    smallest = {part: min(setup.counts[part] for setup in setups) for part in PARTS}
    if config.batch_size > smallest["train"]:
        raise UserError(
            f"--batch-size {config.batch_size}: at most the number of training photos, "
            f"{smallest['train']}"
        )
    if config.batch_size % ranks.count() or config.batch_size < 2 * ranks.count():
        raise UserError(
            f"--batch-size {config.batch_size}: the {ranks.count()} ranks share it, so it has to "
            f"be a multiple of {ranks.count()} and two photos or more for each"
        )
    if min(smallest.values()) < ranks.count():
        raise UserError(f"there are more ranks, {ranks.count()}, than photos to validate or test")
    return setups


def numbers_of_folds(config: Config) -> Sequence[int]:
    """The folds that were asked for; none without --folds."""
    return config.fold or range(config.folds or 0)


def fold_name(config: Config) -> str:
    """What tells a fold's files apart; nothing without folds."""
    return f"-fold{config.fold[0]}of{config.folds}" if config.fold else ""


def check_folder(flag: str, folder: Path) -> None:
    """Raise UserError for a folder that cannot be made because a file, or its name, is in the way;
    makes nothing."""
    for path in (folder, *folder.parents):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as problem:
            raise UserError(f"{flag} {folder}: {problem.strerror}; name another") from problem
        if not path.is_dir():
            raise UserError(f"{flag} {folder}: {path} is there and no folder; name another")
        return


def find_hardware(config: Config) -> Hardware:
    """The device and precision that were asked for, or the best that is there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if name == "cuda":
        device = torch.device("cuda", ranks.on_this_machine())
    elif device.type == "cuda" and ranks.count() > 1:
        raise UserError(f"--device {name}: each of several ranks takes a GPU of its own, so: cuda")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(
            f"--device {config.device}: this machine has {torch.cuda.device_count()} GPUs "
            "that PyTorch can use; --device cpu always works"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuDNN's search for the fastest kernels stays off: on an H100 it took 29 s for DenseNet169
        # at 224 px, and the 15 epochs after it took 36.
        torch.set_float32_matmul_precision("high")
    auto = config.precision == "auto" and gains_from_bf16(device)
    graphs = device.type == "cuda" and ranks.count() == 1 and not config.eager
    return Hardware(device, auto or config.precision == "bf16", graphs)


def with_safe_precision(hardware: Hardware, config: Config, image_size: int) -> Hardware:
    """Float32 where training in bfloat16 would go wrong; UserError where that was asked for."""
    least = smallest_side(config, image_size)
    if hardware.device.type != "cpu" or not hardware.bf16 or least > NO_BF16_ON_CPU:
        return hardware
    if config.precision == "bf16":
        raise UserError(
            f"--precision bf16: on a CPU it needs images of {NO_BF16_ON_CPU + 1} pixels or more, "
            f"and training starts with {least}; --precision float32 does"
        )
    return replace(hardware, bf16=False)


def gains_from_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster here than float32 (docs/recipe.md has the figures).

    GPUs since Ampere have it in their matrix units, and so have CPUs with AMX. With AVX-512 bf16
    alone, AMD's CPUs gain from it; on another maker's, training measured slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has told what a CPU can do since 2.12.
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amd = str(cpu.get("cpu_name", "")).startswith("AMD")
    return bool(cpu.get("amx_bf16") or (amd and cpu.get("avx512_bf16")))


def find_data(config: Config) -> tuple[Path, bool]:
    """The folder or archive to train on, and whether it is the drawn sample."""
    default = ROOT / "data" / "weather"
    if config.data is None and default.exists():
        return default, False
    if config.data not in (None, "sample"):
        return Path(str(config.data)), False
    if config.data is None:
        print(
            "NOTE: there are no photos in data/weather, so this is a run on the SAMPLE, weather\n"
            "      drawn by this repo: its numbers show that the code works and say nothing about\n"
            "      photos. Bring your own with --data FOLDER, or run python -m data.download\n"
        )
    return draw_sample(config.cache / "sample"), True


def smallest_side(config: Config, image_size: int) -> int:
    """Of the images that training starts with, the teacher's where it has a schedule of its own."""
    return min(
        growing_side(1, epochs=epochs, side=image_size, first=config.grow_from)
        for epochs in (config.epochs, config.teacher_epochs or config.epochs)
    )


def check_image_size(config: Config, image_size: int) -> None:
    """Raise UserError for an image that a model's layers would shrink to nothing."""
    for model in model_names(config):
        least = smallest_image(model)
        if image_size < least:
            raise UserError(f"--image-size {image_size}: {model} needs {least} pixels or more")
        if smallest_side(config, image_size) < least:
            raise UserError(
                f"--grow-from {config.grow_from:g}: {model} needs {least} pixels from the start"
            )


def photos_name(path: Path) -> str:
    """A name for runs on the photos at `path`, safe in file names and never the sample's."""
    stem = path.resolve().name.split(".")[0] or "photos"
    safe = "".join(c if c.isalnum() and c.isascii() else "_" for c in stem)[:60]
    return safe if safe != "sample" else "sample_folder"


def describe(setups: Sequence[Setup]) -> None:
    """Print which photos are used, what was found wrong with them, and the hardware."""
    setup, counts = setups[0], setups[0].counts
    total = sum(counts.values())
    config, fold = setup.config, ""
    if config.fold:
        fold = f"{len(setups)} of {config.folds} folds; in fold {config.fold[0]}: "
    print(
        f"photos   {setup.photos_name}: {total:,} in {len(setup.classes)} classes, {fold}"
        + ", ".join(f"{part} {count:,}" for part, count in counts.items())
        + f"; split {setup.split.hash}"
    )
    unreadable = setup.decoded.unreadable
    if unreadable:
        print(f"WARNING  {len(unreadable)} files cannot be read and are left out:")
        for path, reason in unreadable[:5]:
            print(f"         {path!r}: {reason}")
        if len(unreadable) > 5:
            listed = setup.config.output / "results" / "<run>" / "unreadable.csv"
            print(f"         and {len(unreadable) - 5} more; a run lists all in {listed}")
    for note in setup.split.notes:
        print(f"         {note}")
    how = "bfloat16" if setup.hardware.bf16 else "float32"
    how += ", CUDA graphs" if setup.hardware.graphs else ""
    print(f"device   {device_kind(setup.hardware.device)}, {how}\n")


def device_kind(device: torch.device) -> str:
    """The GPU's name, or the CPU's number of threads."""
    each = f", each of {ranks.count()} ranks" if ranks.count() > 1 else ""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}{each}"
    return f"cpu, {torch.get_num_threads()} threads{each}"


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that tensors took on the GPU at most, decoded photos among them; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
