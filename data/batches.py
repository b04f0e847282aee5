"""Decoded photos as batches on the device: gathered, cropped, resized and normalised there.

    pixels = place(decoded.pixels, device, "auto")
    train = TrainBatches(pixels, rows, labels, ...)      # train.epoch(3) repeats epoch 3 exactly
    val = EvalBatches(pixels, rows, labels, ...)

Cropping, flipping and antialiased resizing of one photo is a product with two small matrices,
rows · photo · columns, so on a GPU a whole batch of different crops is two batched matrix products.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from data.cache import in_order

TRIES = 10  # to draw a crop that fits, as torchvision has it


def cached_side(image_size: int) -> int:
    """The resolution to decode to for networks that see `image_size` pixels.

    Crops are cut from it and enlarged or reduced to `image_size`: 256 for the usual 224, and for
    small images twice their size, so that a crop shows detail and not just larger pixels.
    """
    return max(round(image_size * 8 / 7), min(2 * image_size, 256))


def place(pixels: np.ndarray, device: torch.device, where: str) -> Tensor:
    """The (N, side, side, 3) uint8 photos as a tensor: on the device, or left on the host.

    `where` is `device`, `host` or `auto`, which moves them to a GPU when they fit into half of its
    free memory. On the CPU, and left on the host, nothing is copied: the tensor is the memory map.
    """
    mapped = _as_tensor(pixels)
    if device.type == "cpu" or where == "host":
        return mapped
    if where == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if pixels.nbytes > free / 2:
            return mapped
    return mapped.to(device)


def _as_tensor(pixels: np.ndarray) -> Tensor:
    # torch warns that it cannot keep a read-only array from being written to; nothing here writes.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def crop_and_resize(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut `boxes` out of `photos` and resize them to squares, bilinear and antialiased, as Pillow's
    `crop` and `resize` do to within a grey level.

    Args:
        photos: (N, side, side, 3) uint8.
        boxes: (N, 4) int64 top, bottom, left, right in pixels; right < left mirrors.
        size: side of the result.
    Returns:
        (N, 3, size, size) float32 in 0..255, channels_last in memory.
    """
    crop = crops_one_by_one if photos.device.type == "cpu" else crops_as_products
    return crop(photos, boxes, size).contiguous(memory_format=torch.channels_last)


def crops_one_by_one(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What crop_and_resize does, on a CPU: PyTorch has vector code for one uint8 image."""
    crops = []
    for photo, (top, bottom, left, right) in zip(photos, boxes.tolist(), strict=True):
        cut = photo[top:bottom, min(left, right) : max(left, right)].permute(2, 0, 1)[None]
        crop = interpolate(cut, (size, size), mode="bilinear", antialias=True)
        crops.append(crop.flip(3) if right < left else crop)
    return torch.cat(crops).float()


def crops_as_products(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What crop_and_resize does, on a GPU: two batched matrix products for all photos at once."""
    count, side, _, _ = photos.shape
    rows = resampling(boxes[:, 0], boxes[:, 1], side, size)
    columns = resampling(boxes[:, 2], boxes[:, 3], side, size)
    # Evaluation gets its batches under the network's autocast: bfloat16 would blur the grey levels.
    with torch.autocast(photos.device.type, enabled=False):
        half = rows @ photos.view(count, side, side * 3).float()
        half = half.view(count, size, side, 3).transpose(2, 3).reshape(count, size * 3, side)
        whole = half @ columns.transpose(1, 2)
    return whole.view(count, size, 3, size).transpose(1, 2)


def resampling(low: Tensor, high: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source) float32 matrices that resample the stretch low..high of an axis.

    `low` and `high` (N,) are positions between source pixels; high < low mirrors. Each row holds
    the weights of one target pixel: bilinear, widened to the pixel's footprint when shrinking
    (antialiased, the filter of Pillow's `resize`), none outside of the stretch, summing to 1.
    """
    step = (high - low) / size
    centre = low[:, None] + (torch.arange(size, device=low.device) + 0.5) * step[:, None]
    reach = step.abs().clamp(min=1)[:, None, None]
    position = torch.arange(source, device=low.device) + 0.5
    weights = (1 - (position - centre[:, :, None]).abs() / reach).clamp_(min=0)
    inside = (position > low[:, None]) != (position > high[:, None])
    weights *= inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def growing_side(epoch: int, *, epochs: int, side: int, first: float) -> int:
    """Side of the training images in an epoch, counted from 1: from `first` (0..1) of `side` it
    grows to all of it, which the last fifth of the epochs have, to fit the network to whole photos.

    In steps of 16 pixels: for every new size a GPU has to record its training step again.
    """
    if epoch >= 0.8 * epochs:
        return side
    progress = (epoch - 1) / (0.8 * epochs - 1)
    smallest = max(1, round(first * side))
    return smallest + math.floor((side - smallest) * progress / 16) * 16


class Normalise:
    """uint8 levels 0..255 to the (x/255 − mean)/std that the networks take, in place."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        spread = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.gain = 1 / (255 * spread)
        self.offset = -torch.tensor(mean, device=device).view(1, 3, 1, 1) / spread

    def __call__(self, images: Tensor) -> Tensor:
        return images.mul_(self.gain).add_(self.offset)


class _Gather:
    """Photos by row number, batch after batch: from where they lie to the device.

    From the host, they come through pinned memory, and a thread has the next batch ready while the
    device is busy with the last.
    """

    def __init__(self, pixels: Tensor, rows: np.ndarray, device: torch.device) -> None:
        self.pixels, self.device = pixels, device
        self.rows = torch.from_numpy(rows).to(pixels.device)

    def __call__(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        # Types, since a tensor on `cuda` says that it is on `cuda:0`.
        if self.pixels.device.type == self.device.type:
            yield from map(self.chosen, batches)
            return
        with ThreadPoolExecutor(1) as thread:
            for photos in in_order(thread, self.pinned, batches, ahead=1):
                yield photos.to(self.device, non_blocking=True)

    def chosen(self, which: Tensor) -> Tensor:
        return self.pixels[self.rows[which]]

    def pinned(self, which: Tensor) -> Tensor:
        return self.chosen(which).pin_memory()


class TrainBatches:
    """Shuffled, augmented batches; `epoch(n)` depends on the seed and n alone.

    Every epoch draws its order, crops, flips and mixing weights at once, on the host, from one
    generator seeded by (seed, epoch), so that a resumed run repeats them on any device. Photos
    beyond the last full batch wait for another epoch: batches of a few photos would only disturb
    the BatchNorm statistics. `size_in` gives the side of the images in an epoch. `share` is the
    stretch of each batch that this process makes, where several make one batch; by default all.
    """

    def __init__(
        self,
        pixels: Tensor,
        rows: np.ndarray,
        labels: np.ndarray,
        *,
        classes: int,
        size_in: Callable[[int], int],
        batch_size: int,
        seed: int,
        crop_scale: float,
        mixup: float,
        normalise: Normalise,
        device: torch.device,
        share: slice | None = None,
    ) -> None:
        self.gather = _Gather(pixels, rows, device)
        self.labels = torch.from_numpy(labels).to(device)
        self.share = range(*(share or slice(None)).indices(batch_size))
        self.side, self.size_in, self.classes = pixels.shape[1], size_in, classes
        self.batch_size, self.seed = batch_size, seed
        self.crop_scale, self.mixup = crop_scale, mixup
        self.normalise, self.device = normalise, device

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches, or shares of them, of images (B, 3, size, size) float32 and labels: (B,) int64,
        or mixed (B, classes) float32."""
        count = len(self) * self.batch_size
        draw = np.random.Generator(np.random.PCG64([self.seed, number]))
        order = draw.permutation(len(self.labels))
        drawn = random_boxes(draw, count, self.side, self.crop_scale)
        weights = draw.beta(self.mixup, self.mixup, len(self)) if self.mixup else None
        first, last = self.share.start, self.share.stop
        # To be mixed, a photo needs the one before it in the batch, and the first needs the last.
        places = np.arange(first - bool(self.mixup), last) % self.batch_size
        mine = (np.arange(0, count, self.batch_size)[:, None] + places).ravel()
        which = torch.from_numpy(order[mine]).to(self.gather.rows.device)
        boxes = torch.from_numpy(drawn[mine]).to(self.device)
        labels = self.labels[which.to(self.device)]
        batches = zip(
            self.gather(which.split(len(places))),
            boxes.split(len(places)),
            labels.split(len(places)),
            strict=True,
        )
        size = self.size_in(number)
        for step, (photos, box, truth) in enumerate(batches):
            images = self.normalise(crop_and_resize(photos, box, size))
            if weights is None:
                yield images, truth
            else:
                yield mix(images, one_hot(truth, self.classes).float(), float(weights[step]))


class EvalBatches:
    """Every photo of a split once, whole and in order: neither augmented nor dropped."""

    def __init__(
        self,
        pixels: Tensor,
        rows: np.ndarray,
        labels: np.ndarray,
        *,
        size: int,
        batch_size: int,
        normalise: Normalise,
        device: torch.device,
    ) -> None:
        self.gather = _Gather(pixels, rows, device)
        self.labels = torch.from_numpy(labels).to(device)
        self.side, self.size, self.batch_size = pixels.shape[1], size, batch_size
        self.normalise, self.device = normalise, device
        self.photos = len(labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, 3, size, size) float32 and labels (B,) int64."""
        whole = torch.tensor([[0, self.side, 0, self.side]], device=self.device)
        batches = torch.arange(self.photos, device=self.gather.rows.device).split(self.batch_size)
        labels = self.labels.split(self.batch_size)
        for photos, truth in zip(self.gather(batches), labels, strict=True):
            images = crop_and_resize(photos, whole.expand(len(photos), 4), self.size)
            yield self.normalise(images), truth


def random_boxes(draw: np.random.Generator, count: int, side: int, smallest: float) -> np.ndarray:
    """(count, 4) int64 top, bottom, left, right, in pixels of photos with sides of `side`, of
    random crops; half of them are mirrored, with right < left.

    Distributed as torchvision's RandomResizedCrop(scale=(smallest, 1)) has them (Szegedy et al.
    2014, https://arxiv.org/abs/1409.4842): the area is between `smallest` and all of the photo's,
    the aspect ratio between 3/4 and 4/3. Both are drawn again where the crop does not fit into the
    photo; after ten tries it is the whole photo.
    """
    area = draw.uniform(smallest, 1, (count, TRIES)) * side**2
    ratio = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3), (count, TRIES)))
    sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 2).round().astype(np.int64)
    fits = (sizes.min(2) >= 1) & (sizes.max(2) <= side)
    sizes[:, -1][~fits.any(1)] = side
    fits[:, -1] |= ~fits.any(1)
    height, width = sizes[np.arange(count), fits.argmax(1)].T
    top, left = draw.integers(0, side - height + 1), draw.integers(0, side - width + 1)
    mirrored = draw.uniform(0, 1, count) < 0.5
    right = left + width
    left, right = np.where(mirrored, right, left), np.where(mirrored, left, right)
    return np.stack([top, top + height, left, right], 1)


def mix(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each photo but the first, and its target, with the one before it, which is a random
    one in a batch of random order (mixup, Zhang et al. 2017, https://arxiv.org/abs/1710.09412)."""
    return (
        images[1:] * share + images[:-1] * (1 - share),
        targets[1:] * share + targets[:-1] * (1 - share),
    )
