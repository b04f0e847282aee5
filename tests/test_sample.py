"""The drawn sample: whole, and classified by shapes."""

import numpy as np
from PIL import Image

from data.duplicates import group_duplicates, signature
from data.sample import TEXTURES, draw_photo, draw_sample


def test_each_class_has_its_photos_as_jpegs(tmp_path):
    folder = draw_sample(tmp_path)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert found == {f"{name}/{number:04}.jpg" for name in TEXTURES for number in range(48)}
    saved, drawn = Image.open(folder / "snow/0002.jpg"), draw_photo("snow", 2)
    assert np.abs(np.asarray(saved, int) - np.asarray(drawn, int)).mean() < 5


def held_out_accuracy(features: np.ndarray) -> float:
    """Accuracy of a linear model of features (528, D) on each fourth photo."""
    features = (features - features.mean(0)) / features.std(0)
    labels, test = np.repeat(np.eye(11), 48, axis=0), np.arange(528) % 4 == 0
    weight = np.linalg.pinv(features[~test], rcond=0.1) @ labels[~test]
    return np.mean((features[test] @ weight).argmax(1) == labels[test].argmax(1))


def test_shapes_identify_the_class_and_the_mean_colour_does_not():
    photos = [draw_photo(name, number) for name in TEXTURES for number in range(48)]
    pixels = np.array([np.asarray(photo) for photo in photos]) / 255
    assert held_out_accuracy((pixels.mean((1, 2))[..., None] ** [0.5, 1, 2]).reshape(528, 9)) < 0.6
    spectrum = np.log(np.abs(np.fft.rfft2(pixels.mean(3))) + 0.1)[..., 1:]
    assert held_out_accuracy(spectrum.reshape(528, 12, 8, 6, 8).mean((2, 4)).reshape(528, 72)) > 0.6
    assert len(np.unique(group_duplicates(np.stack([signature(p) for p in photos])))) == 528
