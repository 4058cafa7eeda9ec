"""Rotary angles stretched to texts longer than those of the pre-training: frequencies in, frequencies out.

A frequency is an angle in radians per position; 2π divided by it is the wavelength in positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["stretch_long_waves", "yarn_frequencies", "yarn_scale"]


def stretch_long_waves(frequencies: Tensor, factor: float, *, low: float, high: float, original: int) -> Tensor:
    """Divide by `factor` the frequencies of waves that the original window saw less than `low` times (LLaMA 3.1).

    Those that fit into it more than `high` times stay, the ones between glide (arXiv:2407.21783, 3.4.2; `llama3` in
    config.json).
    """
    turns = original * frequencies / (2 * math.pi)  # how often a wave fits into the original window
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def yarn_frequencies(
    frequencies: Tensor, base: float, factor: float, *, fast: float, slow: float, original: int, truncate: bool = True
) -> Tensor:
    """Divide by `factor` the frequencies of slow waves only (YaRN, arXiv:2309.00071, 3.2).

    Waves that turn more than `fast` times in the original window stay, those of less than `slow` turns are divided,
    and a ramp over the dimensions joins the two; `truncate` widens it to whole dimensions.
    """
    width = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        """The dimension whose wave turns so often, as a real number."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension(fast), dimension(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = (torch.arange(len(frequencies)) - first) / (last - first or 0.001)
    divided = ramp.clamp(0, 1)
    return frequencies * (1 - divided + divided / factor)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by, since attention over more keys is flatter: 0.1 · weight · ln f + 1."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
