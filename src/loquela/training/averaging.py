"""A running mean of the weights, which is often a better model than the last weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from loquela.errors import MismatchError

__all__ = ["Average"]


class Average:
    """An exponential running mean of tensors.

    Update t (from 0) keeps min(decay, (1 + t) / (10 + t)) of the mean, so that the beginning is soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.means = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0)."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.parameters.items():
            if not tensor.is_floating_point():  # counts, which training leaves as they are
                continue
            self.means[name].lerp_(tensor.detach(), 1 - kept)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Let the network have the mean weights, and its own again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def restore(self, means: Mapping[str, Tensor]) -> None:
        """Take over the `means` of a checkpoint; raises `MismatchError` when they are another network's."""
        if wrong := sorted(means.keys() ^ self.means.keys()):
            raise MismatchError(f"the mean weights do not fit this run: {', '.join(wrong)}")
        for name, mean in self.means.items():
            mean.copy_(means[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.parameters.items():
            tensor.copy_(values[name])
