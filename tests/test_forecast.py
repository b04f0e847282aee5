"""How long training will take: counted by hand, and told once, early."""

from datetime import timedelta

import pytest

from config import Config, parse
from models.factory import create_model, multiply_adds
from tests.photo_folders import make_photos, training
from tests.toys import CLASSES, CPU, train_batches, val_batches
from utils.device import Device
from utils.engine import CrossEntropy, Training, fit
from utils.runs import forecast, prepare, work


def test_multiply_adds_match_published_counts():
    counts = {"resnet18": 1.814, "mobilenet_v3_small": 0.057, "vit_b_32": 4.409}
    for network, billions in counts.items():
        assert multiply_adds(network, 1000, 224) / 1e9 == pytest.approx(billions, abs=0.001)


def test_other_runs_take_as_long_as_their_multiply_adds(tmp_path, capsys):
    words = training(make_photos(tmp_path / "weather"), tmp_path, "--epochs", 3)
    small, large = prepare(parse([*words, "--models", "resnet18", "resnet50"], ""))
    side, classes = small.config.image_size, len(small.data.classes)
    ratio = multiply_adds("resnet50", classes, side) / multiply_adds("resnet18", classes, side)
    assert 2 < ratio < 3  # 4.1 against 1.8 billion at 224 px
    steps, whole = work(small)
    assert work(large) == pytest.approx((ratio * steps, ratio * whole))
    counts = small.data.counts  # a step has three passes, validation one
    assert whole / steps == pytest.approx(1 + counts["val"] / counts["train"] / 3)
    mine, both = "0:27:30", timedelta(seconds=round(3000 * (0.55 + ratio)))
    forecast(1.1, ratio, 3000, 0.5)
    assert capsys.readouterr().out == f"about {mine} for this run, {both} for all remaining runs\n"
    forecast(1.1, 0.0, 3000, 0.5)
    assert capsys.readouterr().out == f"about {mine} for this run\n"


@pytest.mark.parametrize("photos", [6, 12, 18, 30])  # of one to three steps, the first ones count
def test_it_is_told_once_within_the_first_epoch(photos):
    told = []
    config = Config(image_size=32, epochs=3, batch_size=6, warmup_epochs=0)
    model = create_model("resnet18", CLASSES, 32, seed=0)
    training = Training(model, CrossEntropy(), config, Device(CPU))
    training.forecast = lambda seconds, left: told.append((seconds, left))
    fit(training, train_batches(config, photos), val_batches(config), lambda: None)
    ((seconds, left),) = told
    assert left == pytest.approx(2 / 3)
    assert 0 < seconds < 3 * sum(row["seconds"] for row in training.history)
