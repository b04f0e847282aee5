"""How long training will take, said once its first steps have been timed."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from models.factory import create_model

if TYPE_CHECKING:
    from utils.runs import Run


@cache
def multiply_adds(network: str, classes: int, image_size: int) -> float:
    """Of one image through a network, in its eval mode."""
    model = create_model(network, classes, image_size, seed=0).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() / 2


def work(run: "Run") -> float:
    """Multiply-adds of a run's training steps; a backward pass costs two forward passes."""
    config, data, kd = run.config, run.data, run.config.kd
    passes = [config.model] * 3 + ([str(kd.teacher)] if kd else [])
    each = sum(multiply_adds(name, len(data.classes), config.image_size) for name in passes)
    return config.epochs * each * (data.counts["train"] + (len(data.unlabelled[0]) if kd else 0))


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
