"""Adapters as the kernels read them (`loquela.engine.adapting`): made ready when they are first worn.

A record, the columns of one site: rank (0: no thin matrices), address of A (rank, inputs), inputs, of the bias behind
it (0: none), number of the activation (-1: none), whether A reads what the site gives and not what it reads, offset of
h within a row of thin numbers, address of B by tiles (of sixteen outputs: rank after rank), outputs, offset of the
outputs within a row, addresses of scale and shift, of the factor of what the site reads (0: none of each).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.engine.adapting import RECORD
from loquela.engine.bricks import ACTIVATION_CODES, Site, unknown
from loquela.engine.memory import address
from loquela.engine.pages import Row
from loquela.errors import UsageError
from loquela.layers.feedforward import ACTIVATIONS
from loquela.models.base import Network
from loquela.peft.adapter import Bottleneck
from loquela.peft.base import Adapter, Part
from loquela.peft.ia3 import IA3
from loquela.peft.lora import EmbeddingLoRA, LoRA
from loquela.peft.prompt import SoftPrompt
from loquela.peft.saved import Replaced
from loquela.peft.wardrobe import Wardrobe, wardrobe_of

__all__ = ["Closet", "Outfit", "without_weights"]


@dataclass
class Outfit:
    """One adapter: a record for each site."""

    adapter: Adapter
    table: npt.NDArray[np.int64]
    state: object
    """Another one when the adapter's values are others, or may be."""
    reached: set[int] = field(default_factory=set)
    low: int = 0
    """Numbers that a row of h has."""
    rows: dict[bool, Row] = field(default_factory=dict)
    """What its virtual positions became before texts that are long or not, once that is known."""
    kept: list[Tensor] = field(default_factory=list)
    runs: Any = None
    """What runs its rows where it has other tensors than the base; see `loquela.engine.swapping`."""

    @property
    def address(self) -> int:
        """Where the records are."""
        return self.table.ctypes.data

    @property
    def virtual(self) -> int:
        """How many positions stand before the text that is written."""
        part = self.adapter.virtual
        return 0 if part is None or part.in_encoder else part.length

    @property
    def virtual_source(self) -> int:
        """How many positions stand before the source that an encoder reads."""
        part = self.adapter.virtual
        return part.length if part is not None and part.in_encoder else 0

    def vectors(self, scale: float = 1.0) -> Tensor | None:
        """What stands before the text as embeddings (positions, dim), over `scale`; None for keys and values."""
        part = self.adapter.virtual
        return part.vectors().detach().float().contiguous() / scale if isinstance(part, SoftPrompt) else None

    @torch.no_grad()
    def keys_values(self, network: Network) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Each layer's keys and values (key-value heads, positions, head_dim) before the text."""
        assert self.adapter.virtual is not None
        layers = self.adapter.virtual.became(network).layers
        return [tuple(x[0].float().numpy() for x in layer.held()) for layer in layers]  # type: ignore[misc]

    def at(self, values: Tensor | None) -> int:
        """Keep values in float32, as they are if they are; return where."""
        if values is None:
            return 0
        self.kept.append(values.detach().float().contiguous())
        return address(self.kept[-1])


@dataclass
class _Terms:
    """What a part adds: `y = scale ⊙ y + shift + B activation(A z + bias)`, or `x = factor ⊙ x` before."""

    a: Tensor | None = None
    b: Tensor | None = None
    bias: Tensor | None = None
    activation: int = -1
    own: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None
    factor: Tensor | None = None


class Closet:
    """The outfits of a compiled network, made from the adapters on `base`.

    `matrix` gives what is multiplied by, in float32, by its layer's name.
    """

    swap: Callable[[Mapping[str, Mapping[str, Tensor]]], Any]
    """Makes what runs the rows of an adapter that has tensors, by layer and name, in place of the base's."""

    def __init__(self, base: Network, sites: Mapping[str, Site], matrix: Callable[[str], Tensor]) -> None:
        self.base, self._sites, self._matrix = base, sites, matrix
        self._outfits: dict[str, Outfit] = {}
        self._reached: frozenset[int] | None = None

    @property
    def wardrobe(self) -> Wardrobe | None:
        """The base's adapters and what is worn of them."""
        return wardrobe_of(self.base)

    @property
    def reached(self) -> frozenset[int]:
        """The sites that adapters reach which have been worn and are still there."""
        there = {} if self.wardrobe is None else self.wardrobe.adapters
        gone = [name for name, outfit in self._outfits.items() if there.get(name) is not outfit.adapter]
        for name in gone:
            del self._outfits[name]
        if gone or self._reached is None:
            self._reached = frozenset(site for outfit in self._outfits.values() for site in outfit.reached)
        return self._reached

    @property
    def virtual(self) -> int:
        """The most virtual positions that something worn now puts before a text."""
        wardrobe = self.wardrobe
        if wardrobe is None or wardrobe.worn is None:
            return 0
        parts = [wardrobe.adapters[name].virtual for name in wardrobe.worn.each() if name is not None]
        return max((part.length for part in parts if part is not None), default=0)

    def worn(self, rows: int) -> list[str | None]:
        """Which adapter each of `rows` rows wears now; raises `UsageError` where other rows do."""
        worn = None if self.wardrobe is None else self.wardrobe.worn
        if worn is None:
            return [None] * rows
        if worn.rows is not None and worn.rows != rows:
            raise UsageError(f"adapters are worn by {worn.rows} rows, so a batch must have as many, but has {rows}")
        return [worn.names] * rows if isinstance(worn.names, str) else [*worn.names]

    def outfit(self, name: str, *, fresh: bool) -> Outfit:
        """Return an adapter made ready; where a text begins, `fresh` looks whether its values are still the same.

        Raises `UsageError` for one that does what the engine does not know.
        """
        adapter = None if self.wardrobe is None else self.wardrobe.adapters.get(name)
        if adapter is None:
            raise UsageError(f"there is no adapter {name!r}")
        found = self._outfits.get(name)
        if found is None or found.adapter is not adapter or (fresh and found.state != _state(adapter)):
            found = self._outfits[name] = self._fitted(adapter)
            self._reached = None
        return found

    def refusal(self, name: str) -> str | None:
        """Why an adapter cannot be worn here; None for one that can."""
        try:
            self.outfit(name, fresh=False)
        except UsageError as error:
            return str(error)
        return None

    def _fitted(self, adapter: Adapter) -> Outfit:
        outfit = Outfit(adapter, np.zeros((len(self._sites), RECORD), dtype=np.int64), _state(adapter))
        low: dict[int, int] = {}
        own: dict[str, Mapping[str, Tensor]] = {}
        for name, part in adapter.parts.items():
            layer, site = self.base.get_submodule(name), self._sites.get(name)
            if type(part) is Part:  # marks where a soft prompt is read
                continue
            if isinstance(part, Replaced):
                own[name] = {leaf: value.to(getattr(layer, leaf).dtype) for leaf, value in part.values()}
                continue
            terms = _terms(part, partial(self._wide, name, layer))
            if site is None:  # what the program reads when it is made
                own[name] = part.merged(layer, 1.0)
                continue
            if terms.factor is not None and not site.scales:  # others read what it multiplies
                own[name] = part.merged(self._wide(name, layer), 1.0)
                continue
            rank = 0 if terms.a is None else len(terms.a)
            start = low.get(site.group, 0)
            low[site.group] = start + -(-rank // 16) * 16
            outfit.table[site.number, :13] = [
                rank, outfit.at(terms.a), site.inputs, outfit.at(terms.bias), terms.activation, terms.own, 4 * start,
                outfit.at(None if terms.b is None else _tiles(terms.b)), site.width, 4 * site.column,
                outfit.at(terms.scale), outfit.at(terms.shift), outfit.at(terms.factor),
            ]  # fmt: skip
            outfit.reached.add(site.number)
        outfit.low = max(low.values(), default=0)
        outfit.runs = self.swap(own) if own else None
        return outfit

    def _wide(self, name: str, layer: Any) -> Any:
        """A layer as adapters compute with it: what is multiplied by, rounded or not, in float32."""
        return SimpleNamespace(weight=self._matrix(name), bias=layer.bias)


@torch.no_grad()
def _terms(part: Part, wide: Callable[[], Any]) -> _Terms:
    t = part.tensors
    if type(part) is LoRA:
        b, shift = part.scaling * part.b, None if part.bias is None else part.scaling * part.bias
        if part.magnitude is None:
            return _Terms(part.a, b, shift=shift)
        layer = wide()
        share = part.share(layer)
        return _Terms(part.a, share[:, None] * b, scale=share, shift=_share_of(layer.bias, 1 - share))
    if type(part) is EmbeddingLoRA:
        return _Terms(part.a, part.scaling * part.b)
    if type(part) is IA3:
        factors = t["ia3_l"].flatten()
        return _Terms(factor=factors) if part.inputs else _Terms(scale=factors)
    if type(part) is Bottleneck:
        config = part.config
        return _Terms(
            t["adapter_down.weight"],
            config.scaling * t["adapter_up.weight"],
            t["adapter_down.bias"],
            ACTIVATION_CODES[ACTIVATIONS[config.non_linearity]],
            own=not config.is_parallel,
            shift=config.scaling * t["adapter_up.bias"],
        )
    raise unknown(f"what an adapter of kind {type(part).__name__} does")


def _share_of(bias: Tensor | None, share: Tensor) -> Tensor | None:
    return None if bias is None else share * bias


def _tiles(b: Tensor) -> Tensor:
    """B (outputs, rank) as tiles (⌈outputs / 16⌉, rank, 16)."""
    outputs, rank = b.shape
    padded = torch.zeros(-(-outputs // 16), 16, rank)
    padded.flatten(0, 1)[:outputs] = b
    return padded.transpose(1, 2)


def _state(adapter: Adapter) -> object:
    tensors = [tensor for _, tensor in adapter.tensors()]
    if any(tensor.requires_grad for tensor in tensors):  # a fused update does not say so in a version
        return object()
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]


def without_weights(network: Network) -> Network:
    """Return a copy of `network` with the same adapters, whose matrices, but embeddings, take no memory."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        if parameter.dim() > 1:
            # not `empty_like`: on the meta device it imports a fifth of torch
            nothing = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            memo[id(parameter)] = nn.Parameter(nothing, requires_grad=False)
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            memo[id(module.weight)] = module.weight
    wardrobe = wardrobe_of(network)
    for adapter in {} if wardrobe is None else wardrobe.adapters.values():
        memo.update((id(tensor), tensor) for _, tensor in adapter.tensors())
    return copy.deepcopy(network, memo)
