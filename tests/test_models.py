"""Networks are torchvision's own; their weights come from a seed, a file or a checkpoint."""

import io
import os
import pickle
import random
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from config import MODELS, UserError
from models import checkpoint
from models.checkpoint import FORMAT, load_checkpoint, load_classifier, weights_digest
from models.factory import channels_last, create_model


def test_initial_weights_come_from_the_seed_alone():
    models = []
    for noise, seed in ((1, 7), (2, 7), (3, 8)):
        torch.manual_seed(noise)
        models.append(create_model("resnet18", 5, pretrained=False, seed=seed))
    first, again, other = map(weights_digest, models)
    assert first == again != other
    assert weights_digest(channels_last(models[0], torch.device("cpu"))) == first


@pytest.fixture
def weights_folder(tmp_path, monkeypatch) -> Path:
    """Where torch.hub looks for downloads, each of which fails as without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_pretrained_takes_all_but_the_head_from_the_file(name, weights_folder):
    """The file has a number of its own in each tensor, which takes no room however large it is."""
    with torch.device("meta"):
        shapes = get_model(name, weights=None).state_dict()
    state = {
        key: torch.tensor(number / 7).expand(value.shape)
        for number, (key, value) in enumerate(shapes.items())
        if not key.endswith("num_batches_tracked")  # younger than the files
    }
    head = "classifier" if name == "densenet169" else "fc"
    url = get_model_weights(name)["DEFAULT"].url
    torch.save(state, weights_folder / url.rpartition("/")[2])
    model = create_model(name, 11, pretrained=True, seed=3)
    for key in state.keys() - {f"{head}.weight", f"{head}.bias"}:
        assert torch.equal(model.state_dict()[key], state[key]), key
    torch.manual_seed(3)  # on which alone the head depends
    expected = nn.Linear(state[f"{head}.weight"].shape[1], 11)
    assert weights_digest(model.get_submodule(head)) == weights_digest(expected)


def saved(content: object, **how) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def test_weights_that_are_broken_or_cannot_be_had_are_named(weights_folder):
    file = weights_folder / "resnet18-f37072fd.pth"
    url = re.escape(get_model_weights("resnet18")["DEFAULT"].url)
    put = rf"\. Put {url} at {re.escape(str(file))} by hand, or omit"
    with pytest.raises(UserError, match=f"--pretrained: .*refused.*{put}"):
        create_model("resnet18", 2, pretrained=True, seed=0)
    for content in (b"", b"<html>", saved([1]), saved({})[:-70], saved({"fc.bias": torch.ones(9)})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"--pretrained: no weights of resnet18 .*{put}"):
            create_model("resnet18", 2, pretrained=True, seed=0)


CONTENT: dict[str, Any] = {
    "model": {
        "weight": torch.arange(2000.0).view(2, 1000),
        "odd": torch.tensor([0.1, -0.0, torch.inf, torch.nan, 1e-45]).bfloat16(),
        "kernel": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    },
    "history": [{"epoch": 1, "loss/train": 0.25}], "classes": ["fog", "雪"], "none": None,
}  # fmt: skip


def test_a_checkpoint_comes_back_as_it_was_saved_and_a_flipped_bit_is_noticed(tmp_path):
    """A file is mostly weights; a flipped bit in them would go unseen into every result."""
    path, draw = tmp_path / "new" / "run" / "best.pt", random.Random(0)
    checkpoint.save_checkpoint(path, CONTENT)
    good = path.read_bytes()
    assert good == saved({"format": FORMAT} | CONTENT) == saved(load_checkpoint(path))
    for place in range(0, len(good), 17):
        broken = bytearray(good)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        with suppress(UserError):  # or it changes nothing
            assert saved(load_checkpoint(path)) == good


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    content = {"format": FORMAT, "model": {}, "history": Attack()}
    legacy = saved(content, _use_new_zipfile_serialization=False)
    for packed in (saved(content), legacy, pickle.dumps(content)):
        (tmp_path / "a.pt").write_bytes(packed)
        with pytest.raises(UserError, match=r"a\.pt: cut off, damaged, or not"):
            load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()
    pickle.loads(packed)  # it would have worked
    assert (tmp_path / "made").exists()


def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path):
    path, compressed = tmp_path / "a.pt", io.BytesIO()
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe"):
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name}: there is no such checkpoint$"):
            load_checkpoint(tmp_path / name)
    checkpoint.save_checkpoint(path, CONTENT)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(compressed, "w", 8) as packed:
        for entry in stored.infolist():  # could unpack to any size
            packed.writestr(entry.filename, stored.read(entry))
    others: tuple[Any, ...] = [1], torch.zeros(3), {"model": {}}, {"format": FORMAT}
    whole = map(saved, (*others, {"format": FORMAT + 1, "model": {}}))
    cut = (good[: len(good) * eighth // 8] for eighth in range(8))
    for content in (*whole, *cut, compressed.getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt: cut off, damaged, or not a checkpoint.*$"):
            load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_classifier_is_what_its_checkpoint_describes_or_refused(tmp_path):
    path, model = tmp_path / "best.pt", create_model("resnet18", 2, pretrained=False, seed=1)
    about: dict[str, Any] = {
        "arch": "resnet18", "classes": ["fog", "雪"], "image_size": 64, "mean": [0.5] * 3,
        "std": [0.2] * 3, "split": "s", "photos": "p", "seed": 0, "recipe": {"epochs": 3},
    }  # fmt: skip
    checkpoint.save_checkpoint(path, about | {"model": model.state_dict()})
    loaded, description = load_classifier(path)
    assert (weights_digest(loaded), loaded.training) == (weights_digest(model), False)
    assert description == about | {"format": FORMAT}
    itself: dict[str, Any] = {"epochs": 3}
    itself["recipe"] = itself
    incomplete: list[dict[str, Any]] = [
        *({name: None} for name in about.keys() - {"seed"}),
        *({"image_size": side} for side in (-5, 10**9, 64.0)),
        *({"std": std} for std in ([0.0] * 3, [0.2] * 4, [1e9] * 3, [torch.nan] * 3)),
        *({"classes": names} for names in (["fog"], ["fog", 2], ["a"] * 100_001)),
        *({"recipe": recipe} for recipe in (itself, {"epochs": [3]}, {(1, 2): 3})),
        {"arch": "vgg16"}, {"mean": ["x"] * 3},
    ]  # fmt: skip
    weights, sums = model.state_dict(), torch.zeros(2, 512)
    heads: list[Any] = [1, torch.full((2, 512), torch.nan), sums.to_sparse(), sums.half()]
    heads.append(torch.zeros(1).expand(2, 512, 10**9))
    others: list[Any] = [[1], {}, weights | {"more": sums}]
    others += [weights | {"fc.weight": head} for head in heads]
    for changed, says in (
        *((changed, "description is incomplete, or cannot be right") for changed in incomplete),
        *(({"model": other}, "weights are not those of a resnet18 with 2") for other in others),
    ):
        checkpoint.save_checkpoint(path, about | {"model": weights} | changed)
        with pytest.raises(UserError, match=rf"best\.pt: its {says}.*$"):
            load_classifier(path)
