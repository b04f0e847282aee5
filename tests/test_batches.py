"""Batches: pixels as Pillow would make them, every photo with its own label, each epoch again."""

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from data.batches import (
    EvalBatches,
    Normalise,
    TrainBatches,
    cached_side,
    crop_and_resize,
    crops_as_products,
    crops_one_by_one,
    growing_side,
    place,
    random_boxes,
    resampling,
)
from tests.faults import anonymous_megabytes

CPU = torch.device("cpu")
AS_THEY_ARE = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # mean and std: levels stay levels


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Photos of smooth and of hard edges."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, -(-side // 5), -(-side // 5), 3))
    large = coarse.repeat(5, 1).repeat(5, 2)[:, :side, :side]
    fine = draw.integers(-20, 21, (count, side, side, 3))
    return (large + fine).clip(0, 255).astype(np.uint8)


# The whole photo, corners, shrinking a lot, enlarging, one pixel wide, far from square.
BOXES = [
    (0, 40, 0, 40), (0, 20, 0, 20), (20, 40, 20, 40), (4, 36, 1, 39),
    (10, 14, 30, 35), (12, 13, 0, 40), (0, 40, 39, 40), (5, 38, 7, 11),
]  # fmt: skip
both_ways = pytest.mark.parametrize("crop", [crops_one_by_one, crops_as_products])


def by_pillow(photo: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    top, bottom, left, right = box
    cut = Image.fromarray(photo).crop((left, top, right, bottom))
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR), np.float32)


@both_ways
@pytest.mark.parametrize("size", [1, 7, 16, 40, 64])
def test_crops_are_those_of_pillow_within_a_grey_level(crop, size):
    photos = noise(len(BOXES), 40)
    crops = crop(torch.from_numpy(photos), torch.tensor(BOXES), size)
    assert crops.shape == (len(BOXES), 3, size, size)
    assert crops.dtype == torch.float32
    for photo, box, made in zip(photos, BOXES, crops, strict=True):
        difference = made.permute(1, 2, 0).numpy() - by_pillow(photo, box, size)
        assert np.abs(difference).max() <= 1.01


@both_ways
@given(data=st.data(), side=st.integers(1, 30), size=st.integers(1, 30))
def test_any_box_is_cut_as_pillow_does(crop, data, side, size):
    places = st.integers(0, side)
    corners = st.tuples(places, places).filter(lambda pair: pair[0] != pair[1])
    top, bottom = sorted(data.draw(corners))
    left, right = sorted(data.draw(corners))
    photo = noise(1, side)
    boxes = torch.tensor([[top, bottom, left, right]])
    made = crop(torch.from_numpy(photo), boxes, size)[0].permute(1, 2, 0).numpy()
    assert np.abs(made - by_pillow(photo[0], (top, bottom, left, right), size)).max() <= 1.01


@both_ways
def test_a_box_from_right_to_left_gives_the_mirror_image(crop):
    photos, boxes = torch.from_numpy(noise(len(BOXES), 40)), torch.tensor(BOXES)
    mirrored = crop(photos, boxes[:, [0, 1, 3, 2]], 24)
    straight = crop(photos, boxes, 24)
    assert (straight - straight.flip(3)).abs().max() > 20
    torch.testing.assert_close(mirrored, straight.flip(3), atol=1e-2, rtol=0)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 50), st.integers(1, 50))
def test_the_weights_of_a_pixel_sum_to_one(start, end, source, size):
    low = torch.tensor([round(start * (source - 1))])
    high = torch.tensor([max(round(end * source), int(low) + 1)])
    weights = resampling(low, high, source, size)
    assert weights.shape == (1, size, source)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(2), torch.ones(1, size))


@both_ways
def test_a_whole_photo_at_its_own_size_comes_back_exactly(crop):
    photos = torch.from_numpy(noise(3, 16))
    whole = torch.tensor([[0, 16, 0, 16]]).expand(3, 4)
    same = crop(photos, whole, 16)
    assert torch.equal(same, photos.permute(0, 3, 1, 2).float())
    same = crop_and_resize(photos, whole, 16)
    assert same.is_contiguous(memory_format=torch.channels_last)


@both_ways
def test_crops_are_exact_also_where_networks_compute_in_bfloat16(crop):
    photos, boxes = torch.from_numpy(noise(2, 40)), torch.tensor(BOXES[3:5])
    expected = crop(photos, boxes, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crops = crop(photos, boxes, 24)
    assert crops.dtype == torch.float32
    assert torch.equal(crops, expected)


def test_normalising_is_mean_and_spread_of_the_levels_over_255():
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
    images = torch.tensor([255.0, 0.0, 51.0]).view(1, 3, 1, 1)
    expected = torch.tensor([1.0, -1.0, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(Normalise(mean, std, CPU)(images), expected)


@given(st.integers(8, 4096))
def test_the_cache_is_never_coarser_than_what_the_network_sees(image_size):
    assert cached_side(image_size) >= image_size
    assert cached_side(image_size) <= 2 * image_size


def test_the_cache_has_room_for_crops():
    assert cached_side(224) == 256
    assert cached_side(64) == 128


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_on_the_cpu_photos_stay_in_the_file(tmp_path, where):
    np.save(tmp_path / "pixels.npy", noise(2, 8))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    placed = place(pixels, CPU, where)
    assert placed.data_ptr() == pixels.ctypes.data
    assert np.array_equal(placed.numpy(), noise(2, 8))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    """20,000 photos of 12 kB, a quarter of a gigabyte, pass through and none is kept."""
    shape = (20_000, 64, 64, 3)
    file = np.lib.format.open_memmap(tmp_path / "pixels.npy", "w+", np.uint8, shape)
    file[::100] = 77
    del file
    before = anonymous_megabytes()
    pixels = place(np.load(tmp_path / "pixels.npy", mmap_mode="r"), CPU, "auto")
    rows, labels = np.arange(len(pixels)), np.arange(len(pixels)) % 3
    common: dict[str, Any] = {"normalise": Normalise(*AS_THEY_ARE, CPU), "device": CPU}
    train = TrainBatches(
        pixels, rows, labels, classes=3, size_in=lambda _: 8, batch_size=100, seed=0,
        crop_scale=0.35, mixup=0.0, **common,
    )  # fmt: skip
    peaks = [anonymous_megabytes() for _ in train.epoch(1)]
    peaks += [anonymous_megabytes() for _ in EvalBatches(
        pixels, rows, labels, size=8, batch_size=100, **common
    )]  # fmt: skip
    assert len(peaks) == 400
    assert max(peaks) < before + 100


# Photos of one colour each, which tells the row and through it the label: the red level is the
# number of the photo, the green level ten times its class.
PHOTOS, CLASSES = 23, 4
LABELS = np.arange(PHOTOS) * 7 % CLASSES


def telling_pixels() -> torch.Tensor:
    """One row more than there are photos at the start, as where a file could not be read."""
    pixels = np.zeros((PHOTOS + 1, 12, 12, 3), np.uint8)
    pixels[1:, :, :, 0] = np.arange(PHOTOS)[:, None, None]
    pixels[1:, :, :, 1] = 10 * LABELS[:, None, None]
    pixels[0] = 255
    return torch.from_numpy(pixels)


def train_batches(**others) -> TrainBatches:
    settings: dict[str, Any] = {
        "classes": CLASSES, "size_in": lambda _: 6, "batch_size": 5, "seed": 3, "crop_scale": 0.35,
        "mixup": 0.0, "normalise": Normalise(*AS_THEY_ARE, CPU), "device": CPU,
    } | others  # fmt: skip
    return TrainBatches(telling_pixels(), np.arange(1, PHOTOS + 1), LABELS, **settings)


def eval_batches(**others) -> EvalBatches:
    settings: dict[str, Any] = {
        "size": 6, "batch_size": 5, "normalise": Normalise(*AS_THEY_ARE, CPU), "device": CPU,
    } | others  # fmt: skip
    return EvalBatches(telling_pixels(), np.arange(1, PHOTOS + 1), LABELS, **settings)


def numbers_of(images: torch.Tensor) -> list[int]:
    """Which photos these are; each is of one colour still."""
    torch.testing.assert_close(images, images[:, :, :1, :1].expand_as(images), atol=1e-3, rtol=0)
    return images[:, 0, 0, 0].round().int().tolist()


def test_an_epoch_shows_every_photo_at_most_once_with_its_own_label():
    batches, seen = train_batches(), list[int]()
    assert len(batches) == PHOTOS // 5
    for images, labels in batches.epoch(1):
        assert images.shape == (5, 3, 6, 6)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        torch.testing.assert_close(images[:, 1, 0, 0], 10.0 * labels, atol=1e-3, rtol=0)
        assert labels.tolist() == [LABELS[number] for number in numbers_of(images)]
        seen += numbers_of(images)
    assert len(seen) == len(set(seen)) == PHOTOS // 5 * 5
    assert seen != sorted(seen)


def test_photos_left_over_in_one_epoch_have_their_turn_in_another():
    batches = train_batches()
    epochs = [torch.cat([images for images, _ in batches.epoch(epoch)]) for epoch in range(12)]
    assert set(numbers_of(torch.cat(epochs))) == set(range(PHOTOS))


def first_batches(seed: int, epoch: int, **others) -> torch.Tensor:
    """All images of an epoch over photos that are not of one colour."""
    batches = TrainBatches(
        torch.from_numpy(noise(PHOTOS, 12)), np.arange(PHOTOS), LABELS, classes=CLASSES,
        size_in=lambda _: 6, batch_size=5, seed=seed, crop_scale=0.35,
        normalise=Normalise(*AS_THEY_ARE, CPU), device=CPU, **{"mixup": 0.0} | others,
    )  # fmt: skip
    list(batches.epoch(epoch + 1))  # what was drawn before has no influence
    return torch.cat([images for images, _ in batches.epoch(epoch)])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_an_epoch_is_the_same_whenever_it_is_drawn_and_unlike_any_other(mixup):
    torch.manual_seed(1)
    once = first_batches(0, 1, mixup=mixup)
    torch.manual_seed(2)
    np.random.default_rng(2)
    assert torch.equal(once, first_batches(0, 1, mixup=mixup))
    others = [first_batches(0, 2, mixup=mixup), first_batches(1, 1, mixup=mixup)]
    others += [first_batches(1, 0, mixup=mixup)]  # (seed, epoch), not their sum
    for one, other in pairwise([once, *others]):
        assert not torch.equal(one, other)
    assert not torch.equal(once, others[1])


def test_each_photo_of_an_epoch_is_cropped_in_its_own_way():
    same = torch.from_numpy(noise(1, 48)).expand(PHOTOS, 48, 48, 3)
    batches = TrainBatches(
        same, np.arange(PHOTOS), LABELS, classes=CLASSES,
        size_in=lambda _: 6, batch_size=5, seed=0,
        crop_scale=0.35, mixup=0.0, normalise=Normalise(*AS_THEY_ARE, CPU), device=CPU,
    )  # fmt: skip
    crops = torch.cat([images for images, _ in batches.epoch(1)]).flatten(1)
    assert len(crops.unique(dim=0)) == len(crops) == 20


def test_half_of_the_training_crops_are_mirrored_and_none_is_turned():
    photo = np.zeros((PHOTOS, 12, 12, 3), np.uint8)
    photo[:, :, 6:] = 255  # dark on the left
    batches = TrainBatches(
        torch.from_numpy(photo), np.arange(PHOTOS), LABELS, classes=CLASSES,
        size_in=lambda _: 6, batch_size=23,
        seed=0, crop_scale=0.95, mixup=0.0, normalise=Normalise(*AS_THEY_ARE, CPU), device=CPU,
    )  # fmt: skip
    images = torch.cat([images for epoch in range(20) for images, _ in batches.epoch(epoch)])
    dark_left = (images[:, 0, :, 0].mean(1) < 100).double().mean().item()
    bright_left = (images[:, 0, :, 0].mean(1) > 155).double().mean().item()
    assert dark_left + bright_left == 1
    assert 0.4 < dark_left < 0.6  # half of them are mirrored: 4.3 standard deviations
    assert (images - images.flip(2)).abs().max() < 1e-2  # never upside down or turned


def test_mixed_targets_say_how_the_photos_were_mixed():
    shares = []
    for epoch in range(5):
        for images, targets in train_batches(mixup=0.5).epoch(epoch):
            assert targets.shape == (5, CLASSES)
            torch.testing.assert_close(targets.sum(1), torch.ones(5))
            # Green is ten times the class, so the mean class of the target is in the photo.
            classes = targets @ torch.arange(CLASSES).float()
            torch.testing.assert_close(images[:, 1, 0, 0], 10 * classes, atol=1e-3, rtol=1e-4)
            shares.append(targets.amax(1).min().item())
    assert len(set(shares)) > 15  # one share a batch
    assert min(shares) < 0.6


def test_without_mixup_labels_are_plain_numbers_of_classes():
    _, labels = next(train_batches(mixup=0.0).epoch(0))
    assert labels.shape == (5,)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_evaluation_shows_each_photo_once_whole_and_in_order(batch_size):
    batches = eval_batches(batch_size=batch_size)
    for _ in range(2):
        pairs = list(batches)
        assert [len(labels) for _, labels in pairs[:-1]] == [batch_size] * (len(pairs) - 1)
        images, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        assert numbers_of(images) == list(range(PHOTOS))
        assert labels.tolist() == LABELS.tolist()
    assert batches.photos == PHOTOS


def test_evaluation_resizes_the_whole_photo_and_normalises_it():
    photos = noise(3, 20)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    batches = EvalBatches(
        torch.from_numpy(photos), np.array([2, 0]), np.array([1, 0]), size=12, batch_size=2,
        normalise=Normalise(mean, std, CPU), device=CPU,
    )  # fmt: skip
    ((images, labels),) = batches
    assert labels.tolist() == [1, 0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, row in zip(images, [2, 0], strict=True):
        resized = Image.fromarray(photos[row]).resize((12, 12), Image.Resampling.BILINEAR)
        expected = (np.asarray(resized) / 255 - mean) / std
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1.01 / 255 / min(std)


def test_a_device_with_a_number_is_the_same_device():
    """A tensor sent to `cuda` says that it is on `cuda:0`; on the CPU it is the other way round."""
    numbered = torch.device("cpu", 0)
    assert numbered != telling_pixels().device
    images, labels = next(train_batches(device=numbered).epoch(1))
    expected, same_labels = next(train_batches().epoch(1))
    assert torch.equal(images, expected)
    assert torch.equal(labels, same_labels)


@given(st.integers(1, 200), st.integers(8, 512), st.floats(0.01, 1))
def test_images_grow_from_their_first_size_to_all_of_it_for_the_last_fifth(epochs, side, first):
    sides = [growing_side(n, epochs=epochs, side=side, first=first) for n in range(1, epochs + 1)]
    assert sides == sorted(sides)
    assert set(sides[math.ceil(0.8 * epochs) - 1 :]) == {side}
    if epochs > 2:
        assert sides[0] == max(1, round(first * side))
    assert all((later - sides[0]) % 16 == 0 for later in sides if later < side)


def test_training_images_have_the_size_of_their_epoch():
    small = [growing_side(n, epochs=15, side=64, first=0.5) for n in (1, 6, 7, 11, 12, 15)]
    assert small == [32, 32, 48, 48, 64, 64]
    batches = train_batches(size_in=lambda epoch: 4 + epoch)
    shapes = {images.shape[2:] for images, _ in batches.epoch(3)}
    assert shapes == {(7, 7)}
    # The same photos in the same order and from the same crops, whatever their size.
    for large, own in zip(batches.epoch(3), train_batches().epoch(3), strict=True):
        assert numbers_of(large[0]) == numbers_of(own[0])
        assert torch.equal(large[1], own[1])


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0.01, 1))
def test_boxes_lie_in_the_photo_and_cover_the_share_that_was_asked_for(seed, side, smallest):
    boxes = random_boxes(np.random.default_rng(seed), 50, side, smallest)
    assert boxes.dtype == np.int64
    assert boxes.min() >= 0
    assert boxes.max() <= side
    height, width = boxes[:, 1] - boxes[:, 0], np.abs(boxes[:, 3] - boxes[:, 2])
    assert min(height.min(), width.min()) >= 1
    # Each side is rounded to a pixel, by half of one at most.
    assert ((height + 0.5) * (width + 0.5)).min() >= smallest * side**2
    assert ((width - 0.5) / (height + 0.5)).max() <= 4 / 3
    assert ((height - 0.5) / (width + 0.5)).max() <= 4 / 3


@pytest.mark.parametrize("side", [8, 128, 256])
def test_at_scale_1_crops_are_whole_photos(side):
    top, bottom, left, right = random_boxes(np.random.default_rng(0), 1000, side, 1.0).T
    assert not top.any()
    assert set(bottom) == {side}
    assert {(int(a), int(b)) for a, b in zip(left, right, strict=True)} == {(0, side), (side, 0)}


@pytest.mark.parametrize("smallest", [0.08, 0.35, 0.8])
def test_crops_are_distributed_as_torchvisions(smallest):
    """Two-sample Kolmogorov-Smirnov: 0.03 is passed by chance once in 2,500 for each quantity."""
    count, side = 10_000, 128
    boxes = random_boxes(np.random.default_rng(0), count, side, smallest)
    torch.manual_seed(0)
    photo = torch.empty(3, side, side)
    params = RandomResizedCrop.get_params
    theirs = np.array([params(photo, [smallest, 1], [3 / 4, 4 / 3]) for _ in range(count)])
    top, left, height, width = theirs.T
    ours = boxes[:, 0], boxes[:, 2:].min(1), boxes[:, 1] - boxes[:, 0], np.ptp(boxes[:, 2:], 1)
    for quantity in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
        lambda top, left, height, width: (side - height - top) - top,
    ):
        first, second = np.sort(quantity(*ours)), np.sort(quantity(top, left, height, width))
        values = np.union1d(first, second)
        shares = [np.searchsorted(one, values, "right") / count for one in (first, second)]
        assert np.abs(shares[0] - shares[1]).max() < 0.03
    assert 0.48 < (boxes[:, 3] < boxes[:, 2]).mean() < 0.52


def test_threads_do_not_change_a_batch():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, min(2, os.cpu_count() or 1)):
            torch.set_num_threads(count)
            results.append(first_batches(0, 1))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=0)
