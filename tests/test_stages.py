"""Feature maps at named stages of real networks: where they lie, and that taking them costs
nothing."""

import pytest
import torch
from torch import Tensor, nn

from config import MODELS
from models.factory import create_model
from models.stages import STAGES, forward_with_stages, stage_channels

STRIDES = (4, 8, 16, 32)
CHANNELS = {
    "densenet169": (256, 512, 1280, 1664),
    "resnet50": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512),
}
# ResNets round the side of a halved map up, DenseNet's average pooling rounds it down.
SIDES_AT_75_PIXELS = {
    "densenet169": [19, 9, 4, 2],
    "resnet50": [19, 10, 5, 3],
    "resnet18": [19, 10, 5, 3],
}
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: create_model(name, 3, pretrained=False, seed=0).eval() for name in MODELS}


def photos(side: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(side))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_model_has_its_stages():
    assert STAGES.keys() == set(MODELS)
    assert {tuple(stages) for stages in STAGES.values()} == {STRIDES}


@each_model
def test_a_stages_map_is_smaller_than_the_photo_by_its_stride(models, name):
    _, maps = forward_with_stages(models[name], name, STRIDES, photos(64))
    assert [tuple(stage.shape[2:]) for stage in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert tuple(stage.shape[1] for stage in maps) == CHANNELS[name]
    assert tuple(stage_channels(name, stride) for stride in STRIDES) == CHANNELS[name]


@each_model
def test_a_side_that_does_not_halve_evenly_is_rounded_as_the_network_does(models, name):
    logits, maps = forward_with_stages(models[name], name, STRIDES, photos(75))
    assert [stage.shape[2] for stage in maps] == SIDES_AT_75_PIXELS[name]
    assert torch.equal(logits, models[name](photos(75)))


@each_model
def test_maps_come_in_the_order_in_which_they_are_asked_for(models, name):
    _, (late, early) = forward_with_stages(models[name], name, (32, 4), photos(64))
    assert (early.shape[2], late.shape[2]) == (16, 2)
    logits, none = forward_with_stages(models[name], name, (), photos(64))
    assert none == []
    assert torch.equal(logits, models[name](photos(64)))


@each_model
def test_maps_are_what_the_relu_lets_through(models, name):
    _, maps = forward_with_stages(models[name], name, STRIDES, photos(64))
    for stage in maps:
        assert (stage >= 0).all()
        assert 0.01 < (stage == 0).float().mean() < 0.99


@each_model
def test_the_last_map_is_the_one_that_the_classifier_reads(models, name):
    model = models[name]
    logits, (last,) = forward_with_stages(model, name, (32,), photos(64))
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    torch.testing.assert_close(classifier(last.mean((2, 3))), logits)


def test_the_maps_of_a_resnet_are_those_of_its_forward_written_out(models):
    model = models["resnet18"]
    x = model.maxpool(model.relu(model.bn1(model.conv1(photos(64)))))
    expected = [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]
    _, maps = forward_with_stages(model, "resnet18", STRIDES, photos(64))
    for stage, other in zip(maps, expected, strict=True):
        assert torch.equal(stage, other)


def test_the_maps_of_densenet_are_those_of_its_forward_written_out(models):
    layers = models["densenet169"].features
    x = layers.pool0(layers.relu0(layers.norm0(layers.conv0(photos(64)))))
    expected = []
    for block, transition in (
        (layers.denseblock1, layers.transition1),
        (layers.denseblock2, layers.transition2),
        (layers.denseblock3, layers.transition3),
    ):
        expected.append(transition.norm(block(x)).relu())
        x = transition.pool(transition.conv(expected[-1]))
    expected.append(layers.norm5(layers.denseblock4(x)).relu())
    _, maps = forward_with_stages(models["densenet169"], "densenet169", STRIDES, photos(64))
    for stage, other in zip(maps, expected, strict=True):
        assert torch.equal(stage, other)


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_plain_forward_to_the_bit(models, name, training):
    model = models[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train(training)
    plain = model(photos(64))
    model.load_state_dict(before)
    logits, _ = forward_with_stages(model, name, STRIDES, photos(64))
    assert model.training == training
    assert torch.equal(logits, plain)
    model.load_state_dict(before)
    model.eval()


@each_model
def test_nothing_is_left_behind_in_the_model_even_when_its_forward_raises(models, name):
    model = models[name]
    keys = list(model.state_dict())
    forward_with_stages(model, name, STRIDES, photos(64))
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="channels"):
        forward_with_stages(model, name, STRIDES, photos(64, channels=4))
    assert hooks(model) == 0
    assert list(model.state_dict()) == keys


@each_model
def test_gradients_flow_from_a_map_to_the_first_layer_and_past_the_classifier(models, name):
    model = models[name]
    first, *_, classifier = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    _, maps = forward_with_stages(model, name, STRIDES, photos(64))
    for stage in maps:
        begin, end = torch.autograd.grad(
            stage.sum(), (first.weight, classifier.weight), retain_graph=True, allow_unused=True
        )
        assert begin.abs().sum() > 0
        assert end is None


def test_the_gradient_of_densenets_last_map_passes_the_relu(models):
    norm = models["densenet169"].features.norm5
    _, (last,) = forward_with_stages(models["densenet169"], "densenet169", (32,), photos(64))
    (gradient,) = torch.autograd.grad(last.sum(), norm.bias)
    torch.testing.assert_close(gradient, (last > 0).float().sum((0, 2, 3)))


def test_counting_channels_draws_no_random_number():
    stage_channels.cache_clear()
    state = torch.get_rng_state()
    assert [stage_channels(name, 16) for name in MODELS] == [CHANNELS[name][2] for name in MODELS]
    assert torch.equal(torch.get_rng_state(), state)
