"""Attention as operations: what turns, stores and looks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from loquela.engine import board as code
from loquela.engine.bricks import bits_of_float, kind_of, norm_weight, unknown
from loquela.engine.buffers import Buffer
from loquela.engine.pages import LayerPages
from loquela.engine.program import Program
from loquela.layers.attention import CrossAttention, MultiHeadAttention
from loquela.models.gemma2 import SoftCappedAttention
from loquela.models.olmo2 import WideNormAttention

__all__ = ["Sight", "attend_to_memory", "attend_to_text", "check_attention", "keys_values"]

_BACK, _ALL, _MEMORY = range(3)  # whom a query sees: what stands before it, its whole text, an encoder's output


@dataclass(frozen=True)
class Sight:
    """What positions do in one layer.

    `turned` dimensions of a head are turned by the angles in `slot`. No further back than `window` is looked, and ahead
    where the whole text is seen. At `biases` stands what is added to the scores (`loquela.engine.angles.Biases`).
    """

    turned: int = 0
    slot: int = -1
    window: int | None = None
    biases: int = 0
    ahead: bool = False


def check_attention(layer: nn.Module) -> None:
    """Raise `UsageError` for an attention to its own text that is none of those known here."""
    known: tuple[type[nn.Module], ...] = MultiHeadAttention, SoftCappedAttention, WideNormAttention
    if kind_of(layer) not in known:
        raise unknown(f"an attention of kind {kind_of(layer).__name__}")


def attend_to_text(program: Program, layer: MultiHeadAttention, qkv: Buffer, y: Buffer, sight: Sight) -> int:
    """Normalise and turn queries and keys, put keys and values into pages, and let the queries look at them.

    Returns after how many operations of the program all keys are there.
    """
    pages = (program.source if sight.ahead else program.pages).add(layer.kv_heads, layer.head_dim)
    norms = (layer.q_norm, layer.k_norm)
    if kind_of(layer) is WideNormAttention:
        keys = qkv.columns(layer.splits[0], layer.splits[1])
        program.norm(layer.q_norm, qkv.columns(0, layer.splits[0]), qkv.columns(0, layer.splits[0]))
        program.norm(layer.k_norm, keys, keys)
        norms = (None, None)
    _store(program, pages, qkv, layer.heads, _scale(layer), sight, norms)
    stored = len(program.ops)
    whom = _ALL if sight.ahead else _BACK
    cap = layer.cap if isinstance(layer, SoftCappedAttention) else 0.0
    _look(program, pages, layer, qkv, y, whom, window=sight.window, cap=cap, biases=sight.biases)
    return stored


def attend_to_memory(program: Program, layer: CrossAttention, q: Buffer, y: Buffer) -> None:
    """Let queries look at what an encoder made of the source."""
    if kind_of(layer) is not CrossAttention:
        raise unknown(f"an attention of kind {kind_of(layer).__name__}")
    pages = program.memory.add(layer.kv_heads, layer.head_dim)
    if _scale(layer) != 1.0:
        alone = LayerPages(0, 0, layer.head_dim, pages.padded, pages.kind)  # queries are scaled, nothing is stored
        _store(program, alone, q, layer.heads, _scale(layer), Sight(), (None, None))
    _look(program, pages, layer, q, y, _MEMORY)


def keys_values(program: Program, pages: LayerPages, kv: Buffer) -> None:
    """Put the keys and values of an encoder's output, side by side in `kv`, into a layer's pages."""
    _store(program, pages, kv, 0, 1.0, Sight(), (None, None))


def _scale(layer: MultiHeadAttention) -> float:
    return float(layer.head_dim**-0.5 if layer.scale is None else layer.scale)


def _store(
    program: Program,
    pages: LayerPages,
    qkv: Buffer,
    heads: int,
    scale: float,
    sight: Sight,
    norms: tuple[nn.Module | None, nn.Module | None],
) -> None:
    weights = [0 if norm is None else program.vector(_weight(norm, pages.width)) for norm in norms]
    eps = next((float(norm.eps) for norm in norms if norm is not None), 0.0)  # type: ignore[arg-type]
    program.most_padded = max(program.most_padded, pages.padded)
    program.add(
        code.ROTATE, qkv.address, qkv.stride, heads, pages.kv_heads, pages.width, sight.turned, bits_of_float(scale),
        *weights, bits_of_float(eps), pages.offset, pages.head_bytes, pages.kind, pages.padded, sight.slot,
    )  # fmt: skip


def _weight(norm: nn.Module, width: int) -> Tensor:
    weight = norm_weight(norm)
    if weight is None:
        raise unknown("a norm without a weight on queries and keys")
    if len(weight) != width:
        raise unknown(f"a norm over {len(weight)} numbers on heads of {width}")
    return weight


def _look(
    program: Program,
    pages: LayerPages,
    layer: MultiHeadAttention,
    q: Buffer,
    y: Buffer,
    whom: int,
    *,
    window: int | None = None,
    cap: float = 0.0,
    biases: int = 0,
) -> None:
    program.most_padded = max(program.most_padded, pages.padded)
    program.add(
        code.ATTEND, q.address, q.stride, layer.heads, layer.kv_heads, layer.head_dim, window or 0, pages.offset,
        pages.head_bytes, pages.kind, y.address, y.stride, pages.padded, whom, bits_of_float(cap), biases,
    )  # fmt: skip
