"""Tensors of the base that an adapter has its own values of: `modules_to_save`, and the method selective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from loquela.checkpoint.rules import disk_name
from loquela.layers.counts import learnable
from loquela.models.base import Network
from loquela.peft.base import Adapter, Part
from loquela.peft.draw import Draw
from loquela.peft.targets import named

__all__ = ["Leaf", "Replaced", "add_saved", "in_place", "replaced"]


@dataclass(frozen=True)
class Leaf:
    """One tensor of a network at one place: its layer in code, its own name there, its whole name on disk."""

    module: str
    leaf: str
    disk: str
    transposed: bool
    tensor: nn.Parameter

    @classmethod
    def all(cls, network: Network) -> list[Leaf]:
        """Return every parameter that can be tuned at every place where it stands."""
        prefix = network.base_prefix if network.headless else ""
        leaves, tunable = [], {id(tensor) for tensor in learnable(network).values()}
        for name, module in network.named_modules():
            for leaf, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
                if id(tensor) in tunable and tensor.is_floating_point():
                    disk, transposed = disk_name(f"{name}.{leaf}", network.renames)
                    leaves.append(cls(name, leaf, disk.removeprefix(prefix), transposed, tensor))
        return leaves


class Replaced(Part):
    """A layer with other values of some of its tensors; they start as the base's.

    `leaves` says which of the layer's tensors each of `tensors` stands for, and whether it is transposed on disk.
    """

    def __init__(self, tensors: Mapping[str, Tensor], leaves: Mapping[str, tuple[str, bool]]) -> None:
        super().__init__(tensors)
        self.leaves = dict(leaves)

    def __call__(self, layer: Any, base: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer with these tensors in place of its own."""
        with in_place(layer, {leaf: value.to(getattr(layer, leaf).dtype) for leaf, value in self.values()}):
            return base(x, *args, **kwargs)

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The base's output is of no use: compute it with these tensors."""
        return self(layer, base, x)

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """The base's values moved towards these."""
        old = {leaf: getattr(layer, leaf).detach() for leaf, _ in self.leaves.values()}
        return {leaf: old[leaf] + weight * (value.to(old[leaf].dtype) - old[leaf]) for leaf, value in self.values()}

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the layer's own name of each tensor and the value that stands in for it, of the layer's shape."""
        for name, (leaf, transposed) in self.leaves.items():
            yield leaf, self.tensors[name].t() if transposed else self.tensors[name]


@contextmanager
def in_place(layer: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a layer compute with `values` in place of its own tensors of those names; gradients flow through them."""
    own = {leaf: layer._parameters[leaf] for leaf in values}
    try:
        layer._parameters.update(values)
        _refresh(layer)
        yield
    finally:
        layer._parameters.update(own)
        _refresh(layer)


def _refresh(layer: Any) -> None:
    """Recurrent kernels keep a list of their tensors beside the table of parameters."""
    if isinstance(layer, nn.RNNBase):
        layer._flat_weights = [layer._parameters[name] for name in layer._flat_weights_names]


def replaced(network: Network, leaves: Iterable[Leaf], draw: Draw) -> dict[str, Part]:
    """Return a part for each layer that has some of `leaves`; a tied tensor is replaced by one wherever it stands."""
    chosen = {id(leaf.tensor): leaf for leaf in reversed([*leaves])}  # the first place names a tied one
    copies: dict[int, nn.Parameter] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    places: dict[str, dict[str, tuple[str, bool]]] = {}
    for leaf in Leaf.all(network):
        first = chosen.get(id(leaf.tensor))
        if first is None:
            continue
        if id(leaf.tensor) not in copies:
            value = leaf.tensor.detach()
            value = value.t() if first.transposed else value
            copies[id(leaf.tensor)] = nn.Parameter(
                draw.made(tuple(value.shape), value.contiguous().clone), requires_grad=False
            )
        tensors.setdefault(leaf.module, {})[first.disk] = copies[id(leaf.tensor)]
        places.setdefault(leaf.module, {})[first.disk] = leaf.leaf, first.transposed
    return {module: Replaced(tensors[module], places[module]) for module in tensors}


def add_saved(network: Network, adapter: Adapter, draw: Draw) -> None:
    """Add what `modules_to_save` names to an adapter; raises `UsageError` where it names nothing.

    As in PEFT, a tensor that is tied becomes the module's own.
    """
    wanted = named(network, adapter.config.modules_to_save or ())
    for leaf in Leaf.all(network):
        if leaf.module in wanted:
            value = leaf.tensor.detach()
            value = value.t() if leaf.transposed else value
            own = adapter.parts.get(leaf.module)
            tensors = dict(own.tensors) if isinstance(own, Replaced) else {}
            places = dict(own.leaves) if isinstance(own, Replaced) else {}
            tensors[leaf.disk] = nn.Parameter(
                draw.made(tuple(value.shape), value.contiguous().clone), requires_grad=False
            )
            places[leaf.disk] = leaf.leaf, leaf.transposed
            adapter.parts[leaf.module] = Replaced(tensors, places)
            adapter.disk.pop(leaf.module, None)
