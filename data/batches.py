"""Decoded photos as batches on the device: gathered, cropped, resized and normalised there."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from config import Config

# ImageNet's, as pretrained weights expect (but efficientnet_v2_l's: 0.5); also used from scratch.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Normalise = Callable[[Tensor], Tensor]
TRIES = 10  # to draw a crop that fits, as in torchvision


def cached_side(image_size: int) -> int:
    """The resolution to decode to for networks that see `image_size` pixels: 256 for the usual 224,
    and twice the size of small images, so that a crop shows detail and not just larger pixels."""
    return max(round(image_size * 8 / 7), min(2 * image_size, 256))


def eval_batch(side: int) -> int:
    """How many photos of `side` decoded pixels to evaluate at a time: 128, fewer of large ones."""
    return max(1, min(128, 128 * 256**2 // side**2))


def to_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Photos (N, side, side, 3) uint8, on a GPU with room for twice as many, else memory-mapped."""
    with warnings.catch_warnings(action="ignore"):  # the array is read-only; nothing writes to it
        mapped = torch.from_numpy(pixels)
    fits = device.type == "cuda" and 2 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]
    return mapped.to(device) if fits else mapped


def crop_and_resize(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut `boxes` out of `photos` and resize them to squares, bilinear and antialiased, as Pillow's
    `crop` and `resize` do to within two grey levels.

    photos: (N, side, side, 3) uint8
    boxes: (N, 4) int64 top, bottom, left, right in pixels; right < left mirrors
    Returns (N, 3, size, size) float32 in 0..255, channels_last in memory.
    """
    crop = crop_on_cpu if photos.device.type == "cpu" else crop_by_matmul
    return crop(photos, boxes, size).contiguous(memory_format=torch.channels_last)


def crop_on_cpu(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What crop_and_resize does, on a CPU: PyTorch has vector code for one uint8 image."""
    crops = []
    for photo, (top, bottom, left, right) in zip(photos, boxes.tolist(), strict=True):
        cut = photo[top:bottom, min(left, right) : max(left, right)].permute(2, 0, 1)[None]
        crop = interpolate(cut, (size, size), mode="bilinear", antialias=True)
        crops.append(crop.flip(3) if right < left else crop)
    return torch.cat(crops).float()


def crop_by_matmul(photos: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What crop_and_resize does, on a GPU: rows · photo · columns, two matrix products a batch."""
    count, side, _, _ = photos.shape
    rows = resampling(boxes[:, 0], boxes[:, 1], side, size)
    columns = resampling(boxes[:, 2], boxes[:, 3], side, size)
    half = rows @ photos.view(count, side, side * 3).float()
    half = half.view(count, size, side, 3).transpose(2, 3).reshape(count, size * 3, side)
    whole = half @ columns.transpose(1, 2)
    return whole.view(count, size, 3, size).transpose(1, 2)


def resampling(low: Tensor, high: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source) float32 matrices that resample the stretch low..high of an axis.

    low, high: (N,) positions between source pixels; high < low mirrors
    Each row holds the weights of a target pixel, which sum to 1: bilinear, widened to its footprint
    when shrinking (antialiased, as Pillow's `resize`), none outside of the stretch.
    """
    step = (high - low) / size
    centre = low[:, None] + (torch.arange(size, device=low.device) + 0.5) * step[:, None]
    reach = step.abs().clamp(min=1)[:, None, None]
    position = torch.arange(source, device=low.device) + 0.5
    weights = (1 - (position - centre[:, :, None]).abs() / reach).clamp_(min=0)
    weights *= ((position > low[:, None]) != (position > high[:, None]))[:, None]
    return weights / weights.sum(2, keepdim=True)


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalise:
    """Takes images of levels 0..255 to (x/255 − mean)/std, as the networks take them, in place."""
    centre, spread = torch.tensor([mean, std], device=device).view(2, 1, 3, 1, 1)
    gain, offset = 1 / (255 * spread), -centre / spread
    return lambda images: images.mul_(gain).add_(offset)


def whole_images(photos: Tensor, size: int, normalise: Normalise) -> Tensor:
    """(N, side, side, 3) uint8 photos as evaluation sees them: (N, 3, size, size), normalised."""
    boxes = torch.tensor([[0, photos.shape[1]] * 2], device=photos.device).expand(len(photos), 4)
    return normalise(crop_and_resize(photos, boxes, size))


def gather(pixels: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Photos by their row numbers, on the device; copied from the host through pinned memory."""
    if pixels.device.type == device.type:  # not the devices: a tensor on `cuda` names `cuda:0`
        return pixels[rows]
    return pixels[rows].pin_memory().to(device, non_blocking=True)


class TrainBatches:
    """Shuffled, augmented batches. An epoch drops its incomplete last batch: one of a few photos
    would disturb the statistics of BatchNorm. Every epoch draws its order, crops, flips and mixing
    weights on the host, from a generator seeded by (seed, epoch), so that a resumed run repeats
    them on any device. `shard` is this process's part of each batch. Label -1 means unlabelled."""

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
        self.pixels, self.rows, self.labels, self.device = pixels, rows, labels, device
        self.classes, self.config, self.known = classes, config, labels >= 0
        self.shard = range(*shard.indices(config.batch_size))
        # Labelled photos per batch: equally many per shard, because the shards' means are averaged.
        self.labelled, shards = config.batch_size, config.batch_size // len(self.shard)
        if not self.known.all():
            share = round(self.known.mean() * len(self.shard))
            self.labelled = shards * min(max(share, 1), len(self.shard) - 1)
        # Of mixed targets, so that the mean loss over a batch is that over its labelled photos.
        self.scale = config.batch_size / self.labelled
        self.normalise = normaliser(MEAN, STD, device)

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.labels) // self.config.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches or shards: images (B, 3, S, S) and labels (B,) int64, or mixed (B, classes)."""
        batch_size, alpha = self.config.batch_size, self.config.mixup
        count = len(self) * batch_size
        rng = np.random.Generator(np.random.PCG64([self.config.seed, number]))
        order = draw_order(rng, self.known, batch_size, self.labelled)
        drawn = random_boxes(rng, count, self.pixels.shape[1], self.config.crop_scale)
        lams = rng.beta(alpha, alpha, len(self)).tolist() if alpha else [1.0] * len(self)
        # To be mixed, a photo needs the one before it in the batch, and the first needs the last.
        places = np.arange(self.shard.start - bool(alpha), self.shard.stop) % batch_size
        mine = (np.arange(0, count, batch_size)[:, None] + places).ravel()
        which = order[mine]
        boxes = torch.from_numpy(drawn[mine]).to(self.device).split(len(places))
        labels = torch.from_numpy(self.labels[which]).to(self.device).split(len(places))
        batches = torch.from_numpy(self.rows[which]).to(self.pixels.device).split(len(places))
        for rows, box, truth, lam in zip(batches, boxes, labels, lams, strict=True):
            photos = gather(self.pixels, rows, self.device)
            images = self.normalise(crop_and_resize(photos, box, self.config.image_size))
            if alpha:
                targets = one_hot(truth.clamp(min=0), self.classes) * self.scale
                yield mixup(images, lam), mixup(targets * (truth >= 0)[:, None], lam)
            else:
                yield images, truth


class EvalBatches:
    """Every photo of a split once, whole and in order: neither augmented nor dropped."""

    def __init__(
        self, pixels: Tensor, rows: np.ndarray, labels: np.ndarray, size: int, device: torch.device
    ) -> None:
        self.pixels, self.size, self.device = pixels, size, device
        self.rows = torch.from_numpy(rows).to(pixels.device)
        self.labels = torch.from_numpy(labels).to(device)
        self.normalise = normaliser(MEAN, STD, device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, 3, size, size) float32 and labels (B,) int64."""
        count = eval_batch(self.pixels.shape[1])
        for rows, truth in zip(self.rows.split(count), self.labels.split(count), strict=True):
            photos = gather(self.pixels, rows, self.device)
            yield whole_images(photos, self.size, self.normalise), truth


def draw_order(
    rng: np.random.Generator, known: np.ndarray, batch_size: int, labelled: int
) -> np.ndarray:
    """Photo indices in the order of an epoch's batches: a random permutation. If some labels are
    not `known`, each batch has `labelled` photos with a label, evenly spaced; either kind comes in
    random order, reshuffled once used up, and the epoch stays as long as with all labels known."""
    if known.all():
        return rng.permutation(len(known))
    steps, place = len(known) // batch_size, np.arange(batch_size)
    places = (place + 1) * labelled // batch_size > place * labelled // batch_size
    order = np.empty((steps, batch_size), np.int64)
    for here, kind in ((places, known), (~places, ~known)):
        photos, count = np.flatnonzero(kind), steps * here.sum()
        passes = [rng.permutation(photos) for _ in range(-(-count // len(photos)))]
        order[:, here] = np.concatenate(passes)[:count].reshape(steps, -1)
    return order.ravel()


def random_boxes(rng: np.random.Generator, count: int, side: int, smallest: float) -> np.ndarray:
    """(count, 4) int64 top, bottom, left, right of random crops, in pixels of photos with sides of
    `side`; half of them are mirrored, with right < left. Distributed as those of torchvision's
    RandomResizedCrop(scale=(smallest, 1)) (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842):
    of at least `smallest` of the area, 3:4 to 4:3; the whole photo if none of TRIES fits."""
    area = rng.uniform(smallest, 1, (count, TRIES)) * side**2
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, TRIES)))
    sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 2).round().astype(np.int64)
    fits = (sizes.min(2) >= 1) & (sizes.max(2) <= side)
    height, width = np.where(fits.any(1), sizes[np.arange(count), fits.argmax(1)].T, side)
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    ends = np.where(rng.uniform(0, 1, count) < 0.5, (left + width, left), (left, left + width))
    return np.stack([top, top + height, *ends], 1)


def mixup(values: Tensor, lam: float) -> Tensor:
    """Blend all but the first photo or target with the one before it, which is random in a shuffled
    batch (mixup, Zhang et al. 2017, https://arxiv.org/abs/1710.09412)."""
    return values[1:] * lam + values[:-1] * (1 - lam)
