"""What a model learns to predict: an objective turns blocks of tokens into inputs and labels.

An objective is one function (blocks, generator) → `Batch`, entered in `OBJECTIVES` under its name. The generator is
the step's own, so whatever an objective draws is the same after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["OBJECTIVES", "Batch", "Objective", "causal"]


@dataclass(frozen=True)
class Batch:
    """`inputs` and `labels`, both (batch, seq) int64; a label of -100 carries no loss.

    The rest is there where an objective needs it: the `source` (batch, source) of an encoder-decoder; `padding` and
    `source_padding`, bool, True where a token is real; `segments` (batch, seq) int64, the number of the document that
    each token belongs to: attention stays inside.
    """

    inputs: Tensor
    labels: Tensor
    source: Tensor | None = None
    source_padding: Tensor | None = None
    padding: Tensor | None = None
    segments: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: slice) -> Batch:
        """Return some of the rows."""
        return Batch(**{name: part[rows] for name, part in self._parts().items()})

    @property
    def arguments(self) -> dict[str, Any]:
        """What `network.hidden(batch.inputs, **batch.arguments)` needs beside the inputs; only what is there."""
        return {name: part for name, part in self._parts().items() if name not in ("inputs", "labels")}

    def _parts(self) -> dict[str, Any]:
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


Objective = Callable[[npt.NDArray[np.int64], np.random.Generator], Batch]


def causal(blocks: npt.NDArray[np.int64], generator: np.random.Generator) -> Batch:
    """Predict each next token (Radford et al., 2018): `blocks` (batch, seq + 1) → inputs and labels (batch, seq)."""
    tokens = torch.from_numpy(blocks)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


OBJECTIVES: dict[str, Objective] = {"causal": causal}
