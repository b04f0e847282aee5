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


def imagenet_state(name: str) -> dict[str, torch.Tensor]:
    """A number of its own in each tensor, which takes no room in a file however large it is."""
    with torch.device("meta"):
        state = get_model(name, weights=None).state_dict()
    return {
        key: torch.tensor(number / 7).expand(value.shape)
        for number, (key, value) in enumerate(state.items())
        if not key.endswith("num_batches_tracked")  # younger than the files
    }


@pytest.mark.parametrize("name", MODELS)
def test_pretrained_takes_all_but_the_head_from_the_file(name, weights_folder):
    state, head = imagenet_state(name), "classifier" if name == "densenet169" else "fc"
    # DenseNet's files are older than its layers' names: norm1 is called norm.1 in them.
    layer = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
    published = {layer.sub(r"\1.\2", key): value for key, value in state.items()}
    url = get_model_weights(name)["DEFAULT"].url
    torch.save(published, weights_folder / url.rpartition("/")[2])
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
    wrong_shape = imagenet_state("resnet18") | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    for content in (b"", b"<html>", saved([1]), saved({"model": 1})[:-70], saved(wrong_shape)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"--pretrained: no weights of resnet18 .*{put}"):
            create_model("resnet18", 2, pretrained=True, seed=0)


ODD = torch.tensor([0.1, -0.0, torch.inf, torch.nan, 1e-45])
CONTENT: dict[str, Any] = {
    "model": {
        "weight": torch.arange(2000.0).view(2, 1000), "odd": ODD, "half": ODD.bfloat16(),
        "kernel": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    },
    "history": [{"epoch": 1, "loss/train": 0.25}], "classes": ["fog", "雪"], "none": None,
}  # fmt: skip


def bits(model: dict[str, torch.Tensor]) -> list[Any]:
    raw = [value.flatten().view(torch.uint8).tolist() for value in model.values()]
    return [(k, v.dtype, v.stride()) for k, v in model.items()] + raw


def test_a_checkpoint_comes_back_as_it_was_saved_also_after_a_later_write_failed(tmp_path):
    path = tmp_path / "new" / "run" / "last.pt"
    checkpoint.save_checkpoint(path, CONTENT)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save_checkpoint(
            path, {"model": {"large": torch.zeros(100_000)}, "no data": lambda: None}
        )
    content = load_checkpoint(path)
    assert bits(content["model"]) == bits(CONTENT["model"])
    assert content | {"model": 0} == CONTENT | {"model": 0, "format": FORMAT}
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """A file is mostly weights; a flipped bit in them would go unseen into every result."""
    path, draw, good = tmp_path / "best.pt", random.Random(0), saved({"format": FORMAT} | CONTENT)
    begin = good.index(CONTENT["model"]["weight"].numpy().tobytes())
    weights = range(begin, begin + 8000)
    for place in (*range(0, begin, 17), *weights[::200], *range(weights[-1], len(good), 17)):
        broken = bytearray(good)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        if place in weights:
            with pytest.raises(UserError, match=r"cut off, damaged, or not"):
                load_checkpoint(path)
            continue
        with suppress(UserError):
            content = load_checkpoint(path)
            assert bits(content["model"]) == bits(CONTENT["model"])
            assert content["history"] == CONTENT["history"]


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
    path, good = tmp_path / "a.pt", saved({"format": FORMAT} | CONTENT)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: there is no such checkpoint$"):
        load_checkpoint(path)
    others: tuple[Any, ...] = [1], torch.zeros(3), {"model": {}}, {"format": FORMAT}
    whole = map(saved, (*others, {"format": FORMAT + 1, "model": {}}))
    for content in (*whole, *(good[: len(good) * eighth // 8] for eighth in range(8))):
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
    weights, sums = model.state_dict(), torch.zeros(2, 512)
    itself: dict[str, Any] = {"epochs": 3}
    itself["recipe"] = itself
    incomplete: list[dict[str, Any]] = [
        *({name: None} for name in about.keys() - {"seed"}),
        *({"image_size": side} for side in (-5, True, 10**9, 64.0)),
        *({"std": std} for std in ([0.0] * 3, [0.2] * 4, [1e9] * 3, [torch.nan] * 3)),
        *({"classes": names} for names in (["fog"], ["fog", 2], ["a"] * 100_001)),
        {"arch": "vgg16"}, {"mean": ["x"] * 3}, {"recipe": itself}, {"recipe": {"epochs": [3]}},
        {"recipe": {(1, 2): 3}},
    ]  # fmt: skip
    others: list[Any] = [
        [1], {}, {"fc.weight": torch.zeros(3)}, weights | {"fc.weight": 1},
        weights | {"fc.weight": torch.full((2, 512), torch.nan)},
        weights | {"fc.weight": sums.to_sparse()}, weights | {"fc.weight": sums.half()},
        weights | {"fc.weight": torch.zeros(1).expand(2, 512, 10**9)},
        weights | {"fc.weight": sums.to(torch.complex64)}, weights | {"more": sums},
    ]  # fmt: skip
    for changed, says in (
        *((changed, "its description is incomplete, or cannot be right") for changed in incomplete),
        *(({"model": other}, "not those of a resnet18 with 2 classes") for other in others),
    ):
        checkpoint.save_checkpoint(path, about | {"model": weights} | changed)
        with pytest.raises(UserError, match=says) as error:
            load_classifier(path)
        assert len(str(error.value).splitlines()) == 1


def test_a_file_that_unpacks_to_more_than_its_size_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save_checkpoint(path, {"model": {"weight": torch.zeros(10**6)}})
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    load_checkpoint(path)
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("b.pt", "cut off, damaged, or not"), ("pipe", "there is no such")):
        with pytest.raises(UserError, match=says):
            load_checkpoint(tmp_path / name)
