"""Unlabelled photos: they are used for distillation alone, and no held-out photo leaks in."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

import knowledge_distillation
import train
from config import UserError, parse
from data.batches import draw_order
from data.dataset import load_datasets
from data.files import read_json
from data.listing import PARTS
from tests.photo_folders import make_photos, training
from tests.test_models import OWN
from tests.toys import CPU
from utils.distillation import METHODS
from utils.engine import hard_loss


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """Labelled photos, and a folder of others, of copies of some of these, and of a broken one."""
    root = tmp_path_factory.mktemp("photos")
    make_photos(root / "all", per_class=20)
    for label, name in enumerate(("fog", "hail", "rain", "snow")):
        (root / "more" / str(label)).mkdir(parents=True)
        for number in range(12, 20):
            (root / "all" / name / f"{number}.jpg").rename(root / "more" / f"{name}{number}.jpg")
        for number in range(6):
            shutil.copy(root / "all" / name / f"{number}.jpg", root / "more" / str(label))
    (root / "more" / "broken.jpg").write_text("no photo")
    return root / "all", root / "more"


def test_copies_of_held_out_photos_are_dropped_and_labelled_photos_unchanged(places, tmp_path):
    words = training(places[0], tmp_path, "--batch-size", 4, "--folds", 4)
    plain = load_datasets(parse(words, ""), CPU)
    words += ["--unlabelled", str(places[1])]
    both = load_datasets(parse(words, "", METHODS), CPU)
    off = load_datasets(parse([*words, "--duplicates", "off"], "", METHODS), CPU)
    for fold, dataset in both.items():
        other = plain[fold]
        assert dataset.decoded.digest == other.decoded.digest
        assert dataset.split.hash == other.split.hash
        assert np.array_equal(dataset.decoded.groups, other.decoded.groups)
        for part in PARTS:
            rows, labels = dataset.rows_and_labels(part)
            expected, same = other.rows_and_labels(part)
            assert torch.equal(dataset.pixels[rows], other.pixels[expected])
            assert np.array_equal(labels, same)
        held_out = np.concatenate([dataset.rows_and_labels(part)[0] for part in ("val", "test")])
        assert 32 < len(dataset.unlabelled) < 32 + 24  # without copies of val and test photos
        photos = {dataset.pixels[row].numpy().tobytes() for row in held_out}
        assert not photos & {dataset.pixels[row].numpy().tobytes() for row in dataset.unlabelled}
        assert len(other.unlabelled) == 0
        assert len(off[fold].unlabelled) == 32 + 24
        assert dataset.decoded.unreadable[-1][0] == f"{places[1].resolve()}/broken.jpg"


@given(
    st.lists(st.booleans(), min_size=16, max_size=300).filter(any),
    st.sampled_from([8, 16]),
    st.sampled_from([1, 2, 4]),
    st.data(),
)
def test_each_batch_has_its_share_of_labels_in_each_shard(known, batch_size, ranks, data):
    known = np.array(known)
    labelled = ranks * data.draw(st.integers(1, batch_size // ranks - 1))
    order = draw_order(np.random.default_rng(0), known, batch_size, labelled)
    if known.all():
        assert sorted(order) == list(range(len(known)))
        return
    batches = order.reshape(-1, batch_size)
    assert len(batches) == len(known) // batch_size
    assert (known[batches].sum(1) == labelled).all()
    assert (known[batches].reshape(len(batches), ranks, -1).sum(2) == labelled // ranks).all()
    for kind in (known, ~known):
        times = np.bincount(order, minlength=len(known))[kind]
        assert times.max() - times.min() <= 1  # again from the start only at the end


def test_photos_without_a_label_do_not_count_in_the_cross_entropy():
    logits, labels = torch.randn(6, 4), torch.tensor([2, -1, 0, -1, -1, 3])
    known = labels >= 0
    targets = one_hot(labels.clamp(min=0), 4) * known[:, None] * (6 / 3)  # as batches mix them
    for smoothing in (0.0, 0.1):
        loss, plain = hard_loss(logits, labels, smoothing)
        expected = cross_entropy(logits[known], labels[known], label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(plain, cross_entropy(logits[known], labels[known]))
        torch.testing.assert_close(hard_loss(logits, targets, smoothing), (loss, plain))


def test_a_command_distils_with_few_labels_and_unlabelled_photos(places, tmp_path, capsys):
    (own := tmp_path / "own.py").write_text(OWN)
    words = training(places[0], tmp_path, "--labels-per-class", 4, "--epochs", 2)
    train.main([*words, "--models", f"{own}:small", "resnet18"])
    distils = [*words, "--teacher", f"{own}:small", "--student", "resnet18"]
    distils += ["--unlabelled", str(places[1]), "--method", "kd", "sp", "--mixup", "0"]
    with pytest.raises(UserError, match=r"small has no feature maps of stride 32 at 32 px"):
        knowledge_distillation.main(distils)
    capsys.readouterr()
    knowledge_distillation.main([*distils, "--method", "kd", "dist"])
    printed = capsys.readouterr().out
    assert printed.count("already finished") == 2
    assert "63 unlabelled photos, used only for distillation; 9 copies of" in printed
    name = "all-32px-resnet18-from-own.small-kd-a0.7-T2-and-more-labels4-seed0"
    result = read_json(tmp_path / "output" / "results" / name / "result.json")
    dataset = load_datasets(parse([*distils, "--method", "kd"], "", METHODS), CPU)[None]
    assert result["distillation"]["unlabelled_photos"] == len(dataset.unlabelled)
    assert "| no teacher" in printed  # the broken file is no part of what is compared
    assert f"and more {result['distillation']['unlabelled_digest'][:4]} " in printed
    assert result["photos"]["counts"]["train"] == 16
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.jpg").touch()
    with pytest.raises(UserError, match=r"--unlabelled: no photo in .*bad' can be read"):
        knowledge_distillation.main([*words, "--unlabelled", str(tmp_path / "bad")])
    (tmp_path / "output" / "results" / name / "result.json").unlink()
    (best := tmp_path / "output/checkpoints" / name / "best.pt").rename(best.with_name("last.pt"))
    (places[1] / "rain12.jpg").unlink()
    with pytest.raises(UserError, match="was written with unlabelled_photos 63, not 62"):
        knowledge_distillation.main([*distils, "--method", "kd", "--resume"])
