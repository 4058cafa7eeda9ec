"""What products are computed in: half the width where the hardware is fast at it, never where it is slow.

On a CPU without instructions for bfloat16 its products run a hundred times slower than float32's, so what decides is
what the processor can do. It is read off, not timed: a run that is resumed on a busy machine must decide the same.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from loquela.errors import RecipeError

__all__ = ["FEWEST", "WORTH_IT", "LossScale", "device_of", "dtype_of", "is_fast"]

WORTH_IT = 3 << 20
"""Tokens computed at once, times the square of the width, from which products in bfloat16 make up for their casts.

Measured by whole updates of GPT-2 and Qwen3, bfloat16's time in float32's. On a CPU with AVX512_BF16: at 0.8 million
1.16, at 1.0 million 1.05, at 3.1 million 0.91, from 12 million on 0.65 to 0.8. With AMX, whose products are several
times faster and whose casts are not: at 2 million 1.01 to 1.25, at 3 million 0.92 to 1.02, at 4 million 0.88 to 0.94,
from 12 million on 0.82 to 0.41.
"""

FEWEST = 64
"""Tokens computed at once below which it does not gain at any width: every weight is cast for few products.

With AMX, GPT-2 of width 768: with 16 tokens 1.28, with 32 tokens 1.21, with 64 tokens 0.95, with 128 tokens 0.71.
"""

_CUDA_SINCE = {torch.bfloat16: 8, torch.float16: 7}
"""The compute capability from which a GPU multiplies in that type on its tensor cores."""


def device_of(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device that a recipe's `device` means for this process: cpu, cuda, cuda:N, or auto.

    Raises `RecipeError` for one that is not here.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", local_rank) if wanted == "cuda" else torch.device(wanted)
        here = device.type != "meta" and torch.empty(0, device=device) is not None
    except (RuntimeError, AssertionError):  # an AssertionError from a torch that was built without it
        here = False
    if not here:
        raise RecipeError(
            f"device must be auto, cpu, or cuda where each process has a GPU, but is {wanted!r}, which is not here"
        )
    return device


def dtype_of(
    wanted: str, device: torch.device, *, tokens: int, dim: int, began: str | None = None
) -> tuple[torch.dtype, str | None]:
    """Return the type for products that a recipe's `dtype` means on `device`, and what is to be said aloud, if any.

    `auto` is decided once, when a run begins, for a network of width `dim` that computes so many `tokens` at once:
    bfloat16 where the hardware has instructions for it, tokens are at least `FEWEST` and tokens · dim² `WORTH_IT`. A
    run that goes on, `began` in the type of that name, goes on in it.
    """
    if wanted == "auto" and began is None:
        return _chosen(device, tokens, dim)
    dtype: torch.dtype = getattr(torch, wanted if began is None or wanted != "auto" else began)
    if dtype == torch.float32 or is_fast(dtype, device):
        return dtype, None
    name = str(dtype).removeprefix("torch.")
    return torch.float32, f"dtype is float32 instead of {name}, at which this {device.type} is slow"


def _chosen(device: torch.device, tokens: int, dim: int) -> tuple[torch.dtype, str]:
    if not is_fast(torch.bfloat16, device):
        return torch.float32, f"products are computed in float32: this {device.type} has none fast in bfloat16"
    if tokens < FEWEST or tokens * dim**2 < WORTH_IT:
        return torch.float32, (
            f"products are computed in float32: {tokens:,} tokens of width {dim} at once gain nothing from bfloat16"
        )
    return torch.bfloat16, (
        f"products are computed in bfloat16, in which this {device.type} is fast; weights, their gradients and sums in "
        "float32 (dtype=float32: all of it)"
    )


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
