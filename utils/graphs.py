"""A training step as a CUDA graph: small networks and batches keep a GPU waiting for the host,
which has to launch some hundred kernels a step; a graph launches them all at once."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], dict[str, Tensor]]
# The graph, the tensors that it reads its batch from, and those that it writes to.
Recorded = tuple[torch.cuda.CUDAGraph, Tensor, Tensor, dict[str, Tensor]]

# Steps that run as they are, before one is recorded: they create the optimizer's averages and let
# cuDNN choose its kernels. They are real steps, on real batches.
WARM_UP = 3


class GraphedStep:
    """`step` recorded, and from then on replayed, as long as batches keep their shape; where it
    changes, as when images grow, the old recording and its memory go, and a new one is made.

    What it returns holds until the next call. `step` must neither read a number back to the host
    nor depend on anything on it but the learning rates, which lie in tensors from here on.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        warnings.filterwarnings("ignore", message=".*capturable=True.*without CUDA graph capture")
        for group in optimizer.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            group["capturable"] = True
        self.step = step
        self.shape: tuple[torch.Size, torch.Size] | None = None
        self.seen = 0
        self.recorded: Recorded | None = None
        self.aside = torch.cuda.Stream()

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.shape != (images.shape, labels.shape):
            self.shape, self.seen, self.recorded = (images.shape, labels.shape), 0, None
        self.seen += 1
        if self.seen <= WARM_UP:
            return self.warm_up(images, labels)
        self.recorded = self.recorded or self.record(images, labels)
        graph, own_images, own_labels, outputs = self.recorded
        own_images.copy_(images)
        own_labels.copy_(labels)
        graph.replay()
        return outputs

    def warm_up(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A step as it is, on another stream, as recording asks for."""
        here = torch.cuda.current_stream()
        self.aside.wait_stream(here)
        with torch.cuda.stream(self.aside):
            outputs = self.step(images, labels)
        here.wait_stream(self.aside)
        return outputs

    def record(self, images: Tensor, labels: Tensor) -> Recorded:
        """The step on copies of this batch, which is not trained on before a replay."""
        own_images, own_labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        # Another thread may be fetching photos from the host meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self.step(own_images, own_labels)
        return graph, own_images, own_labels, outputs
