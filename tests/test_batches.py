"""Batches: pixels as Pillow makes them, every photo with its own label, repeatable epochs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from config import Config
from data.batches import (
    EvalBatches,
    TrainBatches,
    cached_side,
    crop_by_matmul,
    crop_on_cpu,
    eval_batch,
    random_boxes,
    to_device,
)

# Not equal to the tensors' own device, `cpu`, just as `cuda` is not equal to `cuda:0` on a GPU.
CPU = torch.device("cpu", 0)


def noise(count: int, side: int) -> np.ndarray:
    """Photos of smooth and of hard edges."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, -(-side // 5), -(-side // 5), 3))
    large = coarse.repeat(5, 1).repeat(5, 2)[:, :side, :side]
    return (large + draw.integers(-20, 21, large.shape)).clip(0, 255).astype(np.uint8)


def by_pillow(photo: np.ndarray, box: list[int], size: int) -> torch.Tensor:
    top, bottom, left, right = box
    cut = Image.fromarray(photo).crop((left, top, right, bottom))
    resized = cut.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


@pytest.mark.parametrize("crop", [crop_on_cpu, crop_by_matmul])
@given(st.data(), st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_any_crop_is_pillows_within_two_grey_levels(crop, data, side, size, mirrored):
    ends = st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True).map(sorted)
    top, bottom, left, right = box = [*data.draw(ends), *data.draw(ends)]
    photo = noise(1, side)
    expected = by_pillow(photo[0], box, size)
    if mirrored:
        box, expected = [top, bottom, right, left], expected.flip(2)
    crops = crop(torch.from_numpy(photo), torch.tensor([box]), size)
    torch.testing.assert_close(crops[0], expected, atol=2.01, rtol=0)  # both round, some twice


def test_photos_are_decoded_at_the_size_of_the_images_or_larger():
    assert [cached_side(size) for size in (8, 64, 128, 224, 448)] == [16, 128, 256, 256, 512]
    assert [eval_batch(side) for side in (16, 256, 512, 1170, 4681)] == [128, 128, 32, 6, 1]


def test_on_the_cpu_photos_stay_in_their_file(tmp_path):
    np.save(tmp_path / "pixels.npy", noise(9, 12))
    mapped, rows = np.load(tmp_path / "pixels.npy", mmap_mode="r"), np.arange(9)
    pixels = to_device(mapped, CPU)
    train = TrainBatches(pixels, rows, rows, 9, CONFIG, CPU)
    for batches in (train, EvalBatches(pixels, rows, rows, 8, CPU)):
        assert batches.pixels.data_ptr() == mapped.ctypes.data


# The red level is the number of the photo, the green level ten times its class; blue has edges.
PHOTOS, CLASSES = 23, 4
LABELS = np.arange(PHOTOS) * 7 % CLASSES
CONFIG = Config(image_size=6, batch_size=5, seed=3)


def train_batches(config: Config = CONFIG) -> TrainBatches:
    """The first row of the pixels is no photo, as where a file could not be read."""
    pixels, rows = noise(PHOTOS + 1, 12), np.arange(1, PHOTOS + 1)
    pixels[rows, :, :, 0] = np.arange(PHOTOS)[:, None, None]
    pixels[rows, :, :, 1] = 10 * LABELS[:, None, None]
    return TrainBatches(torch.from_numpy(pixels), rows, LABELS, CLASSES, config, CPU)


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Images before they were normalised by what ImageNet's weights expect."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (images * std + mean) * 255


def test_an_epoch_has_every_photo_at_most_once_with_its_own_label():
    batches, ever = train_batches(), set[int]()
    for epoch in range(12):
        seen: list[int] = []
        for images, labels in batches.epoch(epoch):
            assert images.shape == (5, 3, 6, 6)
            assert images.is_contiguous(memory_format=torch.channels_last)
            numbers = grey_levels(images)[:, 0, 0, 0].round().int().tolist()
            assert labels.tolist() == [LABELS[number] for number in numbers]
            seen += numbers
        assert len(seen) == len(set(seen)) == 5 * len(batches) == 20
        assert seen != sorted(seen)
        ever |= set(seen)
    assert ever == set(range(PHOTOS))


def whole_epoch(number: int, **changed) -> torch.Tensor:
    """All images of an epoch."""
    batches = train_batches(replace(CONFIG, **changed))
    list(batches.epoch(number + 1))  # what was drawn before has no influence
    return torch.cat([images for images, _ in batches.epoch(number)])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_an_epoch_depends_on_the_seed_and_its_number_alone(mixup):
    torch.manual_seed(1)
    first = whole_epoch(1, seed=0, mixup=mixup)
    torch.manual_seed(2)
    assert torch.equal(first, whole_epoch(1, seed=0, mixup=mixup))
    for seed, number in ((0, 2), (1, 1), (1, 0)):  # (seed, epoch), not their sum
        assert not torch.equal(first, whole_epoch(number, seed=seed, mixup=mixup))
    assert not torch.equal(first, whole_epoch(1, seed=0, mixup=mixup, crop_scale=0.08))


def test_mixed_targets_say_how_the_photos_were_mixed():
    largest = []
    for epoch in range(5):
        for images, targets in train_batches(replace(CONFIG, mixup=0.5)).epoch(epoch):
            torch.testing.assert_close(targets.sum(1), torch.ones(5))
            # Green is ten times the class, so the mean class of the target is in the photo.
            mean_class = targets @ torch.arange(CLASSES).float()
            green = grey_levels(images)[:, 1, 0, 0]
            torch.testing.assert_close(green, 10 * mean_class, atol=1e-3, rtol=1e-4)
            largest.append(targets.amax(1).min().item())
    assert len(set(largest)) > 15  # a weight of its own for each batch
    assert min(largest) < 0.6


@pytest.mark.parametrize("count", [1, 128, 129])
def test_evaluation_has_each_photo_once_whole_in_order_and_normalised(count):
    photos, labels = noise(count, 20), np.arange(count) * 7 % CLASSES
    rows = np.random.default_rng(0).permutation(count)
    batches = EvalBatches(torch.from_numpy(photos), rows, labels, 12, CPU)
    expected = torch.stack([by_pillow(photos[row], [0, 20, 0, 20], 12) for row in rows])
    for _ in range(2):
        images, truth = (torch.cat(column) for column in zip(*batches, strict=True))
        torch.testing.assert_close(grey_levels(images), expected, atol=1.01, rtol=0)
        assert truth.tolist() == labels.tolist()
    assert next(iter(batches))[0].is_contiguous(memory_format=torch.channels_last)


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0.01, 1))
def test_crops_lie_in_the_photo_and_cover_the_share_that_was_asked_for(seed, side, smallest):
    boxes = random_boxes(np.random.default_rng(seed), 50, side, smallest)
    assert 0 <= boxes.min() <= boxes.max() <= side
    height, width = boxes[:, 1] - boxes[:, 0], np.abs(boxes[:, 3] - boxes[:, 2])
    assert min(height.min(), width.min()) >= 1
    # Each side is rounded to a pixel, by half of one at most.
    assert ((height + 0.5) * (width + 0.5)).min() >= smallest * side**2
    short, long = np.minimum(height, width), np.maximum(height, width)
    assert ((long - 0.5) / (short + 0.5)).max() <= 4 / 3


@pytest.mark.parametrize("smallest", [0.08, 0.35, 0.8])
def test_crops_are_distributed_as_torchvisions(smallest):
    """Two-sample Kolmogorov-Smirnov: 0.03 is passed by chance once in 2,500 for each quantity."""
    count, side = 10_000, 128
    boxes = random_boxes(np.random.default_rng(0), count, side, smallest)
    torch.manual_seed(0)
    photo, params = torch.empty(3, side, side), RandomResizedCrop.get_params
    theirs = np.array([params(photo, [smallest, 1], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = boxes[:, 0], boxes[:, 2:].min(1), boxes[:, 1] - boxes[:, 0], np.ptp(boxes[:, 2:], 1)

    def quantities(top, left, height, width):
        return height * width, width / height, top, left, side - height - 2 * top

    for pair in zip(quantities(*ours), quantities(*theirs.T), strict=True):
        shares = [np.searchsorted(np.sort(one), np.union1d(*pair), "right") / count for one in pair]
        assert np.abs(shares[0] - shares[1]).max() < 0.03
    assert 0.48 < (boxes[:, 3] < boxes[:, 2]).mean() < 0.52
