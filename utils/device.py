"""The device and the number format that a run computes with."""

from dataclasses import dataclass

import torch

from config import Config, UserError
from utils import ranks


@dataclass(frozen=True)
class Device:
    """Where to compute, whether under bfloat16 autocast, and whether steps are CUDA graphs."""

    device: torch.device
    bf16: bool = False
    graphs: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "float32"

    def __str__(self) -> str:
        """The GPU's name, or the CPU's number of threads."""
        each = f", each of {ranks.count()} ranks" if ranks.count() > 1 else ""
        if self.device.type == "cuda":
            return f"{self.device}, {torch.cuda.get_device_name(self.device)}{each}"
        return f"cpu, {torch.get_num_threads()} threads{each}"


def find_device(config: Config) -> Device:
    """The device and precision of the settings; makes a GPU the current one, with TF32. Raises
    UserError for a GPU that does not exist or, with several ranks, is given by number."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best if config.device == "auto" else config.device)
    if device.type == "cuda":
        if config.device in ("auto", "cuda"):
            device = torch.device("cuda", torch.distributed.get_node_local_rank(fallback_rank=0))
        elif ranks.count() > 1:
            raise UserError(f"--device {device}: each rank uses its own GPU: give --device cuda")
        if device.index >= torch.cuda.device_count():
            has = f"this machine has {torch.cuda.device_count()} GPUs that PyTorch can use"
            raise UserError(f"--device {config.device}: {has}; --device cpu always works")
        torch.cuda.set_device(device)
        # No cuDNN benchmark: on an H100, 29 s for DenseNet169 at 224 px, whose 15 epochs took 36.
        torch.set_float32_matmul_precision("high")
    graphs = device.type == "cuda" and ranks.count() == 1 and not config.eager
    auto = config.precision == "auto" and gains_from_bf16(device)
    return Device(device, auto or config.precision == "bf16", graphs)


def gains_from_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device (docs/recipe.md): on GPUs from Ampere
    on, CPUs with AMX, and AMD's CPUs with AVX-512 bf16. On other CPUs it was slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # get_capabilities came with torch 2.12.
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amd = str(cpu.get("cpu_name", "")).startswith("AMD")
    return bool(cpu.get("amx_bf16") or (amd and cpu.get("avx512_bf16")))
