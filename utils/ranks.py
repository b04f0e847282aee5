"""Several processes as one: what a script run by torchrun shares out, and what it gathers again.

    torchrun --nproc-per-node=4 train.py ...

Every rank runs the whole script on its share of each batch, with the same random numbers; rank 0
alone prints and writes files. In a process of its own, without torchrun, everything here does
nothing and costs nothing.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that torchrun started, if it did; all but rank 0 are silent on stdout."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    stdout = sys.stdout
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = stdout if is_first() else nowhere
        try:
            yield
        finally:
            sys.stdout = stdout
    # Not where an error is on its way: the other ranks would be waited for.
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many ranks there are; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that prints and writes."""
    return rank() == 0


def on_this_machine() -> int:
    """The number of this rank among those of one machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def wait() -> None:
    """Go on when all ranks have come here, as before reading what rank 0 has written."""
    if count() > 1:
        dist.barrier()


def share(items: int) -> slice:
    """The stretch of so many items that is this rank's; the ranks' stretches make up all of them,
    in order, each item once."""
    return slice(items * rank() // count(), items * (rank() + 1) // count())


def gathered(mine: Tensor) -> Tensor:
    """(N, ...) the rows of all ranks, in their order; the ranks' numbers of rows may differ."""
    if count() == 1:
        return mine
    everyones: list[Tensor] = [mine] * count()
    dist.all_gather_object(everyones, mine.cpu())
    return torch.cat(everyones)


def summed(mine: Tensor) -> Tensor:
    """The sum over all ranks, the same on each."""
    if count() > 1:
        dist.all_reduce(mine)
    return mine


def whole_batch(mine: Tensor) -> Tensor:
    """(B, ...) the rows of a batch that is in equal shares on all ranks, through which gradients
    flow back to their ranks: for losses that compare the photos of a batch with each other.

    Outside of training, where shares may differ, every rank compares its own.
    """
    if count() == 1 or not torch.is_grad_enabled():
        return mine
    rows: Tensor = _AllRows.apply(mine)
    return rows


class _AllRows(torch.autograd.Function):
    """The rows of all ranks; a rank's gradient is the sum of what all ranks have for its rows."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        mine = mine.contiguous()
        everyones = [torch.empty_like(mine) for _ in range(count())]
        dist.all_gather(everyones, mine)
        return torch.cat(everyones)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(count())[rank()]


def parallel(module: nn.Module) -> nn.Module:
    """The module with gradients that are averaged over all ranks, which all start from rank 0's
    parameters.

    On GPUs, BatchNorm takes its statistics from the whole batch; on CPUs, where PyTorch cannot,
    from each rank's share.
    """
    if count() == 1:
        return module
    # Kernels of 1×1 in channels_last are the same bytes in either order; only the strides differ.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if next(module.parameters()).is_cuda:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # torch 2.14 calls it forward_sync_buffers, which 2.11 does not know.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    return DistributedDataParallel(module, broadcast_buffers=False)


def average_buffers(module: nn.Module) -> None:
    """Give all ranks the mean of their running statistics, to which each has added its share."""
    if count() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= count()
