"""Feature maps of real networks: where they lie, and that taking them changes nothing."""

import pytest
import torch

from config import UserError
from models.factory import create_model
from models.features import feature_layers, logits_and_maps
from tests.toys import resnet_by_hand

STRIDES = (4, 8, 16, 32)
IMAGES = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_maps_match_a_handwritten_forward_and_no_hooks_are_left(name):
    """In the order asked for, with their gradients; no forward is needed to know their channels."""
    model, backwards = create_model(name, 3, 75, seed=0).eval(), STRIDES[::-1]
    _, written_out = resnet_by_hand(model, IMAGES)
    expected = [written_out[stride] for stride in backwards]
    layers = feature_layers(name, 75, backwards)
    logits, maps = logits_and_maps(model, layers, IMAGES)
    assert all(map(torch.equal, maps, expected))
    assert torch.equal(logits, model(IMAGES))
    totals = [torch.stack([features.sum() for features in each]).sum() for each in (maps, expected)]
    kernels = next(model.parameters())  # of the first layer
    torch.testing.assert_close(*(torch.autograd.grad(total, kernels)[0] for total in totals))
    assert [layer.channels for layer in layers] == [len(each[0]) for each in expected]
    with pytest.raises(RuntimeError, match="channels"):
        logits_and_maps(model, layers, IMAGES[:, :2])
    model.forward = torch.relu  # as a network that drops layers at random
    with pytest.raises(UserError, match=r"^a step skipped a layer of these maps: use"):
        logits_and_maps(model, layers, IMAGES)
    assert not any(module._forward_hooks for module in model.modules())


FAMILIES = {  # the modules whose outputs are the maps of strides 4, 8, 16 and 32
    "convnext_tiny": "features.1 features.3 features.5 features",
    "densenet169": "features.denseblock1 features.denseblock2 features.denseblock3 features",
    "mobilenet_v3_small": "features.1 features.3 features.8 features",
    "regnet_y_400mf": "trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output",
    "shufflenet_v2_x0_5": "maxpool stage2 stage3 conv5",
    "swin_v2_t": "features.1 features.3 features.5 permute",
    "vgg11": "features.9 features.14 features.19 features",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_maps_of_any_network_are_those_of_its_stages(name):
    images = torch.zeros(1, 3, 64, 64)
    layers = feature_layers(name, 64, STRIDES)
    assert [layer.module for layer in layers] == FAMILIES[name].split()
    _, maps = logits_and_maps(create_model(name, 3, 64, seed=0).eval(), layers, images)
    for layer, stride, features in zip(layers, STRIDES, maps, strict=True):
        assert features.shape == (1, layer.channels, 64 // stride, 64 // stride)
    if name in ("convnext_tiny", "swin_v2_t"):  # of 96 channels, at 384 px in 96 rows
        assert feature_layers(name, 384, (4,))[0].channels_last == layers[0].channels_last


OWN = """
from torch import nn
def own(classes):
    relu = nn.ReLU()
    convs = [nn.Conv2d(channels, 8, 3, 2, 1) for channels in (3, 8, 8, 8)]
    layers = [layer for conv in convs for layer in (conv, relu)]
    return nn.Sequential(*layers, nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_neither_a_module_that_is_used_at_several_strides_nor_a_map_of_classes_is_taken(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    layers = feature_layers(f"{tmp_path}/own.py:own", 50, (4, 8, 16))
    assert [layer.module for layer in layers] == ["2", "4", "6"]
    assert feature_layers("alexnet", 64, (32,))[0].module == "features"  # 1 × 1, after 3 × 3
