"""Decoded photos as batches on the device: gathered, cropped, resized and normalised there.

    pixels = to_device(decoded.pixels, device, "auto")
    train = TrainBatches(pixels, rows, labels, 11, config, device)   # train.epoch(3) is repeatable
    val = EvalBatches(pixels, rows, labels, config.image_size, device)

Cropping, flipping and antialiased resizing of one photo is a product with two small matrices,
rows · photo · columns, so on a GPU a whole batch of different crops is two batched matrix products.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from config import Config

# Of ImageNet, since its weights expect photos that are normalised so; also used from scratch.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
EVAL_BATCH = 128
TRIES = 10  # to draw a crop that fits, as torchvision does


def cached_side(image_size: int) -> int:
    """The resolution to decode to for networks that see `image_size` pixels.

    Crops are cut from it and enlarged or reduced to `image_size`: 256 for the usual 224, and for
    small images twice their size, so that a crop shows detail and not just larger pixels.
    """
    return max(round(image_size * 8 / 7), min(2 * image_size, 256))


def to_device(pixels: np.ndarray, device: torch.device, where: str) -> Tensor:
    """The (N, side, side, 3) uint8 photos as a tensor: on the device, or left on the host.

    `where` is `device`, `host` or `auto`, which copies them to a GPU if they need less than half of
    its free memory. On the CPU nothing is copied: the tensor is the memory map.
    """
    with warnings.catch_warnings():
        # torch cannot keep a read-only array from being written to; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        mapped = torch.from_numpy(pixels)
    if device.type == "cpu" or where == "host":
        return mapped
    if where == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if pixels.nbytes > free / 2:
            return mapped
    return mapped.to(device)


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


def growing_side(epoch: int, config: Config) -> int:
    """Side of the training images in an epoch, counted from 1: from `grow_from` of `image_size` it
    grows to all of it, which the last fifth of the epochs have, to fit the network to whole photos.

    In steps of 16 pixels: for every new size a GPU has to record its training step again.
    """
    side, grow = config.image_size, 0.8 * config.epochs
    if epoch >= grow:
        return side
    smallest = max(1, round(config.grow_from * side))
    return smallest + math.floor((side - smallest) * (epoch - 1) / (grow - 1) / 16) * 16


class Normalise:
    """uint8 levels 0..255 to the (x/255 − mean)/std that the networks take, in place."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        spread = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.gain = 1 / (255 * spread)
        self.offset = -torch.tensor(mean, device=device).view(1, 3, 1, 1) / spread

    def __call__(self, images: Tensor) -> Tensor:
        return images.mul_(self.gain).add_(self.offset)


def whole_images(photos: Tensor, size: int, normalise: Normalise) -> Tensor:
    """(N, side, side, 3) uint8 photos as evaluation shows them to a network: (N, 3, size, size)
    float32, resized and normalised."""
    side = photos.shape[1]
    boxes = torch.tensor([[0, side, 0, side]], device=photos.device).expand(len(photos), 4)
    return normalise(crop_and_resize(photos, boxes, size))


def gather(pixels: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Photos by their row numbers, on the device.

    From the host they come through pinned memory, while the device is busy with the last batch.
    """
    # Types, since a tensor on `cuda` says that it is on `cuda:0`.
    if pixels.device.type == device.type:
        return pixels[rows]
    return pixels[rows].pin_memory().to(device, non_blocking=True)


class TrainBatches:
    """Shuffled, augmented batches; `epoch(n)` depends on the seed and n alone.

    Every epoch draws its order, crops, flips and mixing weights at once, on the host, from one
    generator seeded by (seed, epoch), so that a resumed run repeats them on any device. Photos
    beyond the last full batch wait for another epoch: batches of a few photos would only disturb
    the BatchNorm statistics. `shard` is the part of each batch that this process makes, where
    several make one batch; by default all.
    """

    def __init__(
        self,
        pixels: Tensor,
        rows: np.ndarray,
        labels: np.ndarray,
        classes: int,
        config: Config,
        device: torch.device,
        shard: slice = slice(None),
    ) -> None:
        self.pixels, self.device = pixels, device
        self.rows = torch.from_numpy(rows).to(pixels.device)
        self.labels = torch.from_numpy(labels).to(device)
        self.classes, self.config = classes, config
        self.shard = range(*shard.indices(config.batch_size))
        self.normalise = Normalise(MEAN, STD, device)

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self.labels) // self.config.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches, or shards of them, of images (B, 3, size, size) float32 and labels: (B,) int64,
        or mixed (B, classes) float32."""
        batch_size, alpha = self.config.batch_size, self.config.mixup
        count = len(self) * batch_size
        rng = np.random.Generator(np.random.PCG64([self.config.seed, number]))
        order = rng.permutation(len(self.labels))
        drawn = random_boxes(rng, count, self.pixels.shape[1], self.config.crop_scale)
        lams = rng.beta(alpha, alpha, len(self)) if alpha else None
        # To be mixed, a photo needs the one before it in the batch, and the first needs the last.
        places = np.arange(self.shard.start - bool(alpha), self.shard.stop) % batch_size
        mine = (np.arange(0, count, batch_size)[:, None] + places).ravel()
        which = torch.from_numpy(order[mine]).to(self.rows.device)
        boxes = torch.from_numpy(drawn[mine]).to(self.device).split(len(places))
        labels = self.labels[which.to(self.device)].split(len(places))
        batches = self.rows[which].split(len(places))
        size = growing_side(number, self.config)
        for step, (rows, box, truth) in enumerate(zip(batches, boxes, labels, strict=True)):
            photos = gather(self.pixels, rows, self.device)
            images = self.normalise(crop_and_resize(photos, box, size))
            if lams is None:
                yield images, truth
            else:
                yield mixup(images, one_hot(truth, self.classes).float(), float(lams[step]))


class EvalBatches:
    """Every photo of a split once, whole and in order: neither augmented nor dropped."""

    def __init__(
        self, pixels: Tensor, rows: np.ndarray, labels: np.ndarray, size: int, device: torch.device
    ) -> None:
        self.pixels, self.size, self.device = pixels, size, device
        self.rows = torch.from_numpy(rows).to(pixels.device)
        self.labels = torch.from_numpy(labels).to(device)
        self.normalise = Normalise(MEAN, STD, device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, 3, size, size) float32 and labels (B,) int64."""
        batches = zip(self.rows.split(EVAL_BATCH), self.labels.split(EVAL_BATCH), strict=True)
        for rows, truth in batches:
            photos = gather(self.pixels, rows, self.device)
            yield whole_images(photos, self.size, self.normalise), truth


def random_boxes(rng: np.random.Generator, count: int, side: int, smallest: float) -> np.ndarray:
    """(count, 4) int64 top, bottom, left, right, in pixels of photos with sides of `side`, of
    random crops; half of them are mirrored, with right < left.

    Distributed as torchvision's RandomResizedCrop(scale=(smallest, 1)) has them (Szegedy et al.
    2014, https://arxiv.org/abs/1409.4842): the area is between `smallest` and all of the photo's,
    the aspect ratio between 3/4 and 4/3. Both are drawn again where the crop does not fit into the
    photo; after ten tries it is the whole photo.
    """
    area = rng.uniform(smallest, 1, (count, TRIES)) * side**2
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, TRIES)))
    sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 2).round().astype(np.int64)
    fits = (sizes.min(2) >= 1) & (sizes.max(2) <= side)
    sizes[:, -1][~fits.any(1)] = side
    fits[:, -1] |= ~fits.any(1)
    height, width = sizes[np.arange(count), fits.argmax(1)].T
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    mirrored = rng.uniform(0, 1, count) < 0.5
    right = left + width
    left, right = np.where(mirrored, right, left), np.where(mirrored, left, right)
    return np.stack([top, top + height, left, right], 1)


def mixup(images: Tensor, targets: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Blend each photo but the first, and its target, with the one before it, which is a random
    one in a batch of random order (mixup, Zhang et al. 2017, https://arxiv.org/abs/1710.09412)."""
    return (
        images[1:] * lam + images[:-1] * (1 - lam),
        targets[1:] * lam + targets[:-1] * (1 - lam),
    )
