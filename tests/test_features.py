"""Feature maps of real networks: where they lie, and that taking them changes nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from config import MODELS
from models.factory import create_model
from models.features import feature_channels, forward_with_features
from tests.toys import resnet_by_hand

STRIDES = (4, 8, 16, 32)
IMAGES = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def models():
    return {name: create_model(name, 3, pretrained=False, seed=0).eval() for name in MODELS}


def densenet_maps(model: Any) -> dict[int, Tensor]:
    layers, maps = model.features, {}
    x = layers.pool0(layers.relu0(layers.norm0(layers.conv0(IMAGES))))
    for number, stride in ((1, 4), (2, 8), (3, 16)):
        transition = getattr(layers, f"transition{number}")
        maps[stride] = transition.norm(getattr(layers, f"denseblock{number}")(x)).relu()
        x = transition.pool(transition.conv(maps[stride]))
    return maps | {32: layers.norm5(layers.denseblock4(x)).relu()}


@each_model
def test_maps_and_their_gradients_are_those_of_the_forward_written_out(models, name):
    """In the order asked for; their channels are known without a forward or a random number."""
    model, backwards = models[name], STRIDES[::-1]
    written_out = densenet_maps(model) if "densenet" in name else resnet_by_hand(model, IMAGES)[1]
    expected = [written_out[stride] for stride in backwards]
    _, maps = forward_with_features(model, name, backwards, IMAGES)
    assert all(map(torch.equal, maps, expected))
    totals = [torch.stack([features.sum() for features in each]).sum() for each in (maps, expected)]
    kernels = next(model.parameters())  # of the first layer
    torch.testing.assert_close(*(torch.autograd.grad(total, kernels)[0] for total in totals))

    random_state = torch.get_rng_state()
    feature_channels.cache_clear()
    assert [feature_channels(name, n) for n in backwards] == [len(each[0]) for each in expected]
    assert torch.equal(torch.get_rng_state(), random_state)


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_plain_forward_and_nothing_stays_behind(models, name, training):
    model = models[name].train(training)
    before = copy.deepcopy(model.state_dict())
    plain = model(IMAGES)
    after = copy.deepcopy(model.state_dict())
    model.load_state_dict(before)
    logits, _ = forward_with_features(model, name, STRIDES, IMAGES)
    assert torch.equal(logits, plain)
    assert all(map(torch.equal, model.state_dict().values(), after.values()))
    with pytest.raises(RuntimeError, match="channels"):
        forward_with_features(model, name, STRIDES, IMAGES[:, :2])
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training == training
    model.load_state_dict(before)
    model.eval()
