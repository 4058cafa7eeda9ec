"""What a network is trained on at once: the samples of an objective, put together to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "Ids", "Sample", "collate"]

IGNORED = -100
"""The label of a position without loss, as in torch and Hugging Face."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """`inputs` and `labels` (seq,), and the `source` (source,) where an encoder-decoder is trained; all int64.

    `segments` (seq,) numbers the document of each token where attention may not cross documents.
    """

    inputs: Ids
    labels: Ids
    source: Ids | None = None
    segments: Ids | None = None


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


def collate(samples: Sequence[Sample], *, pad: int = 0, looks_ahead: bool = False) -> Batch:
    """Put samples together; shorter ones are filled up on the right with `pad`, under labels of -100.

    A network that only looks back never sees what fills a row, so `padding` is made for one that `looks_ahead`.
    """
    inputs, real = _stacked([sample.inputs for sample in samples], pad)
    labels, _ = _stacked([sample.labels for sample in samples], IGNORED)
    source = source_padding = segments = None
    if samples[0].source is not None:
        source, source_padding = _stacked([s.source for s in samples if s.source is not None], pad)
    if samples[0].segments is not None:
        segments, _ = _stacked([s.segments for s in samples if s.segments is not None], -1)
    return Batch(inputs, labels, source, source_padding, real if looks_ahead else None, segments)


def _stacked(rows: Sequence[Ids], fill: int) -> tuple[Tensor, Tensor | None]:
    """Return the rows as one tensor, and where they are real unless they are everywhere."""
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return torch.from_numpy(np.stack(rows).astype(np.int64, copy=False)), None
    whole = np.full((len(rows), max(lengths)), fill, dtype=np.int64)
    for row, into in zip(rows, whole, strict=True):
        into[: len(row)] = row
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return torch.from_numpy(whole), torch.from_numpy(real)
