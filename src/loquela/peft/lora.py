"""LoRA (Hu et al., 2021, arXiv:2106.09685): what tuning adds to a matrix W is the product of two thin ones.

    y = W x + s · B A x          A: (r, in)   B: (out, r)   s = lora_alpha / r

A is drawn, B is zero: at the start nothing is changed. B A is never made: x goes through A, then through B, so that a
step costs 2·r·(in + out) operations a token beside the 2·in·out of W itself, and W, frozen, needs no gradient.

`use_rslora`: s = lora_alpha / √r, so that the size of what is added does not shrink as r grows (arXiv:2312.03732).
`use_dora`: each row of W + s B A gets a length m of its own, which starts as that of W (arXiv:2402.09353):

    y = m / ‖W + s B A‖ ⊙ (W x + s · B A x) + bias

For an embedding, A holds a column for each token: y = E[token] + s · B A[:, token]. Recurrent layers are one kernel, so
that s · B A is added to their matrices once for each text, not for each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import ConfigError, UsageError
from loquela.models.base import Network
from loquela.peft.base import AdapterConfig, Part
from loquela.peft.draw import Draw
from loquela.peft.patterns import fits
from loquela.peft.saved import in_place
from loquela.peft.targets import chosen, stored_transposed, suffixes

__all__ = ["CONFIG", "EmbeddingLoRA", "LoRA", "LoRAConfig", "RecurrentLoRA", "make"]

_KINDS = (nn.Linear, nn.Embedding, nn.RNNBase)


@dataclass
class LoRAConfig(AdapterConfig):
    """adapter_config.json of LoRA; without `target_modules`, queries and values, or recurrent cells."""

    method: ClassVar[str] = "lora"
    peft_type: ClassVar[str] = "LORA"
    off: ClassVar[dict[str, Any]] = {"megatron_core": "megatron.core", "qalora_group_size": 16}

    r: int = 8
    lora_alpha: int | float = 8
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    """Whether the matrices on disk are (in, out), as GPT-2's: for readers of the file, A and B are the same."""
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Another r for layers, by the end of their names on disk or a regular expression for it."""
    alpha_pattern: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Ranks and alphas must be positive; starts that change the base are refused."""
        super().check()
        self.at_least("r", 1, 2**16)
        self.at_least("lora_dropout", 0, 1)
        for value in self.rank_pattern.values():
            if not 0 < value < 2**16:
                raise ConfigError(f"rank_pattern of an adapter must hold positive ranks, but one is {value}")
        if self.bias != "none":
            raise ConfigError(
                f"bias must be 'none', but is {self.bias!r}: an adapter that changes the base's biases can be tuned "
                "by the method selective"
            )
        if self.init_lora_weights not in (True, False, "gaussian", "eva", "orthogonal"):
            raise ConfigError(
                f"init_lora_weights must be true, false or 'gaussian', but is {self.init_lora_weights!r}: it changes "
                "the base as well, so convert the adapter to plain LoRA with the library that made it"
            )

    def scaling(self, rank: int, alpha: float) -> float:
        """What is added is multiplied by this."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class LoRA(Part):
    """What LoRA adds to a matrix."""

    def __init__(self, tensors: dict[str, Tensor], scaling: float, dropout: float) -> None:
        super().__init__(tensors)
        self.scaling, self.dropout = scaling, dropout

    @property
    def a(self) -> Tensor:
        """A (r, in)."""
        return self.tensors["lora_A.weight"]

    @property
    def b(self) -> Tensor:
        """B (out, r)."""
        return self.tensors["lora_B.weight"]

    @property
    def bias(self) -> Tensor | None:
        """What `lora_bias` adds to B (out,)."""
        return self.tensors.get("lora_B.bias")

    @property
    def magnitude(self) -> Tensor | None:
        """With DoRA, the length of each row (out,)."""
        return self.tensors.get("lora_magnitude_vector")

    def __call__(self, layer: Any, base: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As any part; under autocast `x` is cast once, not for each of its products."""
        return super().__call__(layer, base, _as_multiplied(x, x.dtype), *args, **kwargs)

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """`y + s · B A x`, and with DoRA the rows' lengths."""
        x = _as_multiplied(x, self.a.dtype)
        h = F.linear(F.dropout(x, self.dropout, training=layer.training and self.dropout > 0), self.a)  # (…, r)
        if self.magnitude is not None:
            return self._with_lengths(layer, h, y)
        if self.bias is not None or y.dtype != h.dtype:
            return y + (self.scaling * F.linear(h, self.b, self.bias)).to(y.dtype)
        wide = torch.addmm(y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1]), self.b.t(), alpha=self.scaling)
        return wide.view_as(y)

    def share(self, layer: Any) -> Tensor:
        """With DoRA, what the rows of W + s B A are multiplied by to have their lengths (out,)."""
        assert self.magnitude is not None
        return self.magnitude / self._lengths(layer.weight)

    def _with_lengths(self, layer: Any, h: Tensor, y: Tensor) -> Tensor:
        bias: Tensor | None = layer.bias
        share = self.share(layer)
        plain = y if bias is None else y - bias
        added = (share - 1) * plain + share * self.scaling * F.linear(h, self.b)
        return y + added.to(y.dtype)

    @torch.no_grad()
    def _lengths(self, weight: Tensor) -> Tensor:
        """Return the length of each row of W + s B A (out,), by which no gradient flows (the paper's 4.3)."""
        weight, s = weight.to(self.a.dtype), self.scaling
        own = torch.linalg.vecdot(weight, weight)
        across = (self.b * (weight @ self.a.t())).sum(1)
        added = (self.b * (self.b @ (self.a @ self.a.t()))).sum(1)
        squares: Tensor = own + 2 * s * across + s * s * added
        return squares.clamp_min(0).sqrt()

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """W + s B A, or with DoRA its rows at their lengths."""
        old: Tensor = layer.weight.detach()
        wide = old.to(self.a.dtype)
        new = wide + self.scaling * (self.b @ self.a)
        if self.magnitude is not None:
            new = new * (self.magnitude / torch.linalg.vector_norm(new, dim=1))[:, None]
        values = {"weight": (wide + weight * (new - wide)).to(old.dtype)}
        if self.bias is not None:
            if layer.bias is None:
                raise UsageError("lora_bias can be merged into a matrix with a bias only, but this one has none")
            values["bias"] = layer.bias.detach() + (weight * self.scaling * self.bias).to(old.dtype)
        return values

    def unmerged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """W - s B A; with DoRA the old lengths are lost."""
        return super().unmerged(layer, weight) if self.magnitude is not None else self.merged(layer, -weight)


class EmbeddingLoRA(Part):
    """What LoRA adds to an embedding."""

    def __init__(self, tensors: dict[str, Tensor], scaling: float) -> None:
        super().__init__(tensors)
        self.scaling = scaling

    @property
    def a(self) -> Tensor:
        """A (r, tokens)."""
        return self.tensors["lora_embedding_A"]

    @property
    def b(self) -> Tensor:
        """B (dim, r)."""
        return self.tensors["lora_embedding_B"]

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """`y + s · B A[:, x]`."""
        rows = F.embedding(x + getattr(layer, "offset", 0), self.a.t())  # (…, r)
        return y + (self.scaling * F.linear(rows, self.b)).to(y.dtype)

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """E + s (B A)ᵀ."""
        old: Tensor = layer.weight.detach()
        return {"weight": old + (weight * self.scaling * (self.b @ self.a).t()).to(old.dtype)}

    def unmerged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """E - s (B A)ᵀ."""
        return self.merged(layer, -weight)


class RecurrentLoRA(Part):
    """What LoRA adds to the matrices of recurrent layers; `tensors` are those of `LoRA` behind each matrix's name."""

    def __init__(self, tensors: dict[str, Tensor], scaling: float) -> None:
        super().__init__(tensors)
        self.scaling = scaling

    def __call__(self, layer: Any, base: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layers with W + s B A in place of each matrix W."""
        with in_place(layer, self.merged(layer, 1.0)):
            return base(x, *args, **kwargs)

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """W + s B A of each matrix, or with DoRA its rows at their lengths."""
        return {leaf: own.merged(one, weight)["weight"] for leaf, own, one in self._matrices(layer)}

    def unmerged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """W - s B A of each matrix; with DoRA the old lengths are lost."""
        return {leaf: own.unmerged(one, weight)["weight"] for leaf, own, one in self._matrices(layer)}

    def _matrices(self, layer: Any) -> Iterator[tuple[str, LoRA, SimpleNamespace]]:
        """Yield each matrix's name, what is added to it, and the matrix as a layer of its own."""
        for leaf in dict.fromkeys(name.partition(".")[0] for name in self.tensors):
            own: dict[str, Tensor] = {
                name.partition(".")[2]: t for name, t in self.tensors.items() if name.startswith(f"{leaf}.")
            }
            yield leaf, LoRA(own, self.scaling, 0.0), SimpleNamespace(weight=getattr(layer, leaf))


def make(network: Network, config: LoRAConfig, draw: Draw) -> tuple[LoRAConfig, dict[str, Part], dict[str, str]]:
    """Return the config with its targets spelled out, a part for each, and their names on disk."""
    picked = chosen(network, config, default=("q_proj", "v_proj", "qkv_proj", "cells"), kinds=_KINDS)
    modules = dict(network.named_modules())
    parts: dict[str, Part] = {}
    for name, disk in picked.items():
        rank = int(_by_name(config.rank_pattern, disk, config.r))
        scaling = config.scaling(rank, _by_name(config.alpha_pattern, disk, config.lora_alpha))
        layer = modules[name]
        if isinstance(layer, nn.Embedding):
            if config.use_dora:
                raise UsageError(f"use_dora must be false where an embedding is a target, but {disk} is one")
            parts[name] = EmbeddingLoRA(_embedding_start(layer, rank, config, draw), scaling)
        elif isinstance(layer, nn.RNNBase):
            parts[name] = RecurrentLoRA(_recurrent_start(layer, disk, rank, scaling, config, draw), scaling)
        else:
            parts[name] = LoRA(_start(layer.weight, rank, scaling, config, draw), scaling, config.lora_dropout)
    if not isinstance(config.target_modules, list) or config.layers_to_transform is None:
        config = replace(config, target_modules=suffixes(network, picked, _KINDS))
    return replace(config, fan_in_fan_out=stored_transposed(network, picked)), parts, picked


def _start(weight: Tensor, rank: int, scaling: float, config: LoRAConfig, draw: Draw) -> dict[str, Tensor]:
    out, width = weight.shape
    gaussian, changed = config.init_lora_weights == "gaussian", config.init_lora_weights is False
    a = draw.normal(1 / rank, rank, width) if gaussian else draw.uniform(1 / math.sqrt(width), rank, width)
    b = draw.uniform(1 / math.sqrt(rank), out, rank) if changed else draw.filled(0, out, rank)
    tensors = {"lora_A.weight": a, "lora_B.weight": b}
    if config.lora_bias:
        tensors["lora_B.bias"] = draw.filled(0, out)
    if config.use_dora:
        tensors["lora_magnitude_vector"] = draw.made(
            (out,), lambda: torch.linalg.vector_norm(weight.to(draw.dtype) + scaling * (b @ a), dim=1)
        )
    return tensors


def _recurrent_start(
    layer: nn.RNNBase, disk: str, rank: int, scaling: float, config: LoRAConfig, draw: Draw
) -> dict[str, Tensor]:
    for wrong in ("lora_dropout", "lora_bias"):
        if getattr(config, wrong):
            raise UsageError(
                f"{wrong} must be off where recurrent layers are a target, but {disk} is one: LoRA is added to their "
                "matrices, not to what these give"
            )
    return {
        f"{leaf}.{name}": tensor
        for leaf, weight in layer.named_parameters()
        if weight.dim() == 2
        for name, tensor in _start(weight, rank, scaling, config, draw).items()
    }


def _embedding_start(layer: nn.Embedding, rank: int, config: LoRAConfig, draw: Draw) -> dict[str, Tensor]:
    tokens, changed = layer.num_embeddings, config.init_lora_weights is False
    return {
        "lora_embedding_A": draw.normal(1, rank, tokens) if changed else draw.filled(0, rank, tokens),
        "lora_embedding_B": draw.normal(1, layer.embedding_dim, rank),
    }


def _as_multiplied(x: Tensor, plain: torch.dtype) -> Tensor:
    """Return `x` in the type that autocast would give it for a product, or in `plain` where there is no autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else plain)


def _by_name(pattern: dict[str, int], disk: str, default: float) -> float:
    for key, value in pattern.items():
        if disk == key or disk.endswith(f".{key}") or fits(rf"(.*\.)?({key})", disk):
            return value
    return default


CONFIG = LoRAConfig
