"""Feature maps of real networks: where they lie, and that taking them changes nothing."""

import pytest
import torch
from torch import nn

from config import MODELS
from models.factory import create_model
from models.features import FEATURES, feature_channels, forward_with_features

STRIDES = (4, 8, 16, 32)
CHANNELS = {
    "densenet169": [256, 512, 1280, 1664],
    "resnet50": [256, 512, 1024, 2048],
    "resnet18": [64, 128, 256, 512],
}
IMAGES = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def models():
    return {name: create_model(name, 3, pretrained=False, seed=0).eval() for name in MODELS}


@each_model
def test_maps_have_the_size_and_channels_of_their_stride_in_the_order_asked_for(models, name):
    assert tuple(FEATURES[name]) == STRIDES
    _, maps = forward_with_features(models[name], name, STRIDES[::-1], IMAGES[:, :, :64, :64])
    sizes = [(2, c, 64 // s, 64 // s) for c, s in zip(CHANNELS[name], STRIDES, strict=True)]
    assert [tuple(features.shape) for features in maps[::-1]] == sizes
    state = torch.get_rng_state()
    feature_channels.cache_clear()
    assert [feature_channels(name, stride) for stride in STRIDES] == CHANNELS[name]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps_of_a_resnet_are_those_of_its_forward_written_out(models, name):
    model = models[name]
    x = model.maxpool(model.relu(model.bn1(model.conv1(IMAGES))))
    expected = [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]
    _, maps = forward_with_features(model, name, STRIDES, IMAGES)
    assert all(map(torch.equal, maps, expected))


def test_maps_of_densenet_are_those_of_its_forward_written_out(models):
    layers = models["densenet169"].features
    x, expected = layers.pool0(layers.relu0(layers.norm0(layers.conv0(IMAGES)))), []
    for number in (1, 2, 3):
        transition = getattr(layers, f"transition{number}")
        expected.append(transition.norm(getattr(layers, f"denseblock{number}")(x)).relu())
        x = transition.pool(transition.conv(expected[-1]))
    expected.append(layers.norm5(layers.denseblock4(x)).relu())
    _, maps = forward_with_features(models["densenet169"], "densenet169", STRIDES, IMAGES)
    assert all(map(torch.equal, maps, expected))
    # Its last map is activated in place after the hook; gradients pass this ReLU, too.
    (gradient,) = torch.autograd.grad(maps[-1].sum(), layers.norm5.bias)
    torch.testing.assert_close(gradient, (maps[-1] > 0).float().sum((0, 2, 3)))


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_plain_forward_and_nothing_stays_behind(models, name, training):
    model = models[name].train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model(IMAGES)
    model.load_state_dict(before)
    logits, _ = forward_with_features(model, name, STRIDES, IMAGES)
    assert torch.equal(logits, plain)
    with pytest.raises(RuntimeError, match="channels"):
        forward_with_features(model, name, STRIDES, IMAGES[:, :2])
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training == training
    assert model.state_dict().keys() == before.keys()
    model.load_state_dict(before)
    model.eval()


@each_model
def test_gradients_flow_from_each_map_to_the_first_layer_and_past_the_classifier(models, name):
    model = models[name]
    first, *_, classifier = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    _, maps = forward_with_features(model, name, STRIDES, IMAGES)
    for features in maps:
        ends = (first.weight, classifier.weight)
        begin, end = torch.autograd.grad(features.sum(), ends, retain_graph=True, allow_unused=True)
        assert begin.abs().sum() > 0
        assert end is None
