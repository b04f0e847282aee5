"""How long training will take, said once its first steps have been timed."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from models.factory import create_model

if TYPE_CHECKING:
    from utils.runs import Run


def multiply_adds(model: nn.Module, image_size: int) -> float:
    """Of one image through a network, in its eval mode."""
    images = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() / 2


@cache
def of_network(network: str, image_size: int) -> float:
    return multiply_adds(create_model(network, 2, image_size, seed=0), image_size)


def work(run: "Run") -> float:
    """Multiply-adds of a run's training steps; a backward pass costs two forward passes."""
    config, kd = run.config, run.config.kd
    teacher = of_network(str(kd.teacher), config.image_size) if kd else 0.0
    photos = run.data.counts["train"] + (len(run.data.unlabelled[0]) if kd else 0)
    return config.epochs * photos * (3 * of_network(config.model, config.image_size) + teacher)


def forecast(run: "Run", runs: Sequence["Run"]) -> Callable[[float, float], None]:
    """What prints how long a run will take and, by their multiply-adds, all of `runs` that are not
    finished. It gets the seconds of all steps of the run, and the share of them that is left."""

    def tell(seconds: float, left: float) -> None:
        # Validation is a forward pass; training is that of each photo, and the backward pass.
        seconds *= 1 + run.data.counts["val"] / run.data.counts["train"] / 3
        others = sum(work(other) for other in runs if other != run and not other.finished)
        text = f"about {duration(seconds * left)} for this run"
        if others:
            text += f", {duration(seconds * (left + others / work(run)))} for all that are left"
        if run.device.device.type == "cpu" and seconds > 1800 and run.config.image_size > 128:
            text += "; on a CPU, --image-size 64 takes a fraction of that"
        tqdm.write(text)

    return tell


def duration(seconds: float) -> str:
    """In the unit that a person would use: 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
