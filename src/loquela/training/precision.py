"""What products are computed in: half the width where the hardware is fast at it, never where it is slow.

On a CPU without instructions for bfloat16 its products run a hundred times slower than float32's, so what decides is
what the processor can do. It is read off, not timed: a run that is resumed on a busy machine must decide the same.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["LossScale", "device_of", "dtype_of", "is_fast"]

_CUDA_SINCE = {torch.bfloat16: 8, torch.float16: 7}
"""The compute capability from which a GPU multiplies in that type on its tensor cores."""


def device_of(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device that a recipe's `device` means for this process: cpu, cuda, cuda:N, or auto."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", local_rank) if wanted == "cuda" else torch.device(wanted)


def dtype_of(wanted: str, device: torch.device) -> tuple[torch.dtype, str | None]:
    """Return the type for products that a recipe's `dtype` means on `device`, and what is to be said aloud, if any."""
    dtype: torch.dtype = torch.bfloat16 if wanted == "auto" else getattr(torch, wanted)
    if dtype == torch.float32 or is_fast(dtype, device):
        return dtype, None
    if wanted == "auto":
        return torch.float32, None
    return torch.float32, f"dtype is float32 instead of {wanted}, at which this {device.type} is slow"


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether matrix products in `dtype` (bfloat16 or float16) have instructions of their own on `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _CUDA_SINCE[dtype]
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.exists() else set()
    if dtype == torch.bfloat16:
        arm = platform.machine() in ("aarch64", "arm64")
        return bool(flags & {"avx512_bf16", "amx_bf16"} or (arm and "bf16" in flags))
    return bool(flags & {"avx512_fp16", "amx_fp16"})


@dataclass
class LossScale:
    """What the loss is multiplied by so that small gradients do not vanish in float16 (arXiv:1710.03740).

    A gradient that overflows halves it, and the step is computed again; `patience` steps without doubles it.
    """

    scale: float = 65536.0
    steps: int = 0
    patience: int = 2000

    def overflowed(self) -> bool:
        """Halve the scale; return False when it is so small that it cannot be the reason."""
        self.scale, self.steps = self.scale / 2, 0
        return self.scale >= 1.0

    def held(self) -> None:
        """Count a step whose gradient was finite."""
        self.steps += 1
        if self.steps >= self.patience:
            self.scale, self.steps = min(2 * self.scale, 2.0**24), 0
