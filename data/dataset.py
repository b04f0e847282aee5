"""From settings to photos on the device, split into train, val and test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import Config, UserError, plain_name
from data.batches import cached_side, to_device
from data.cache import Decoded, decode_photos
from data.listing import PARTS, UNLABELLED, find_photos
from data.split import Split, split_photos


@dataclass(frozen=True)
class Dataset:
    """Decoded photos and their split, of one fold if there are folds."""

    name: str  # safe in file names
    decoded: Decoded
    pixels: Tensor
    groups: np.ndarray  # (N,) int64, equal for photos that stay in one part of the split
    split: Split
    division: str | None = None  # the hash of the division into folds

    @cached_property
    def unlabelled(self) -> np.ndarray:
        """Rows of `pixels` of the photos that have only the teacher's term in a student's loss,
        except those that show the same picture as a val or test photo."""
        parts, together = self.split.part, self.decoded.together
        held_out = together[: len(parts)][(parts == 1) | (parts == 2)]
        known = self.split.indices(UNLABELLED)
        rows = np.concatenate([self.decoded.rows[known], self.decoded.unlabelled])
        pictures = np.concatenate([together[known], together[len(parts) :]])
        return rows[~np.isin(pictures, held_out)]

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


def load_datasets(
    configs: Sequence[Config], device: torch.device, ranks: int = 1
) -> dict[int | None, Dataset]:
    """Find, decode and split the photos: a dataset for each fold, or one under None without folds.
    Raises UserError for photos that cannot be used or are too few for the batches and ranks."""
    config = configs[0]
    for folder in (config.output, config.cache):  # or fail now rather than after decoding
        folder.mkdir(parents=True, exist_ok=True)
    if config.data == "sample":
        from data.sample import draw_sample  # rarely needed

        name, path = "sample", draw_sample(config.cache)
    else:
        path = Path(config.data)
        name = "sample_folder" if plain_name(path) == "sample" else plain_name(path)
    photos = find_photos(path, config.cache / "unpacked")
    if photos.given is not None:  # or its settings would be refused only once all are decoded
        split_photos(photos, np.arange(len(photos)), config.split_seed, config.folds)
    if unlabelled := config.kd and config.kd.unlabelled:
        from data.layouts import with_unlabelled

        photos = with_unlabelled(photos, unlabelled, config.cache / "unpacked")
    decoded = decode_photos(photos, cached_side(config.image_size), config.cache)
    if unreadable := decoded.unreadable:  # first, since too few photos may be left
        print(f"WARNING  {len(unreadable)} files cannot be read; a run's unreadable.csv lists all:")
        print(*(f"         {path!r}: {reason}" for path, reason in unreadable[:5]), sep="\n")
    if unlabelled and not len(decoded.unlabelled):
        raise UserError(f"--unlabelled: no photo in {str(unlabelled)!r} can be read")
    if config.duplicates == "off":  # nor are unlabelled photos taken for copies
        decoded = replace(decoded, together=np.arange(len(decoded.together)))
    pixels = to_device(decoded.pixels, device)
    apart = np.arange(len(decoded.photos))
    groups = {"near": decoded.groups, "exact": decoded.equal, "off": apart}[config.duplicates]
    split = split_photos(decoded.photos, groups, config.split_seed, config.folds)
    division = split.hash if config.folds else None
    few = config.labels_per_class, config.split_seed
    datasets = {
        fold: Dataset(name, decoded, pixels, groups, split.fold(fold).with_labels(*few), division)
        for fold in dict.fromkeys(config.fold for config in configs)
    }
    size, train = config.batch_size, min(d.counts["train"] for d in datasets.values())
    if size > train:
        why = f"{len(decoded.photos)} photos leave {train} to train on, less than a batch of {size}"
        raise UserError(f"{why}: add photos or labels, or give --batch-size {max(2, train // 2)}")
    if size % ranks or size < 2 * ranks:
        why = f"{ranks} ranks need a multiple of {ranks}, two photos each"
        raise UserError(f"--batch-size {size}: {why}")
    return datasets
