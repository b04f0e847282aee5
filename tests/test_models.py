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

from config import Config, UserError, file_digest
from models import checkpoint
from models.checkpoint import FORMAT, load_checkpoint, load_classifier, weights_digest
from models.factory import check_network, create_model, initial_model, multiply_adds, source_digest
from models.weights import load_weights
from tests.toys import CLASSES, CPU, train_batches
from utils.device import Device
from utils.engine import CrossEntropy, Training, train_epoch
from utils.export import load_any


@pytest.fixture
def weights_folder(tmp_path, monkeypatch) -> Path:
    """Where torch.hub looks for downloads, each of which fails as without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("urllib.request._opener", None)  # of an earlier test, it has no proxy
    (folder := tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["densenet169", "resnet50", "mobilenet_v3_small"])
def test_pretrained_takes_all_but_the_head_from_the_file(name, weights_folder):
    """Each tensor in the file has its own constant, expanded, so that it takes up no space."""
    with torch.device("meta"):
        shapes = get_model(name, weights=None).state_dict()
    state = {
        key: torch.tensor(number / 7).expand(value.shape)
        for number, (key, value) in enumerate(shapes.items())
        if not key.endswith("num_batches_tracked")  # younger than the files
    }
    head = [name.removesuffix(".bias") for name in shapes][-1]
    torch.save(state, weights_folder / get_model_weights(name)["DEFAULT"].url.rpartition("/")[2])
    model, loaded = initial_model(name, 11, 64, seed=3, weights=True)
    for key in state.keys() - {f"{head}.weight", f"{head}.bias"}:
        assert torch.equal(model.state_dict()[key], state[key]), key
    others = (create_model(name, 11, 64, seed=seed) for seed in (3, 4))
    heads = (each.get_submodule(head) for each in (model, *others))
    drawn, as_ever, of_another_seed = map(weights_digest, heads)
    assert drawn == as_ever != of_another_seed
    assert loaded.endswith(f"initialised randomly: {head}.bias, {head}.weight")


def saved(content: object, **how) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def test_weights_that_are_broken_or_cannot_be_had_are_named(weights_folder):
    file = weights_folder / "resnet18-f37072fd.pth"
    url = re.escape(get_model_weights("resnet18")["DEFAULT"].url)
    put = rf"\. Put {url} at {re.escape(str(file))} by hand, or omit"
    with pytest.raises(UserError, match=f"--pretrained: .*refused.*{put}"):
        initial_model("resnet18", 2, 64, seed=0, weights=True)
    with pytest.raises(UserError, match=r"--pretrained: own\.py:net is not one of torchvision's"):
        load_weights(torch.nn.ReLU(), "own.py:net", True)
    for content in (b"", b"<html>", saved([1]), saved({})[:-70], saved({"fc.bias": torch.ones(9)})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"--pretrained: no weights of resnet18 .*{put}"):
            initial_model("resnet18", 2, 64, seed=0, weights=True)


def test_weights_of_a_file_are_taken_whole_but_for_a_head_of_other_classes(tmp_path):
    source, path = create_model("resnet18", 5, 64, seed=1).state_dict(), tmp_path / "w.pt"
    parallel = {f"module._orig_mod.{key}": value for key, value in source.items()}
    for one in (source, {"model": source}, {"state_dict": parallel}, {"model_state_dict": source}):
        torch.save(one, path)
        file_digest.cache_clear()  # as at the start of a command
        same, loaded = initial_model("resnet18", 5, 64, seed=2, weights=path)
        assert all(map(torch.equal, same.state_dict().values(), source.values()))
        assert loaded == f"122 of 122 tensors from {path}; initialised randomly: nothing"
        other, loaded = initial_model("resnet18", 3, 64, seed=2, weights=path)
        state = other.state_dict()
        assert torch.equal(state["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])
        assert state["fc.weight"].shape == (3, 512)
        assert loaded == f"120 of 122 tensors from {path}; initialised randomly: fc.bias, fc.weight"
    torch.save(source, path)
    with pytest.raises(UserError, match=r"w\.pt' has changed since this command was started"):
        initial_model("resnet18", 5, 64, seed=2, weights=path)
    not_its = "not the weights of this resnet18: 1 .*"
    wrong = [(source | {k: torch.zeros(1)}, f"{not_its}{k}$") for k in ("conv1.weight", "more")]
    for k in ("bn1.bias", "fc.bias"):  # of a layer that is loaded, and of the head
        wrong.append((source | {k: source[k] * torch.nan}, "some of its values are not finite"))
    others = [(one, "not weights as torch.save") for one in ([1], {}, {"a": 1})]
    code = torch.nn.ReLU(), r"not weights .*ReLU was not an allowed global by default\.\)$"
    for made, says in (*wrong, *others, code):
        torch.save(made, path)
        file_digest.cache_clear()
        with pytest.raises(UserError, match=rf"w\.pt: {says}"):
            initial_model("resnet18", 3, 64, seed=2, weights=path)
    own = [nn.Sequential(nn.Linear(4, n), nn.BatchNorm1d(n)) for n in (3, 2)]  # two layers of head
    torch.save((named := nn.ModuleDict({"module": own[0]})).state_dict(), path)
    file_digest.cache_clear()
    assert load_weights(named, "own.py:net", path)[1] == []
    assert len(load_weights(own[1], "own.py:net", path)[1]) == 6


ABOUT: dict[str, Any] = {
    "image_size": 64, "mean": [0.5] * 3, "std": [0.2] * 3, "split": "s", "photos": "p", "seed": 0,
    "recipe": {"epochs": 3},
}  # fmt: skip
FAMILIES = """alexnet convnext_tiny densenet121 efficientnet_b0 mnasnet0_5 mobilenet_v2 swin_v2_t
    mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 vgg11 vit_b_16"""


@pytest.mark.parametrize("name", FAMILIES.split())
def test_a_member_of_each_family_trains_for_three_steps_and_loads(name, tmp_path):
    config = Config(image_size=64, batch_size=4, lr=1e-4)
    model = create_model(name, CLASSES, 64, seed=0)
    before = [p.detach().clone() for p in model.parameters()]
    train_epoch(Training(model, CrossEntropy(), config, Device(CPU)), train_batches(config, 12), 1)
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # not those whose units are all off
    content = ABOUT | {"arch": name, "classes": [*"abcde"[:CLASSES]], "model": model.state_dict()}
    checkpoint.save_checkpoint(tmp_path / "best.pt", content)
    assert weights_digest(load_classifier(tmp_path / "best.pt")[0]) == weights_digest(model)
    assert weights_digest(model.bfloat16()) != weights_digest(model.half())


OWN = """
import torch
from torch import nn
number = lambda n: n
five = lambda n: small(5)
ends = lambda n: exit(0)
small = lambda n, *m: nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *m, nn.Linear(48, n))
frozen = lambda n: small(n).requires_grad_(False)
soft = lambda n: small(n).append(nn.Softmax(1))
viewing = lambda n: changed(nn.ReLU(), lambda x: x.view(2, -1))
last = lambda n: changed(nn.Conv2d(3, n, 16, 16), lambda x: x.movedim(1, 3).view(-1, 4, n).mean(1))
altering = lambda n: nn.Sequential(nn.ReLU(inplace=True), small(n))
zeros = lambda net: net.apply(lambda m: isinstance(m, nn.Linear) and nn.init.zeros_(m.weight))
together = lambda n: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), zeros(small(n)))
lazy = lambda n: nn.Sequential(nn.Flatten(), nn.LazyLinear(n))
def masked(n):
    model = small(n)
    model.register_buffer("mask", model[2].bias.data - float("inf"))
    return model
changed = lambda model, change: model.register_forward_hook(lambda _, x, y: change(y)) and model
slope = lambda x: torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]
differentiating = lambda n: changed(small(n), slope)
unsaved = lambda n: changed(small(n), (torch.randn(n) / 10000).add)
share = lambda a, b: setattr(b, "weight", a.weight) or (a, b)
tied = lambda n: changed(small(n, *share(nn.Linear(48, 48), nn.Linear(48, 48))), torch.Tensor.half)
"""


def test_networks_that_cannot_be_trained_are_refused_in_a_line(tmp_path):
    (file := tmp_path / "own.py").write_text(OWN)
    check_network(f"{file}:small", 32)
    assert multiply_adds(f"{file}:last", 2, 32) == 3072 * 2  # which takes channels last alone
    check_network("resnet18", 32)
    for network, side, says in (
        ("resnet19", 32, "no such network; `python -m models.factory` lists the names"),
        ("alexnet", 32, "alexnet does not work on images of 32 pixels; .*small"),
        ("googlenet", 64, "googlenet must return a tensor in training, not .*GoogLeNetOutputs"),
        ("vit_b_16", 40, "vit_b_16: does not take images of 40 pixels .*patch size"),
        (f"{file}:number", 32, "own.py:number must return a torch.nn.Module, not int"),
        (f"{file}:five", 32, r"own.py:five\(61\): 2 images give .*2, 5.*, not logits \(2, 61\)"),
        (f"{file}:viewing", 32, "own.py:viewing does not work on .*view size is not compatible"),
        (f"{file}:soft", 32, "own.py:soft returns probabilities, not logits"),
        (f"{file}:ends", 32, "own.py:ends: SystemExit: 0"),
        (f"{file}:frozen", 32, "does not require grad"),
        (f"{file}:altering", 32, "own.py:altering modifies its input in place: clone it"),
        (f"{file}:together", 32, "own.py:together: in eval mode, logits are .* other images"),
        (f"{file}:unsaved", 32, "own.py:unsaved: in eval mode, logits .* more than the state_dict"),
        (f"{file}:differentiating", 32, "own.py:differentiating does not work on .* require grad"),
        (f"{file}:lazy", 32, "own.py:lazy: lazy layers"),
        (f"{file}:masked", 32, "own.py:masked: mask is not finite: register it with persist"),
        (f"{file}:none", 32, "own.py:none: KeyError: 'none'"),
        (f"{tmp_path}/no.py:none", 32, "no.py' cannot be read: No such"),
    ):
        with pytest.raises(UserError, match=rf"^(?s:.)*{says}.*$"):
            check_network(network, side)


def test_tied_weights_stay_tied_and_probabilities_are_float32_when_loaded(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    model = create_model(network := f"{tmp_path}/own.py:tied", 2, 64, seed=0)
    content = ABOUT | {"arch": "own.tied", "source": source_digest(network), "classes": ["a", "b"]}
    checkpoint.save_checkpoint(tmp_path / "a.pt", content | {"model": model.state_dict()})
    classify, about = load_any(tmp_path / "a.pt", network)
    assert about["parameters"] == sum(p.numel() for p in model.parameters())
    assert classify(torch.zeros(2, 128, 128, 3, dtype=torch.uint8)).dtype == torch.float32


def test_a_network_is_drawn_from_its_seed_with_the_helpers_of_its_own_folder(tmp_path):
    net, made = "import torch, width\ntorch.manual_seed(0)\n", []
    for width, seed in ((2, 0), (4, 0), (2, 1), (2, 0)):
        (folder := tmp_path / f"{width}").mkdir(exist_ok=True)
        (folder / "width.py").write_text(f"WIDTH = {width}")
        (folder / "net.py").write_text(f"{net}net = lambda n: torch.nn.Linear(width.WIDTH, n)")
        made.append(create_model(f"{folder}/net.py:net", 3, 32, seed=seed))
        assert made[-1].in_features == width
    assert weights_digest(made[0]) == weights_digest(made[3]) != weights_digest(made[2])


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


def test_an_invalid_checkpoint_is_refused_in_one_line_and_its_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path, compressed = tmp_path / "a.pt", io.BytesIO()
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe"):
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name}: no such checkpoint: "):
            load_checkpoint(tmp_path / name)
    checkpoint.save_checkpoint(path, CONTENT)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(compressed, "w", 8) as packed:
        for entry in stored.infolist():  # could unpack to any size
            packed.writestr(entry.filename, stored.read(entry))
    attack = {"format": FORMAT, "model": {}, "history": Attack()}
    others: tuple[Any, ...] = [1], torch.zeros(3), {"model": {}}, {"format": FORMAT}
    whole = map(saved, (*others, {"format": FORMAT + 1, "model": {}}, attack))
    legacy = saved(attack, _use_new_zipfile_serialization=False), pickle.dumps(attack)
    cut = (good[: len(good) * eighth // 8] for eighth in range(8))
    for content in (*whole, *legacy, *cut, compressed.getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt: truncated, damaged, or not a checkpoint.*$"):
            load_checkpoint(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_classifier_is_what_its_checkpoint_describes_or_refused(tmp_path):
    path, model = tmp_path / "best.pt", create_model("resnet18", 2, 64, seed=1)
    about = ABOUT | {"arch": "resnet18", "classes": ["fog", "雪"]}
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
        {"arch": "vgg"}, {"mean": ["x"] * 3},
    ]  # fmt: skip
    (own := tmp_path / "own.py").write_text(OWN)
    small = about | {"arch": "own.small", "source": file_digest(own)}
    small["model"] = create_model(f"{own}:small", 2, 64, seed=0).state_dict()
    checkpoint.save_checkpoint(path, small)
    assert load_classifier(path, f"{own}:small")[0].training is False
    for wrong in ("", "own.small", f"{own}:frozen", "resnet18"):
        with pytest.raises(UserError, match=r"own.small, a network of your own: give FILE"):
            load_classifier(path, wrong)
    own.write_text(OWN + "# changed")
    file_digest.cache_clear()
    with pytest.raises(UserError, match=r"own\.py:small has changed since this was trained"):
        load_classifier(path, f"{own}:small")
    weights, sums = model.state_dict(), torch.zeros(2, 512)
    heads: list[Any] = [1, torch.full((2, 512), torch.nan), sums.to_sparse(), sums.half()]
    heads.append(torch.zeros(1).expand(2, 512, 10**9))
    others: list[Any] = [[1], {}, weights | {"more": sums}]
    others += [weights | {"fc.weight": head} for head in heads]
    for changed, says in (
        *((changed, "description is incomplete or invalid") for changed in incomplete),
        *(({"model": other}, "weights are not those of a resnet18 with 2") for other in others),
    ):
        checkpoint.save_checkpoint(path, about | {"model": weights} | changed)
        with pytest.raises(UserError, match=rf"best\.pt: its {says}.*$"):
            load_classifier(path)
