"""Weights to start from: torchvision's, or those of a file."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from config import UserError, one_line, unchanged
from data.files import explained
from models.checkpoint import read_tensors


def load_weights(model: nn.Module, network: str, weights: Path | bool) -> tuple[str, list[str]]:
    """Load a network's weights from a file or, if `weights` is True, torchvision's ImageNet
    weights, downloaded once; only the head may differ. Returns a summary of what was loaded, and
    the names of what was not. Raises UserError for weights that are unavailable or do not fit."""
    own = model.state_dict()
    if isinstance(weights, Path):
        where, state = str(weights), read_weights(unchanged(weights), own)
    else:
        where, state = f"{network}, ImageNet weights", _imagenet_weights(network)
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    others = {k for k in {*state, *own} - {*fits} if not k.endswith(".num_batches_tracked")}
    # The head is the last layer or, where that fits, all that differs in its number of rows alone.
    rows = {k for k in others & {*state} & {*own} if state[k].shape[1:] == own[k].shape[1:]}
    sizes = {(state[k].shape[:1], own[k].shape[:1]) for k in rows}
    last = [*own][-1].rpartition(".")[0]
    wrong = {k for k in others if not k.startswith(f"{last}.")}
    if wrong and (rows != others or len(sizes) > 1):
        why = f"{len(wrong)} tensors are missing, unexpected or of another shape, e.g. {min(wrong)}"
        raise UserError(f"{where}: not the weights of this {network}: {why}")
    with explained(where):  # some tensors are sparse or quantised
        model.load_state_dict(fits, strict=False)
        given = state | {name: model.state_dict()[name] for name in fits}
        if not all(value.isfinite().all() for value in given.values()):
            raise UserError(f"{where}: some of its values are not finite")
    new = sorted({*own} & others)
    names = ", ".join(new) or "nothing"
    return f"{len(fits)} of {len(own)} tensors from {where}; initialised randomly: {names}", new


def read_weights(path: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict in a file: alone, or as `model` or `[model_]state_dict` of a checkpoint. Names
    lose the prefixes of DataParallel and torch.compile, unless they are the network's `own`."""
    with explained(f"{path}: not weights as torch.save(model.state_dict(), FILE) writes them"):
        state = read_tensors(path)
        for key in ("model", "state_dict", "model_state_dict"):
            state = state.get(key, state) if isinstance(state.get(key), dict) else state
        for prefix in ("_orig_mod.", "module.", "_orig_mod."):
            state = {k if k in own else str(k).removeprefix(prefix): v for k, v in state.items()}
        if not state or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("not a dict of named tensors")
    return state


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    if ":" in name:
        raise UserError(f"--pretrained: {name} is not one of torchvision's networks")
    url = models.get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        return models.get_model(name, weights="DEFAULT").state_dict()
    except Exception as problem:  # no connection, a full disk, or a damaged file
        what = f"--pretrained: no weights of {name} ({one_line(problem)})"
        raise UserError(f"{what}. Put {url} at {file} by hand, or omit --pretrained.") from problem
