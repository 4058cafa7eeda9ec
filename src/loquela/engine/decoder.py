"""A network that runs in compiled kernels, behind the interface of the one that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.checkpoint.tensors import StoredTensor
from loquela.engine import crew as board
from loquela.engine.angles import Angles
from loquela.engine.attending import ROWS
from loquela.engine.blocks import block
from loquela.engine.calls import CHUNK, Call, check_ids, check_room, spans
from loquela.engine.crew import Crew
from loquela.engine.memory import address, aligned
from loquela.engine.outfits import Closet, Outfit, without_weights
from loquela.engine.pages import PagedCache, Row
from loquela.engine.program import Program, kind_of, unknown
from loquela.engine.storing import CACHE_KINDS
from loquela.engine.threads import default_threads
from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.layers.decoder import Decoder
from loquela.models.base import Network
from loquela.models.gpt2 import GPT2
from loquela.models.rotary_decoder import RotaryDecoder
from loquela.models.smollm3 import SmolLM3
from loquela.peft.wardrobe import Wardrobe

__all__ = ["CacheType", "CompiledNetwork", "Quantize", "compiled", "default_threads"]

Quantize = Literal["int8", "int4"]
CacheType = Literal["float32", "float16", "int8"]
_HEAD_ROWS = 16

_ROTARIES: tuple[Callable[..., Any], ...] = (RotaryDecoder.rotary, SmolLM3.rotary)


def compiled(
    network: Network,
    *,
    quantize: Quantize | None = None,
    threads: int | None = None,
    cache_dtype: CacheType = "float32",
    stored: Mapping[str, StoredTensor] | None = None,
) -> CompiledNetwork:
    """Return `network` compiled: the same function of tokens, for generating.

    Every logit is summed in an order that depends on the weights' shapes only: alone or beside others, prefilled in any
    pieces or token by token, on any number of threads, it has the same bits. Weights that are not quantised are read
    where the network has them. Those that are come from their files where they are `stored`, by names in code, and need
    not be in the network. Raises `UsageError` for a network made of bricks that the engine does not know.
    """
    if network.kind != "decoder":
        raise UsageError(f"the compiled engine runs decoders, but {network.config.model_type} is an {network.kind}")
    if quantize not in (None, "int8", "int4"):
        raise UsageError(f"quantize must be int8 or int4, but is {quantize!r}")
    if cache_dtype not in CACHE_KINDS:
        raise UsageError(f"cache_dtype must be one of {', '.join(CACHE_KINDS)}, but is {cache_dtype!r}")
    program = Program(CHUNK, quantize, cache_dtype, {} if stored is None else stored)
    return CompiledNetwork(network, program, threads or default_threads())


class CompiledNetwork(Network):
    """A decoder that reads its weights once for all requests that it serves together.

    Adapters are those of `base` and worn as there (`loquela.peft.wearing` of either); each row may wear its own.
    """

    def __init__(self, network: Network, program: Program, threads: int) -> None:
        super().__init__()
        kind: Any = kind_of(network)
        self.config, self.quantize, self._program = network.config, program.quantize, program
        self._sizes = network.vocab_size, int(kind.context_length.fget(network)), network.dim  # whatever is worn now
        places: nn.Embedding | None = None
        rotates = kind.hidden is RotaryDecoder.hidden and kind.embed is RotaryDecoder.embed
        if rotates and kind.rotary not in _ROTARIES:
            raise unknown(f"the positions of {network.config.model_type}")
        if kind.hidden is GPT2.hidden:
            places = network.position_embedding  # type: ignore[assignment]
        elif not rotates:
            raise unknown(f"what {network.config.model_type} does before its blocks")
        if kind.head not in (RotaryDecoder.head, GPT2.head):
            raise unknown(f"the head of {network.config.model_type}")
        decoder: Decoder = network.decoder  # type: ignore[assignment]
        self.token_embedding: nn.Embedding = network.token_embedding  # type: ignore[assignment]
        self._last_position = None if places is None else places.num_embeddings
        self._angles = Angles(network, len(decoder.layers), self._sizes[1], rotates=rotates)
        self._build(network, decoder, places, threads)
        self._closet = Closet(network if self.quantize is None else without_weights(network), self._program.sites)
        self.eval()

    def _build(self, network: Any, decoder: Decoder, places: nn.Embedding | None, threads: int) -> None:
        program = self._program
        bits = {None: 0, "int8": 8, "int4": 4}[self.quantize]
        dim = network.dim
        x, self._out = program.buffer("stream", dim), program.buffer("out", dim)
        program.embed(self.token_embedding, places, x)
        for number, layer in enumerate(decoder.layers):
            slot, window = self._angles.slots[number], decoder.windows[number]
            turned = self._angles.turned if slot >= 0 else 0
            name = f"decoder.layers.{number}"
            block(program, name, layer, x, turned=turned, slot=slot, window=window, bits=bits)
        if decoder.norm is None:
            raise unknown("a decoder without a norm at its end")
        program.norm(decoder.norm, x, self._out, rounds=False)
        self._body = len(program.ops)
        self._head_in = program.buffer("head in", dim, _HEAD_ROWS)
        self._logits = program.buffer("logits", network.vocab_size, _HEAD_ROWS)
        head_bits = 8 if bits else 0
        if head_bits:
            program.round(self._head_in)
        program.linear({"lm_head": network.lm_head}, self._head_in, self._logits, bits=head_bits)
        program.fill(threads)
        self._crew = Crew(2 * len(program.ops), threads)
        self._load(frozenset())
        self.page_bytes = program.page_bytes
        self._scratch: npt.NDArray[np.uint8] = aligned(0)
        self._low: npt.NDArray[np.uint8] = aligned(0)
        self._reach = 0

    def _load(self, reached: frozenset[int]) -> None:
        """Give the crew the operations of rows without adapters, and of calls in which some have one."""
        ops: list[list[int]] = []
        self._ranges: dict[tuple[str, bool], tuple[int, int]] = {}
        self._reached = reached
        for dressed in (False, True):
            for part, first, last in (("body", 0, self._body), ("head", self._body, len(self._program.ops))):
                start = len(ops)
                ops += self._program.table(first, last, reached if dressed else frozenset())
                self._ranges[part, dressed] = start, len(ops)
        self._crew.load(ops)

    def _prepare(self, position: int) -> None:
        """Have angles and room for scores up to a position."""
        if position < self._reach:
            return
        self._reach = self._angles.reach(position)
        padded, scores = self._program.most_padded, (self._reach + 32) * 4
        self._scratch_stride = 64 + ROWS * (8 * padded + scores)
        self._scratch = aligned(self._scratch_stride * self._crew.threads)
        for me in range(self._crew.threads):
            self._scratch[me * self._scratch_stride :][:8].view(np.int64)[0] = scores

    @property
    def base(self) -> Network:
        """The network that adapters are put on; with rounded weights one whose matrices take no memory."""
        return self._closet.base

    @property
    def wardrobe(self) -> Wardrobe | None:
        """The base's adapters, and what is worn of them."""
        return self._closet.wardrobe

    def refusal(self, adapter: str) -> str | None:
        """Why the engine cannot wear one of the base's adapters; None for one that it can."""
        return self._closet.refusal(adapter)

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self._sizes[0]

    @property
    def context_length(self) -> int:
        """The context window in tokens, less what the virtual positions of what is worn take up."""
        return max(0, self._sizes[1] - self._closet.virtual)

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
        worn = self._closet.worn(len(rows))
        if padding is None:
            return torch.stack(self._run(rows, given.rows, worn))
        if given.length:
            raise UsageError("padded rows must start with an empty cache, but this one holds a text")
        real = [[i for i, there in enumerate(row) if there] for row in padding.tolist()]
        found = self._run([[row[i] for i in kept] for row, kept in zip(rows, real, strict=True)], given.rows, worn)
        out = torch.zeros(*tokens.shape, self.dim)
        for row, kept, states in zip(out, real, found, strict=True):
            row[kept] = states
        return out

    def hidden_rows(
        self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache], adapters: Sequence[str | None] | None = None
    ) -> list[Tensor]:
        """Return the last hidden states (new tokens, dim) of each of several independent requests.

        `tokens[i]` (at least one) come after what `caches[i]`, made by `new_cache`, holds, and extend it. All caches
        must be different objects. Each request wears one of the `adapters` or None; without these, what is worn now.
        """
        rows = []
        for cache in caches:
            if not isinstance(cache, PagedCache) or len(cache.rows) != 1:
                raise UsageError("the compiled engine needs caches of one row that it made")
            rows += cache.rows
        return self._run(tokens, rows, self._closet.worn(len(rows)) if adapters is None else adapters)

    def _run(self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], worn: Sequence[str | None]) -> list[Tensor]:
        check_ids(tokens, self.vocab_size)
        outfits = self._dressed(rows, worn)
        furthest = check_room(tokens, rows, outfits, self._sizes[1])
        if self._last_position is not None and furthest > self._last_position:
            raise UsageError(f"there are {self._last_position} positions, but {furthest} tokens")
        self._prepare(furthest)
        if not any(outfits):
            return self._compute(tokens, rows, outfits)
        # those who wear the same side by side: what they wear is read once
        order = sorted(range(len(rows)), key=lambda row: worn[row] or "")
        found = self._compute([tokens[i] for i in order], [rows[i] for i in order], [outfits[i] for i in order])
        return [states for _, states in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    def _dressed(self, rows: Sequence[Row], worn: Sequence[str | None]) -> list[Outfit | None]:
        """Return what each row wears, made ready; a row that is still empty begins with its virtual positions."""
        outfits = [
            None if name is None else self._closet.outfit(name, fresh=row.length == 0)
            for row, name in zip(rows, worn, strict=True)
        ]
        for row, outfit in zip(rows, outfits, strict=True):
            if outfit is not None and outfit.virtual and row.length == 0:
                row.begin(self._began(outfit))
        return outfits

    def _began(self, outfit: Outfit) -> Row:
        """The pages that a text of an adapter with virtual positions begins with."""
        if outfit.row is None:
            row, vectors = Row(self.page_bytes), outfit.vectors()
            if vectors is not None:
                self._prepare(outfit.virtual)
                self._compute([[0] * outfit.virtual], [row], [None], vectors)
            else:
                row.grow(outfit.virtual)
                for layer, held in zip(self._program.layers, outfit.keys_values(self.base), strict=True):
                    row.write(layer, *held)
            outfit.row = row
        return outfit.row

    def _compute(
        self,
        tokens: Sequence[Sequence[int]],
        rows: Sequence[Row],
        outfits: Sequence[Outfit | None],
        vectors: Tensor | None = None,
    ) -> list[Tensor]:
        call = Call(tokens, rows, outfits, vectors)
        own = self._words(outfits) | {
            board.ANGLES: self._angles.address,
            board.SCRATCH: address(self._scratch),
            board.SCRATCH_STRIDE: self._scratch_stride,
        }
        out = torch.empty(sum(call.lengths), self.dim)
        for start, n, words in call.chunks():
            self._crew.run(*self._ranges["body", any(outfits)], n, words | own)
            out[start : start + n] = self._read(self._out, n)
        return list(torch.split(out, call.lengths))

    def _words(self, outfits: Sequence[Outfit | None]) -> dict[int, int]:
        """Have the operations and the thin rows that these outfits need."""
        reached = self._closet.reached  # lets go of what was taken off, too
        if any(outfits) and reached != self._reached:
            self._load(reached)
        stride = 4 * max((outfit.low for outfit in outfits if outfit is not None), default=0)
        if CHUNK * stride > len(self._low):
            self._low = aligned(CHUNK * stride)
        return {board.LOW: address(self._low), board.LOW_STRIDE: stride}

    def _read(self, buffer: Any, n: int) -> Tensor:
        rows = torch.from_numpy(buffer.array.view(np.float32).reshape(buffer.rows, -1))
        return rows[:n, : buffer.width]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        flat = hidden.reshape(-1, self.dim)
        first = len(hidden) if hidden.dim() > 1 else 1
        worn = [name for name in self._closet.worn(first) for _ in range(len(flat) // first)]
        return torch.from_numpy(self.logits_rows(flat, worn)).view(*hidden.shape[:-1], -1)

    def logits_rows(self, hidden: Tensor, adapters: Sequence[str | None] | None = None) -> npt.NDArray[np.float32]:
        """Return the logits (n, vocab) of hidden states (n, dim); see `hidden_rows`."""
        worn = self._closet.worn(len(hidden)) if adapters is None else adapters
        site = self._program.sites["lm_head"].number
        outfits = [None if name is None else self._closet.outfit(name, fresh=False) for name in worn]
        outfits = [outfit if outfit is not None and site in outfit.reached else None for outfit in outfits]
        own, ops = self._words(outfits), self._ranges["head", any(outfits)]
        found = np.empty((len(hidden), self.vocab_size), dtype=np.float32)
        for start in range(0, len(hidden), _HEAD_ROWS):
            part = hidden[start : start + _HEAD_ROWS]
            self._read(self._head_in, len(part))[:] = part
            worn_here = spans([1] * len(hidden), outfits, start, start + len(part))
            own |= {board.SPANS: address(worn_here), board.N_SPANS: len(worn_here)}
            self._crew.run(*ops, len(part), own)
            found[start : start + len(part)] = self._read(self._logits, len(part)).numpy()
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its weights are laid out for the kernels."""
        raise UsageError("a compiled network cannot be saved: save the network that it was made from")

    def initialise(self) -> None:
        """Refused: a compiled network is made from one that has its weights."""
        raise UsageError("a compiled network cannot be trained: train the network that it was made from")
