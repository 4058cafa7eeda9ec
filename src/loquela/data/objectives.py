"""What a model learns to predict: an objective turns blocks of tokens into inputs and labels.

An objective is one function (blocks, generator) → `Batch`, entered in `OBJECTIVES` under its name. The generator is
the step's own, so whatever an objective draws is the same after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["OBJECTIVES", "Batch", "Objective", "causal"]


@dataclass(frozen=True)
class Batch:
    """`inputs` and `labels`, both (batch, seq) int64; a label of -100 carries no loss."""

    inputs: Tensor
    labels: Tensor


Objective = Callable[[npt.NDArray[np.int64], np.random.Generator], Batch]


def causal(blocks: npt.NDArray[np.int64], generator: np.random.Generator) -> Batch:
    """Predict each next token (Radford et al., 2018): `blocks` (batch, seq + 1) → inputs and labels (batch, seq)."""
    tokens = torch.from_numpy(blocks)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


OBJECTIVES: dict[str, Objective] = {"causal": causal}
