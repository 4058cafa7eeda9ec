"""Which part of the network made a logit: the sum that the residual stream is, taken apart.

What a block adds to the stream reaches the head through norms and sums alone. With the mean and the scale of each norm
as they were, both are linear, so that a logit is a sum with one term for each head of each layer, for each
feed-forward, for the embedding, and for the biases (Elhage et al., 2021, "A Mathematical Framework for Transformer
Circuits"). The terms add up to the logit; how they would change if a norm's scale changed too is not in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from loquela.generation.decode import evaluating
from loquela.inspection.reading import Reading, UnavailableError, head, stack
from loquela.inspection.watch import Seen, watch
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import Block, PostNormBlock, PreNormBlock, SandwichBlock
from loquela.layers.norms import RMSNorm

__all__ = ["Term", "attribute"]


@dataclass
class Term:
    """One addend of a logit. `kind` is embedding, head, cross, feed_forward, bias, or in half precision rounding."""

    kind: str
    layer: int | None
    head: int | None
    value: float


@dataclass
class _Stream:
    """Terms of the residual stream at one place: `parts` (terms, dim) sum to `whole` (dim,)."""

    parts: Tensor
    names: list[tuple[str, int | None, int | None]]

    def add(self, kind: str, layer: int | None, head: int | None, vector: Tensor) -> None:
        self.parts = torch.cat((self.parts, vector[None]))
        self.names.append((kind, layer, head))

    def through(self, norm: nn.Module) -> None:
        """Send every term through a norm whose statistics are those of their sum; its bias is a term of its own."""
        linear, bias = _frozen(norm, self.parts.sum(0))
        self.parts = linear(self.parts)
        if bias is not None:
            self.add("bias", None, None, bias)


def attribute(reading: Reading, place: int, token: int) -> tuple[list[Term], float]:
    """Return the terms of the logit of `token` at `place` of `reading.written`, and the logit itself.

    Computed in float64. Raises `UnavailableError` for a network whose blocks are not sums, or whose head is not linear.
    """
    network = reading.network
    place = place % len(reading.written) - len(reading.written)  # from the end: a soft prompt stands before the text
    side = stack(network)
    layers = side.layers
    assert isinstance(layers, nn.ModuleList)
    if not all(isinstance(layer, Block) for layer in layers):
        raise UnavailableError(
            f"attribution is unavailable: the blocks of {network.config.model_type} are no plain sums"
        )
    name = next(n for n, module in network.named_modules() if module is side)
    parts = ("attention", "cross", "feedforward")
    wanted = [f"{name}.layers.0:input"]
    for i, layer in enumerate(layers):
        present = [part for part in parts if isinstance(getattr(layer, part, None), nn.Module)]
        wanted += [f"{name}.layers.{i}.{part}" for part in present]
        wanted += [f"{name}.layers.{i}.{part}.o_proj:input" for part in present if part != "feedforward"]
    with watch(network, *wanted) as seen, evaluating(network):
        final = reading.hidden()[0, place].double()
        stream = _Stream(seen[wanted[0]][-1][0, place].double()[None], [("embedding", None, None)])
        for i, layer in enumerate(layers):
            _block(stream, layer, i, partial(_at, seen, f"{name}.layers.{i}.", place))
        norm = getattr(side, "norm", None)
        if norm is not None:
            stream.through(norm)
        row, bias, logit = _row(reading, final, token)
        values = (stream.parts @ row).tolist()
    named = zip(stream.names, values, strict=True)
    terms = _joined([*(Term(*name, value) for name, value in named), Term("bias", None, None, bias)])
    rest = logit - sum(term.value for term in terms)
    half = torch.finfo(next(network.parameters()).dtype).bits < 32
    if half and abs(rest) < 0.05 * max(1.0, abs(logit)):
        terms.append(Term("rounding", None, None, rest))
    elif abs(rest) > 1e-3 * max(1.0, abs(logit)):
        raise UnavailableError(
            f"attribution is unavailable: the terms of {network.config.model_type} sum to {logit - rest:.4g}, but its "
            f"logit is {logit:.4g}; something between the blocks and the logits is no sum"
        )
    return terms, logit


def _at(seen: Seen, prefix: str, place: int, part: str) -> Tensor:
    return seen[prefix + part][-1][0, place].double()


def _block(stream: _Stream, layer: nn.Module, i: int, seen: Callable[[str], Tensor]) -> None:
    """Add what one block adds, and send all through the norms that stand in the stream's way."""
    halves = [("head", "attention"), ("cross", "cross"), ("feed_forward", "feedforward")]
    for kind, part in halves:
        module = getattr(layer, part, None)
        if not isinstance(module, nn.Module):
            continue
        added = _Stream(torch.empty(0, stream.parts.shape[1], dtype=torch.float64), [])
        if kind == "feed_forward":
            added.add(kind, i, None, seen(part))
        else:
            _heads(added, kind, i, module, seen(f"{part}.o_proj:input"), seen(part))
        if isinstance(layer, SandwichBlock):
            added.through(getattr(layer, f"after_{part}_norm"))
        elif not isinstance(layer, PreNormBlock | PostNormBlock):
            raise UnavailableError(f"attribution is unavailable: a {type(layer).__name__} is not known to be a sum")
        stream.parts, stream.names = torch.cat((stream.parts, added.parts)), [*stream.names, *added.names]
        if isinstance(layer, PostNormBlock):
            stream.through(getattr(layer, f"{part}_norm"))


def _heads(added: _Stream, kind: str, i: int, module: nn.Module, mixed: Tensor, whole: Tensor) -> None:
    """One term per head: what the output matrix makes of that head's slice alone."""
    if not isinstance(module, MultiHeadAttention):
        raise UnavailableError(f"attribution is unavailable: a {type(module).__name__} has no heads to tell apart")
    weight = module.o_proj.weight.double()  # (dim, heads · head_dim)
    slices = weight.view(weight.shape[0], module.heads, module.head_dim)
    terms = torch.einsum("dhe,he->hd", slices, mixed.view(module.heads, module.head_dim))
    for h in range(module.heads):
        added.add(kind, i, h, terms[h])
    added.add("bias", i, None, whole - terms.sum(0))  # the matrix's bias, and what an adapter adds to it


def _frozen(norm: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """Return a norm as a linear map, with the mean and scale that it has at `x` (dim,), and its bias."""
    if isinstance(norm, nn.LayerNorm):
        scale = (x.var(unbiased=False) + norm.eps).rsqrt()
        weight = 1.0 if norm.weight is None else norm.weight.double()
        bias = None if norm.bias is None else norm.bias.double()
        return lambda parts: (parts - parts.mean(-1, keepdim=True)) * scale * weight, bias
    if isinstance(norm, RMSNorm):
        ones = torch.ones_like(x)
        weight = norm(ones.to(next(norm.parameters()).dtype)).double() * (1 + norm.eps) ** 0.5  # however it is stored
        scale = (x.square().mean() + norm.eps).rsqrt()
        return lambda parts: parts * scale * weight, None
    if isinstance(norm, nn.Identity):
        return lambda parts: parts, None
    raise UnavailableError(f"attribution is unavailable: a {type(norm).__name__} is not known to be linear")


def _row(reading: Reading, final: Tensor, token: int) -> tuple[Tensor, float, float]:
    """Return what the head multiplies hidden states by for `token`, its bias, and the logit."""
    network = reading.network
    dtype = next(network.parameters()).dtype
    with torch.enable_grad():
        nothing = torch.zeros_like(final, dtype=dtype).requires_grad_()
        (first,) = torch.autograd.grad(head(network, nothing)[token], nothing)
        x = final.to(dtype).requires_grad_()
        logit = head(network, x)[token]
        (row,) = torch.autograd.grad(logit, x)
    if not torch.allclose(first, row, rtol=1e-4, atol=1e-6):
        raise UnavailableError(f"attribution is unavailable: the head of {network.config.model_type} is not linear")
    row = row.double()
    return row, float(logit.double() - row @ final), float(logit.double())


def _joined(terms: list[Term]) -> list[Term]:
    """Biases of one layer, and those of none, are one term each."""
    joined: dict[tuple[str, int | None, int | None], Term] = {}
    for term in terms:
        key = (term.kind, term.layer, term.head)
        if key in joined:
            joined[key].value += term.value
        else:
            joined[key] = term
    return list(joined.values())
