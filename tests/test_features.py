"""Feature maps of real networks: where they lie, and that taking them changes nothing."""

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


def densenet_maps(model: Any) -> dict[int, Tensor]:
    layers, maps = model.features, {}
    x = layers.pool0(layers.relu0(layers.norm0(layers.conv0(IMAGES))))
    for number, stride in ((1, 4), (2, 8), (3, 16)):
        transition = getattr(layers, f"transition{number}")
        maps[stride] = transition.norm(getattr(layers, f"denseblock{number}")(x)).relu()
        x = transition.pool(transition.conv(maps[stride]))
    return maps | {32: layers.norm5(layers.denseblock4(x)).relu()}


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_the_forward_written_out_and_nothing_stays_behind(name):
    """In the order asked for, with their gradients; no forward is needed to know their channels."""
    model, backwards = create_model(name, 3, pretrained=False, seed=0).eval(), STRIDES[::-1]
    written_out = densenet_maps(model) if "densenet" in name else resnet_by_hand(model, IMAGES)[1]
    expected = [written_out[stride] for stride in backwards]
    logits, maps = forward_with_features(model, name, backwards, IMAGES)
    assert all(map(torch.equal, maps, expected))
    assert torch.equal(logits, model(IMAGES))
    totals = [torch.stack([features.sum() for features in each]).sum() for each in (maps, expected)]
    kernels = next(model.parameters())  # of the first layer
    torch.testing.assert_close(*(torch.autograd.grad(total, kernels)[0] for total in totals))
    assert [feature_channels(name, n) for n in backwards] == [len(each[0]) for each in expected]
    with pytest.raises(RuntimeError, match="channels"):
        forward_with_features(model, name, STRIDES, IMAGES[:, :2])
    assert not any(module._forward_hooks for module in model.modules())
