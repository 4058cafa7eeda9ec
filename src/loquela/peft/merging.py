"""Folding an adapter into the base's weights and out again, and joining several adapters into one.

What a merge replaces is kept, so that `unmerge` gives the base back to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.layers.quantized import QuantizedLinear
from loquela.models.base import Network
from loquela.peft.attaching import adapter_of, adapters, put_on
from loquela.peft.base import Adapter, Part
from loquela.peft.lora import LoRA, LoRAConfig
from loquela.peft.wardrobe import wardrobe_of

__all__ = ["combine", "merge", "subtract", "unmerge"]

How = Literal["weighted", "ties"]


def merge(network: Network, name: str, weight: float = 1.0) -> None:
    """Fold an adapter into the base: its weights then compute, worn by nobody, what they computed with it on.

    `weight` scales what is added. All new weights are computed before any is changed. Raises `UsageError` for a method
    that no weights of the base can stand for (bottleneck adapters, soft prompts), for a base that is quantised, and for
    a weight that is tied to a layer which does not wear the adapter.
    """
    wardrobe = wardrobe_of(network)
    if wardrobe is not None and name in wardrobe.merged:
        raise UsageError(f"an adapter can be merged once, but {name!r} is merged already: unmerge it first")
    old = _replace(network, name, lambda part, layer: part.merged(layer, weight))
    assert wardrobe is not None
    wardrobe.merged[name] = old


def subtract(network: Network, name: str, weight: float = 1.0) -> None:
    """Take an adapter out of weights that it was merged into elsewhere, as far as rounding allows.

    Raises `UsageError` for what cannot be computed from merged weights: DoRA's lengths, tensors replaced whole.
    """
    _replace(network, name, lambda part, layer: part.unmerged(layer, weight))


def _replace(
    network: Network, name: str, values: Callable[[Part, Any], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Put new values into the layers of an adapter; returns the old ones, by layer and tensor."""
    adapter, wardrobe = adapter_of(network, name), wardrobe_of(network)
    if wardrobe is not None and wardrobe.worn is not None:
        raise UsageError("an adapter can be merged while nothing is worn: leave the block of `wearing` first")
    if adapter.virtual is not None:
        raise UsageError(
            f"a soft prompt stands before the text and cannot be merged into weights: keep {name!r} as an adapter"
        )
    modules = dict(network.named_modules())
    if any(isinstance(modules[layer], QuantizedLinear) for layer in adapter.parts):
        raise UsageError("an adapter is merged into a base with full weights: load it without quantising")
    with torch.no_grad():
        each = {layer: values(part, modules[layer]) for layer, part in adapter.parts.items()}
    new = {(layer, leaf): value for layer, leaves in each.items() for leaf, value in leaves.items()}
    places = _places(network)
    for layer, leaf in new:
        for other in places[id(getattr(modules[layer], leaf))]:
            if other not in new or not torch.equal(new[other], new[layer, leaf]):
                raise UsageError(
                    f"{layer}.{leaf} is tied to {'.'.join(other)}, where {name!r} changes nothing: keep it as an "
                    "adapter, or untie them (tie_word_embeddings)"
                )
    old: dict[str, dict[str, Tensor]] = {}
    with torch.no_grad():
        for layer, leaf in new:
            old.setdefault(layer, {})[leaf] = getattr(modules[layer], leaf).detach().clone()
        for (layer, leaf), value in new.items():
            getattr(modules[layer], leaf).copy_(value)
    return old


def unmerge(network: Network, name: str) -> None:
    """Give the base back what it was before `merge`, to the last bit; the last adapter merged goes first."""
    wardrobe = wardrobe_of(network)
    if wardrobe is None or name not in wardrobe.merged:
        raise UsageError(f"an adapter must be merged to be unmerged, but {name!r} is not")
    if (last := list(wardrobe.merged)[-1]) != name:
        raise UsageError(f"adapters are unmerged in the reverse order, so {last!r} comes before {name!r}")
    modules = dict(network.named_modules())
    with torch.no_grad():
        for layer, leaves in wardrobe.merged.pop(name).items():
            for leaf, value in leaves.items():
                getattr(modules[layer], leaf).copy_(value)


def combine(
    network: Network,
    names: Sequence[str],
    weights: Sequence[float],
    how: How = "weighted",
    into: str = "combined",
    *,
    density: float = 0.2,
) -> Adapter:
    """Join LoRA adapters into one of the same effect as their weighted sum, put on `network` under the name `into`.

    `weighted` adds up what each adds to each matrix, exactly: the new rank is the sum of theirs. `ties`
    (arXiv:2306.01708) keeps of each the `density` of its largest changes, elects a sign for every number by the
    weighted sum, and averages those that agree; what comes of it is stored at the rank it has, at most the smaller side
    of the matrix. Raises `UsageError` for adapters that are no LoRA, or that have lengths of their own (DoRA).
    """
    if len(names) != len(weights) or not names:
        raise UsageError(f"each adapter must have one weight, but {len(names)} have {len(weights)}")
    if how not in ("weighted", "ties"):
        raise UsageError(f"how must be weighted or ties, but is {how!r}")
    if not into or into in adapters(network):
        raise UsageError(f"the name of the combined adapter must be a new one, but is {into!r}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be a share above 0, but is {density}")
    given = [adapter_of(network, name) for name in names]
    parts: dict[str, Any] = {}
    disk: dict[str, str] = {}
    for layer in dict.fromkeys(layer for adapter in given for layer in adapter.parts):
        own = [
            (_plain(adapter, layer), weight)
            for adapter, weight in zip(given, weights, strict=True)
            if layer in adapter.parts
        ]
        disk[layer] = next(adapter.disk[layer] for adapter in given if layer in adapter.disk)
        with torch.no_grad():
            a, b = _summed(own) if how == "weighted" else _elected(own, density)
        parts[layer] = LoRA({"lora_A.weight": a, "lora_B.weight": b}, 1.0, 0.0)
    ranks = {disk[layer]: len(part.a) for layer, part in parts.items()}
    first = given[0].config
    config = LoRAConfig(
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        fan_in_fan_out=bool(getattr(first, "fan_in_fan_out", False)),
    )
    adapter = Adapter(into, config, parts, disk)
    put_on(network, adapter)
    return adapter


def _plain(adapter: Adapter, layer: str) -> LoRA:
    part = adapter.parts[layer]
    if not isinstance(part, LoRA) or part.magnitude is not None or part.bias is not None:
        raise UsageError(
            f"adapters of plain LoRA on matrices can be combined, but {adapter.name!r} is more than that: merge one "
            "after the other instead"
        )
    return part


def _summed(own: Sequence[tuple[LoRA, float]]) -> tuple[Tensor, Tensor]:
    """Stack the ranks: Σ w s B A = [w₁ s₁ B₁ …] [A₁; …]."""
    a = torch.cat([part.a for part, _ in own])
    b = torch.cat([weight * part.scaling * part.b for part, weight in own], dim=1)
    return a, b


def _elected(own: Sequence[tuple[LoRA, float]], density: float) -> tuple[Tensor, Tensor]:
    """TIES: trim, elect signs, average what agrees (the paper's algorithm 1), and factor the result."""
    deltas = torch.stack([weight * part.scaling * (part.b @ part.a) for part, weight in own])  # (n, out, in)
    kept = max(1, round(density * deltas[0].numel()))
    least = deltas.abs().flatten(1).topk(kept).values[:, -1]
    deltas = torch.where(deltas.abs() >= least[:, None, None], deltas, 0.0)
    agrees = (deltas.sign() == deltas.sum(0).sign()) & (deltas != 0)
    total = torch.where(agrees, deltas, 0.0).sum(0) / agrees.sum(0).clamp_min(1)
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    rank = max(1, int((s > s[0] * 1e-7).sum()))
    return v[:rank].contiguous(), (u[:, :rank] * s[:rank]).contiguous()


def _places(network: Network) -> dict[int, list[tuple[str, str]]]:
    """Return where each parameter stands; a module that stands in several places counts once."""
    places: dict[int, list[tuple[str, str]]] = {}
    for name, module in network.named_modules():
        for leaf, parameter in module._parameters.items():
            if isinstance(parameter, nn.Parameter):
                places.setdefault(id(parameter), []).append((name, leaf))
    return places
