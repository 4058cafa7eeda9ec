"""Tensors of the base that an adapter has its own values of: `modules_to_save`, and the method selective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from loquela.models.base import Network
from loquela.peft.base import Adapter, Part
from loquela.peft.draw import Draw
from loquela.peft.targets import named

__all__ = ["Replaced", "add_saved"]


class Replaced(Part):
    """A layer with other values of some of its tensors; they start as the base's.

    `leaves` says which of the layer's tensors each of `tensors` stands for, and whether it is transposed on disk.
    """

    def __init__(self, tensors: Mapping[str, Tensor], leaves: Mapping[str, tuple[str, bool]]) -> None:
        super().__init__(tensors)
        self.leaves = dict(leaves)

    def __call__(self, layer: Any, base: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer with these tensors in place of its own."""
        with self._in_place(layer):
            return base(x, *args, **kwargs)

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The base's output is of no use: compute it with these tensors."""
        return self(layer, base, x)

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """The base's values moved towards these."""
        old = {leaf: getattr(layer, leaf).detach() for leaf, _ in self.leaves.values()}
        return {leaf: torch.lerp(old[leaf], value.to(old[leaf].dtype), weight) for leaf, value in self._values()}

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        for name, (leaf, transposed) in self.leaves.items():
            yield leaf, self.tensors[name].t() if transposed else self.tensors[name]

    @contextmanager
    def _in_place(self, layer: Any) -> Iterator[None]:
        own = {leaf: layer._parameters[leaf] for leaf, _ in self.leaves.values()}
        dtype = next((p.dtype for p in own.values() if p is not None), torch.float32)
        try:
            for leaf, value in self._values():
                layer._parameters[leaf] = value.to(dtype)
            yield
        finally:
            layer._parameters.update(own)


def copies(layer: Any, leaves: Mapping[str, tuple[str, bool]], draw: Draw) -> dict[str, Tensor]:
    """Return copies of a layer's tensors as they stand on disk; see `Replaced`."""
    tensors = {}
    for name, (leaf, transposed) in leaves.items():
        own: Tensor = getattr(layer, leaf).detach()
        value = own.t() if transposed else own
        tensors[name] = draw.made(tuple(value.shape), value.clone)
    return tensors


def add_saved(network: Network, adapter: Adapter, draw: Draw) -> None:
    """Add what `modules_to_save` names to an adapter; raises `UsageError` where it names nothing."""
    modules = dict(network.named_modules())
    for name, disk in named(network, adapter.config.modules_to_save or ()).items():
        leaves = {leaf: (leaf, False) for leaf in modules[name]._parameters if getattr(modules[name], leaf) is not None}
        if leaves:
            adapter.parts[name] = Replaced(copies(modules[name], leaves, draw), leaves)
            adapter.disk[name] = disk
