"""Feature maps of any network by stride: image pixels, in each direction, per pixel of a map."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import UserError
from data.files import explained
from models.factory import check_network, create_model


class Layer(NamedTuple):
    """Where the maps of a stride are."""

    module: str  # whose output they are
    channels: int
    channels_last: bool  # (N, H, W, C), as transformers have them


@cache
def _layers(network: str, image_size: int) -> Mapping[int, Layer]:
    """The layer with the map of each stride at this image size, found by a forward pass: of
    the modules with outputs of one size, the last of the outermost, such as a stage. Skips the stem
    and small maps that larger ones follow, as inside squeeze-and-excitation."""
    check_network(network, image_size, trained=False)
    model = create_model(network, 997, image_size, seed=0).eval()  # classes mark the head
    seen: list[tuple[int, int, int, Layer]] = []  # depth of the name, time, side, layer
    calls = Counter[str]()

    def note(name: str, module: nn.Module, _inputs: object, output: object) -> None:
        calls[name] += 1
        stem = isinstance(module, nn.Conv2d) and module.in_channels == 3
        if stem or isinstance(module, nn.AdaptiveAvgPool2d) or 997 in getattr(output, "shape", ()):
            return
        match getattr(output, "shape", ()):
            case (_, channels, side, other) if side == other:
                seen.append((name.count("."), len(seen), side, Layer(name, channels, False)))
            case (_, side, other, channels) if side == other:
                seen.append((name.count("."), len(seen), side, Layer(name, channels, True)))

    for name, module in model.named_modules():
        module.register_forward_hook(partial(note, name))
    with torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size).to(memory_format=torch.channels_last))
    layouts = {depth: one.channels_last for depth, _, side, one in seen if one.channels != side}
    trunk: list[tuple[int, int, Layer]] = []  # time, side, layer; sides never grow
    for depth, time, side, layer in sorted(seen, key=lambda one: (one[0], -one[1])):
        if layer.channels == side:  # C = H = W: take the layout of others at this depth
            layer = layer._replace(channels_last=layouts.get(depth, False))
        once = calls[layer.module] == 1  # not as an activation that is used again and again
        if once and all(side <= s if t < time else side >= s for t, s, _ in trunk):
            trunk.append((time, side, layer))
    sides = sorted({side for _, side, _ in trunk}, reverse=True)
    layers, stride = dict[int, Layer](), 1
    for larger, side in pairwise([image_size, *sides]):
        stride *= 2 ** round(math.log2((larger + 0.25) / (side + 0.25)))  # 3 is halved to 2 or 1
        layers[stride] = next(layer for _, s, layer in trunk if s == side)
    return layers


def feature_layers(network: str, image_size: int, strides: Sequence[int]) -> list[Layer]:
    """Where a network has maps of these strides; raises UserError for one that has none."""
    found = _layers(network, image_size) if strides else {}
    for stride in strides:
        if stride not in found:
            what = f"{network} has no feature maps of stride {stride} at {image_size} px"
            has = ", ".join(map(str, found)) or "none"
            raise UserError(f"{what} (it has: {has}): use a logits-based method, such as kd")
    return [found[stride] for stride in strides]


def logits_and_maps(
    model: nn.Module, layers: Sequence[Layer], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, classes) of images (N, 3, S, S), and the feature maps (N, channels, H, W) of
    `layers`, in their order. By hooks, so that the network stays as it is."""
    maps: dict[str, Tensor] = {}

    def keep(layer: Layer, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        maps[layer.module] = output.permute(0, 3, 1, 2) if layer.channels_last else output

    with ExitStack() as hooks:
        for layer in layers:
            module = model.get_submodule(layer.module)
            hooks.enter_context(module.register_forward_hook(partial(keep, layer)))
        logits = model(images)
    with explained("a step skipped a layer of these maps: use a logits-based method, such as kd"):
        return logits, [maps[layer.module] for layer in layers]
