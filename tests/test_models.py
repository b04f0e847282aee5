"""Networks are torchvision's own; their weights come from a seed, a file or a checkpoint."""

import io
import math
import os
import pickle
import random
import re
import socket
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from config import MODELS, UserError
from models.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from models.factory import create_model, smallest_image

HEADS = {"densenet169": "classifier", "resnet50": "fc", "resnet18": "fc"}
each_model = pytest.mark.parametrize("name", MODELS)


def test_the_head_of_every_model_is_known_to_the_tests():
    assert HEADS.keys() == set(MODELS)


@each_model
def test_a_models_state_is_torchvisions_with_its_own_number_of_classes(name):
    with torch.device("meta"):
        model = create_model(name, 11, pretrained=False, seed=0)
        expected = get_model(name, weights=None, num_classes=11)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in expected.state_dict().items()}
    assert shapes[f"{HEADS[name]}.weight"][0] == 11


def test_first_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = create_model("resnet18", 5, pretrained=False, seed=7).state_dict()
    torch.manual_seed(2)
    again = create_model("resnet18", 5, pretrained=False, seed=7).state_dict()
    other = create_model("resnet18", 5, pretrained=False, seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim > 1]
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


@each_model
def test_the_smallest_image_passes_through_all_layers_and_a_smaller_one_does_not(name):
    least = smallest_image(name)
    with torch.device("meta"):
        model = create_model(name, 3, pretrained=False, seed=0).train()
        assert model(torch.zeros(2, 3, least, least)).shape == (2, 3)
        if least > 1:
            with pytest.raises(RuntimeError):
                model(torch.zeros(2, 3, least - 1, least - 1))


@pytest.fixture
def weights_folder(tmp_path, monkeypatch) -> Path:
    """Where torch.hub looks for downloads; any attempt to download fails as without a network."""

    def no_network(*_args, **_kwargs):
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def file_name(name: str) -> str:
    return get_model_weights(name)["DEFAULT"].url.rpartition("/")[2]


def imagenet_state(name: str) -> dict[str, torch.Tensor]:
    """A number of its own in each tensor, which takes no room in a file however large it is."""
    with torch.device("meta"):
        state = get_model(name, weights=None).state_dict()
    return {
        key: torch.tensor(number / 7).expand(value.shape)
        for number, (key, value) in enumerate(state.items())
        if not key.endswith("num_batches_tracked")  # younger than the files
    }


def as_published(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DenseNet's files are older than its layers' names: norm1 is called norm.1 in them."""
    if not name.startswith("densenet"):
        return state
    number = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
    renamed = {number.sub(r"\1.\2", key): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    return renamed


@each_model
def test_pretrained_takes_all_but_the_head_from_the_file(name, weights_folder):
    state = imagenet_state(name)
    torch.save(as_published(name, state), weights_folder / file_name(name))
    model = create_model(name, 11, pretrained=True, seed=3).state_dict()
    head = {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    for key in state.keys() - head:
        assert torch.equal(model[key], state[key]), key
    weight, bias = (model[f"{HEADS[name]}.{part}"] for part in ("weight", "bias"))
    features = state[f"{HEADS[name]}.weight"].shape[1]
    assert weight.shape == (11, features)
    assert bias.shape == (11,)
    # PyTorch's own first weights of a linear layer: uniform up to 1/√features.
    assert 0.99 / math.sqrt(features) < weight.abs().max() <= 1 / math.sqrt(features)


def test_the_new_head_depends_on_the_seed_alone(weights_folder):
    torch.save(imagenet_state("resnet18"), weights_folder / file_name("resnet18"))

    def head(seed: int) -> torch.Tensor:
        return create_model("resnet18", 4, pretrained=True, seed=seed).state_dict()["fc.weight"]

    first, second = head(0), head(1)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(second, torch.nn.Linear(512, 4).weight)


def saved(content: object, **how) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "content",
    [
        b"", b"<html>not found</html>", saved({"fc.weight": torch.zeros(3)}), saved([1, 2]),
        saved({"model": 1})[:-70], zipped("readme.txt", b"text"), pickle.dumps(3), b"\x80\x02.",
        saved(imagenet_state("resnet18") | {"conv1.weight": torch.zeros(64, 3, 3, 3)}),
    ],
    ids=["empty", "text", "lacking", "list", "cut off", "zip", "pickle", "no pickle", "shape"],
)  # fmt: skip
def test_a_broken_weights_file_is_named(content, weights_folder):
    file = weights_folder / file_name("resnet18")
    file.write_bytes(content)
    with pytest.raises(UserError, match="does not hold the weights of resnet18") as problem:
        create_model("resnet18", 4, pretrained=True, seed=0)
    assert str(file) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_without_a_network_the_place_for_the_file_is_named(weights_folder, capsys):
    with pytest.raises(UserError, match="did not download") as problem:
        create_model("resnet18", 4, pretrained=True, seed=0)
    message = str(problem.value)
    assert str(weights_folder / file_name("resnet18")) in message
    assert get_model_weights("resnet18")["DEFAULT"].url in message
    assert "Temporary failure in name resolution" in message
    assert not any(weights_folder.iterdir())


CONTENT: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(4)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
    "history": [{"epoch": 1, "loss/train": 0.25}],
    "arch": "resnet18", "classes": ["fog", "Nieselregen", "雪"], "none": None,
}  # fmt: skip


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = tmp_path / "new" / "run" / "last.pt"
    save_checkpoint(path, CONTENT)
    content = load_checkpoint(path)
    assert content.pop("format") == FORMAT
    model, expected = content.pop("model"), dict(CONTENT)
    assert all(torch.equal(model[key], value) for key, value in expected.pop("model").items())
    assert content == expected
    assert os.listdir(path.parent) == ["last.pt"]


def test_tensors_come_back_with_type_bits_and_layout(tmp_path):
    odd = torch.tensor([0.1, -0.0, math.inf, math.nan, 1e-45])
    kernel = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    model = {"odd": odd, "half": odd.bfloat16(), "kernel": kernel}
    save_checkpoint(tmp_path / "a.pt", {"model": model})
    loaded = load_checkpoint(tmp_path / "a.pt")["model"]
    for key, value in model.items():
        assert loaded[key].dtype == value.dtype
        assert loaded[key].stride() == value.stride()
        assert loaded[key].flatten().view(torch.uint8).equal(value.flatten().view(torch.uint8))


def test_a_write_that_fails_leaves_the_checkpoint_before_it_and_nothing_else(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    large = torch.zeros(100_000)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"model": {"large": large}, "no data": lambda: None})
    assert load_checkpoint(path)["arch"] == "resnet18"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_file_that_stands_in_the_way_of_an_unfinished_one_is_replaced(tmp_path):
    (tmp_path / "last.pt.unfinished").write_bytes(b"from a run that was killed")
    save_checkpoint(tmp_path / "last.pt", CONTENT)
    assert load_checkpoint(tmp_path / "last.pt")["arch"] == "resnet18"
    assert os.listdir(tmp_path) == ["last.pt"]


class Attack:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}, None])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, how):
    content = {"format": FORMAT, "model": {}, "history": Attack(tmp_path / "made")}
    path = tmp_path / "last.pt"
    path.write_bytes(pickle.dumps(content) if how is None else saved(content, **how))
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_checkpoint(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(content))  # it would have worked
    assert (tmp_path / "made").exists()


GOOD = saved({"format": FORMAT} | CONTENT)
LEGACY = saved({"format": FORMAT} | CONTENT, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", b"PK\x03\x04", zipped("readme.txt", b"text"), zipped("archive/data.pkl", b""),
        *(GOOD[: len(GOOD) * eighth // 8] for eighth in range(1, 8)), GOOD[:-1],
        *(LEGACY[: len(LEGACY) * eighth // 8] for eighth in range(1, 8)),
        saved([1, 2]), saved({}), saved(torch.zeros(3)), saved({"fc.weight": torch.zeros(3)}),
        saved({"format": FORMAT}), saved({"model": {}}), saved({"format": "one", "model": {}}),
        saved({"format": None, "model": {}}),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path, content):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as problem:
        load_checkpoint(path)
    assert "\n" not in str(problem.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [GOOD, LEGACY], ids=["zip", "legacy"])
def test_a_broken_byte_never_ends_in_a_traceback(tmp_path, original):
    path, refused = tmp_path / "best.pt", 0
    for position in range(3, len(original), 23):
        broken = bytearray(original)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            load_checkpoint(path)
        except UserError:
            refused += 1
    assert refused > 5


def test_a_bit_that_flipped_is_noticed_or_changes_nothing(tmp_path):
    """A file is mostly weights; a flipped bit in them would go unseen into every result."""
    path, noticed = tmp_path / "best.pt", 0
    weight = torch.rand(2000)
    model = {"weight": weight, "half": weight[:50].bfloat16()}
    save_checkpoint(path, {"model": model, "seed": 3})
    original = path.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        broken = bytearray(original)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        try:
            loaded = load_checkpoint(path)
        except UserError:
            noticed += 1
            continue
        assert all(torch.equal(loaded["model"][name], model[name]) for name in model)
        assert loaded["seed"] == 3
    assert noticed > 150
    broken = bytearray(original)
    broken[original.index(weight.numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(broken)
    with pytest.raises(UserError, match="has changed since it was written"):
        load_checkpoint(path)


def test_a_newer_format_says_so(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": {}, "format": FORMAT + 1})
    with pytest.raises(UserError, match="newer version"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_checkpoint_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint") as problem:
        load_checkpoint(tmp_path / "last.pt")
    assert str(tmp_path / "last.pt") in str(problem.value)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_checkpoint(tmp_path)
