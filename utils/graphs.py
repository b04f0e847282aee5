"""A training step as a CUDA graph, launched as one; otherwise, a fast GPU waits for the host."""

from functools import cache

import torch
from torch import Tensor

from config import UserError, one_line
from utils.engine import Step

# Real steps before one is captured: they create the optimizer's averages and let cuDNN choose.
WARM_UP = 3
# One for all runs, since cuBLAS keeps a workspace for each stream that it has seen.
side_stream = cache(torch.cuda.Stream)


def keep_rates_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Make the learning rates tensors on the device, which a captured step keeps reading."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        group["capturable"] = True


class GraphedStep:
    """`step` captured, then replayed, for batches of one shape; outputs are valid until the next
    call. It may use no value of the host but the learning rates, and read none back."""

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        keep_rates_on_device(optimizer)
        self.step, self.seen = step, 0
        self.captured: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        if self.seen <= WARM_UP:  # on another stream, as capturing requires
            here, stream = torch.cuda.current_stream(), side_stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                outputs = self.step(images, labels)
            here.wait_stream(stream)
            return outputs
        self.captured = self.captured or self.capture(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.captured.replay()
        return self.outputs

    def capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        """Capture the step, with copies of this batch as its inputs; nothing runs before a replay.
        Raises UserError if CUDA refuses, for example because the step reads a value back."""
        self.images, self.labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.outputs = self.step(self.images, self.labels)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            cause = problem.__context__ or problem  # a failure inside makes another at the end
            what = "the training step cannot be captured as a CUDA graph: --eager trains without"
            raise UserError(f"{what}\n{one_line(cause)}") from problem
        return graph
