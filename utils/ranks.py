"""Several processes as one run: torchrun --nproc-per-node=4 train.py ...

Every rank runs the whole script, on its shard of each training batch, with the same random numbers;
rank 0 alone prints and writes runs, any rank the cache. Without torchrun, this does nothing.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import UserError


@contextmanager
def init_distributed() -> Iterator[None]:
    """Join the ranks that torchrun started, if it did; all but rank 0 are silent on stdout. Raises
    UserError for a WORLD_SIZE that torchrun did not set."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    if not dist.is_torchelastic_launched():
        raise UserError("WORLD_SIZE is set, but not by torchrun: unset it")
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=timedelta(days=1))  # others may decode for hours
    with redirect_stdout(sys.stdout if is_first() else io.StringIO()):
        yield
    # Not after an error: it would wait for the other ranks.
    dist.destroy_process_group()


def count() -> int:
    """How many ranks there are; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that prints and writes."""
    return count() == 1 or dist.get_rank() == 0


def barrier() -> None:
    """Wait until all ranks are here, as before reading what rank 0 has written."""
    if count() > 1:
        dist.barrier()


def check_same(what: object) -> None:
    """Raise UserError if this value differs between ranks, as with different photos or flags."""
    values = [str(what)] * count()
    if count() > 1:
        dist.all_gather_object(values, str(what))
    if len(set(values)) > 1:
        raise UserError("the ranks differ in photos, flags or precision: all need the same")


def shard(items: int) -> slice:
    """This rank's slice of so many items; all ranks' slices, in order, cover each item once."""
    rank = dist.get_rank() if count() > 1 else 0
    return slice(items * rank // count(), items * (rank + 1) // count())


def all_reduce(mine: Tensor) -> Tensor:
    """The sum over all ranks, the same on each."""
    if count() > 1:
        dist.all_reduce(mine)
    return mine


def parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over all ranks, which start from rank 0's parameters. On
    CPUs, PyTorch's BatchNorm cannot take its statistics from the whole batch, only from a shard."""
    if count() == 1:
        return module
    # Kernels of 1×1 in channels_last are the same bytes in either order; only the strides differ.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if next(module.parameters()).is_cuda:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module)
