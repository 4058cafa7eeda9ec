"""A network that runs in compiled kernels, behind the interface of the one that it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.engine import crew as board
from loquela.engine.attending import ROWS
from loquela.engine.crew import Crew
from loquela.engine.memory import address, aligned
from loquela.engine.pages import PagedCache, Row
from loquela.engine.program import Program, block, kind_of, unknown
from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.layers.decoder import Decoder
from loquela.layers.positions import Rotary
from loquela.models.base import Network
from loquela.models.gpt2 import GPT2
from loquela.models.rotary_decoder import RotaryDecoder
from loquela.models.smollm3 import SmolLM3

__all__ = ["CompiledNetwork", "Quantize", "compiled"]

Quantize = Literal["int8", "int4"]
CHUNK = 256
"""Tokens that go through the layers together."""
_HEAD_ROWS = 16
_SPAN = 1024  # positions of a table of angles: each is always computed among the same neighbours
_BLOCK = 8  # tokens of one request that attend together

_ROTARIES: tuple[Callable[..., Any], ...] = (RotaryDecoder.rotary, SmolLM3.rotary)


def compiled(
    network: Network,
    *,
    quantize: Quantize | None = None,
    threads: int | None = None,
    cache_dtype: Literal["float32", "float16"] = "float32",
) -> CompiledNetwork:
    """Return `network` compiled: the same function of tokens, for generating.

    Every logit is summed in an order that depends on the weights' shapes only: alone or beside others, prefilled in any
    pieces or token by token, on any number of threads, it has the same bits. Weights that are not quantised are read
    where the network has them. Raises `UsageError` for a network made of bricks that the engine does not know.
    """
    if network.kind != "decoder":
        raise UsageError(f"the compiled engine runs decoders, but {network.config.model_type} is an {network.kind}")
    if quantize not in (None, "int8", "int4"):
        raise UsageError(f"quantize must be int8 or int4, but is {quantize!r}")
    return CompiledNetwork(network, quantize, threads or default_threads(), cache_dtype == "float16")


def default_threads() -> int:
    """As many as there are cores for this process, or what OMP_NUM_THREADS says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CompiledNetwork(Network):
    """A decoder that reads its weights once for all requests that it serves together."""

    def __init__(self, network: Network, quantize: Quantize | None, threads: int, half_cache: bool) -> None:
        super().__init__()
        kind: Any = kind_of(network)
        self.config, self.quantize = network.config, quantize
        self._sizes = network.vocab_size, network.context_length, network.dim
        places: nn.Embedding | None = None
        self._rotary: Callable[[Tensor], Rotary | Sequence[Rotary | None]] | None = None
        if kind.hidden is RotaryDecoder.hidden and kind.embed is RotaryDecoder.embed:
            if kind.rotary not in _ROTARIES:
                raise unknown(f"the positions of {network.config.model_type}")
            self._rotary = _angles_alone(network)
        elif kind.hidden is GPT2.hidden:
            places = network.position_embedding  # type: ignore[assignment]
        else:
            raise unknown(f"what {network.config.model_type} does before its blocks")
        if kind.head not in (RotaryDecoder.head, GPT2.head):
            raise unknown(f"the head of {network.config.model_type}")
        self.token_embedding: nn.Embedding = network.token_embedding  # type: ignore[assignment]
        self._last_position = None if places is None else places.num_embeddings
        self._build(network, network.decoder, places, threads, half_cache)  # type: ignore[arg-type]
        self.eval()

    def _build(
        self, network: Any, decoder: Decoder, places: nn.Embedding | None, threads: int, half_cache: bool
    ) -> None:
        program = Program(CHUNK, self.quantize, half_cache)
        bits = {None: 0, "int8": 8, "int4": 4}[self.quantize]
        dim = network.dim
        x, self._out = program.buffer("stream", dim), program.buffer("out", dim)
        program.embed(self.token_embedding, places, x)
        slots, turned = self._slots(len(decoder.layers))
        for layer, window, slot in zip(decoder.layers, decoder.windows, slots, strict=True):
            width = turned if slot >= 0 else 0
            block(program, layer, x, turned=width, slot=slot, window=window, bits=bits)
        if decoder.norm is None:
            raise unknown("a decoder without a norm at its end")
        program.norm(decoder.norm, x, self._out, rounds=False)
        self._body = len(program.ops)
        self._head_in = program.buffer("head in", dim, _HEAD_ROWS)
        self._logits = program.buffer("logits", network.vocab_size, _HEAD_ROWS)
        head_bits = 8 if bits else 0
        if head_bits:
            program.round(self._head_in)
        program.linear([network.lm_head], self._head_in, self._logits, bits=head_bits)
        self._program, self._crew = program, Crew(program.table(), threads)
        self.page_bytes = program.page_bytes
        self._scratch: npt.NDArray[np.uint8] = aligned(0)
        self._reach = 0

    def _slots(self, layers: int) -> tuple[list[int], int]:
        """Which table of angles each layer rotates by (-1: none), and over how many dimensions."""
        self._tables: list[list[npt.NDArray[np.float32]]] = []
        self._table_addresses: list[npt.NDArray[np.int64]] = []
        if self._rotary is None:
            return [-1] * layers, 0
        given = self._rotary(torch.arange(1))
        each = [given] * layers if isinstance(given, Rotary) else list(given)[:layers]
        self._distinct = list({id(r): i for i, r in enumerate(each) if r is not None}.values())
        numbers = {id(each[i]): slot for slot, i in enumerate(self._distinct)}
        spans = -(-self._sizes[1] // _SPAN) + 1
        self._tables = [[] for _ in self._distinct]
        self._table_addresses = [np.zeros(spans, dtype=np.int64) for _ in self._distinct]
        self._slot_addresses = np.array([a.ctypes.data for a in self._table_addresses], dtype=np.int64)
        widths = {each[i].cos.shape[-1] for i in self._distinct}  # type: ignore[union-attr]
        if len(widths) > 1:
            raise unknown("layers that rotate different numbers of dimensions")
        return [numbers.get(id(r), -1) for r in each], widths.pop() if widths else 0

    def _prepare(self, position: int) -> None:
        """Have angles and room for scores up to a position."""
        if position < self._reach:
            return
        self._reach = (position // _SPAN + 1) * _SPAN
        while self._rotary is not None and self._tables and len(self._tables[0]) * _SPAN < self._reach:
            span = len(self._tables[0])
            given = self._rotary(torch.arange(span * _SPAN, (span + 1) * _SPAN))
            for slot, layer in enumerate(self._distinct):
                rotary = given if isinstance(given, Rotary) else given[layer]
                assert rotary is not None
                half = rotary.cos.shape[-1] // 2
                table = torch.cat((rotary.cos[0, 0, :, :half], rotary.sin[0, 0, :, :half]), -1).float().numpy().copy()
                self._tables[slot].append(table)
                self._table_addresses[slot][span] = table.ctypes.data
        padded, scores = self._program.most_padded, (self._reach + 32) * 4
        self._scratch_stride = 64 + ROWS * (8 * padded + scores)
        self._scratch = aligned(self._scratch_stride * self._crew.threads)
        for me in range(self._crew.threads):
            self._scratch[me * self._scratch_stride :][:8].view(np.int64)[0] = scores

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self._sizes[0]

    @property
    def context_length(self) -> int:  # noqa: D102
        return self._sizes[1]

    @property
    def dim(self) -> int:  # noqa: D102
        return self._sizes[2]

    @property
    def weight_bytes(self) -> int:
        """Bytes of matrices that a token reads."""
        return self._program.weight_bytes

    def new_cache(self) -> PagedCache:
        """Return an empty cache of this engine's kind."""
        return PagedCache(self.page_bytes)

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        given = self.new_cache() if cache is None else cache
        if not isinstance(given, PagedCache):
            raise UsageError(f"the compiled engine needs a cache that it made, not a {type(given).__name__}")
        given.widen(len(tokens))
        rows: list[list[int]] = tokens.tolist()
        if padding is None:
            return torch.stack(self._run(rows, given.rows))
        if given.length:
            raise UsageError("padded rows must start with an empty cache, but this one holds a text")
        real = [[i for i, there in enumerate(row) if there] for row in padding.tolist()]
        found = self._run([[row[i] for i in kept] for row, kept in zip(rows, real, strict=True)], given.rows)
        out = torch.zeros(*tokens.shape, self.dim)
        for row, kept, states in zip(out, real, found, strict=True):
            row[kept] = states
        return out

    def hidden_rows(self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache]) -> list[Tensor]:
        """Return the last hidden states (new tokens, dim) of each of several independent requests.

        `tokens[i]` (at least one) come after what `caches[i]`, made by `new_cache`, holds, and extend it. All caches
        must be different objects.
        """
        rows = []
        for cache in caches:
            if not isinstance(cache, PagedCache) or len(cache.rows) != 1:
                raise UsageError("the compiled engine needs caches of one row that it made")
            rows += cache.rows
        return self._run(tokens, rows)

    def _run(self, tokens: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Tensor]:
        ids = np.array([token for row in tokens for token in row], dtype=np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise UsageError(f"token ids must be from 0 to {self.vocab_size - 1}, but are {ids.min()} to {ids.max()}")
        furthest = max(row.length + len(new) for new, row in zip(tokens, rows, strict=True))
        if self._last_position is not None and furthest > self._last_position:
            raise UsageError(f"there are {self._last_position} positions, but {furthest} tokens")
        self._prepare(furthest)
        places: list[int] = []
        blocks: list[tuple[int, int]] = []
        pages: list[int] = []
        for new, row in zip(tokens, rows, strict=True):
            start, at = row.length, len(places)
            row.grow(len(new))
            places += range(start, start + len(new))
            # a block lies within one chunk of the call
            edges = sorted({*range(at, at + len(new), _BLOCK), *range(-(-at // CHUNK) * CHUNK, at + len(new), CHUNK)})
            blocks += [(a, b - a) for a, b in zip(edges, [*edges[1:], at + len(new)], strict=True)]
            pages += [row.addresses.ctypes.data] * len(new)
        positions, tables = np.array(places, dtype=np.int64), np.array(pages, dtype=np.int64)
        out = torch.empty(len(ids), self.dim)
        for start in range(0, len(ids), CHUNK):
            n = min(CHUNK, len(ids) - start)
            inside = np.array([(a - start, b) for a, b in blocks if start <= a < start + n], dtype=np.int64)
            self._crew.run(
                0,
                self._body,
                n,
                {
                    board.TOKENS: ids[start:].ctypes.data,
                    board.POSITIONS: positions[start:].ctypes.data,
                    board.PAGES: tables[start:].ctypes.data,
                    board.BLOCKS: inside.ctypes.data,
                    board.N_BLOCKS: len(inside),
                    board.ANGLES: self._slot_addresses.ctypes.data if self._tables else 0,
                    board.SCRATCH: address(self._scratch),
                    board.SCRATCH_STRIDE: self._scratch_stride,
                },
            )
            out[start : start + n] = self._read(self._out, n)
        return list(torch.split(out, [len(new) for new in tokens]))

    def _read(self, buffer: Any, n: int) -> Tensor:
        rows = torch.from_numpy(buffer.array.view(np.float32).reshape(buffer.rows, -1))
        return rows[:n, : buffer.width]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return torch.from_numpy(self.logits_rows(hidden.reshape(-1, self.dim))).view(*hidden.shape[:-1], -1)

    def logits_rows(self, hidden: Tensor) -> npt.NDArray[np.float32]:
        """Return the logits (n, vocab) of hidden states (n, dim)."""
        found = np.empty((len(hidden), self.vocab_size), dtype=np.float32)
        for start in range(0, len(hidden), _HEAD_ROWS):
            part = hidden[start : start + _HEAD_ROWS]
            self._read(self._head_in, len(part))[:] = part
            self._crew.run(self._body, len(self._program.ops), len(part), {})
            found[start : start + len(part)] = self._read(self._logits, len(part)).numpy()
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its weights are laid out for the kernels."""
        raise UsageError("a compiled network cannot be saved: save the network that it was made from")

    def initialise(self) -> None:
        """Refused: a compiled network is made from one that has its weights."""
        raise UsageError("a compiled network cannot be trained: train the network that it was made from")


def _angles_alone(network: Any) -> Callable[[Tensor], Rotary | Sequence[Rotary | None]]:
    """The network's angles, without keeping its weights in memory."""
    import copy

    light = copy.copy(network)
    light._modules = {}
    return light.rotary  # type: ignore[no-any-return]
