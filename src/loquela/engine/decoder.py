"""A network that runs in compiled kernels, behind the interface of the one that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.checkpoint.tensors import StoredTensor
from loquela.engine.bricks import kind_of
from loquela.engine.building import HEAD_ROWS, build
from loquela.engine.calls import CHUNK, check_ids, check_room, rows_of, without_padding
from loquela.engine.frames import frame_of
from loquela.engine.outfits import Closet, Outfit, without_weights
from loquela.engine.pages import PagedCache, Row
from loquela.engine.program import Program
from loquela.engine.seen import Seen
from loquela.engine.storing import CACHE_KINDS
from loquela.engine.swapping import Runners
from loquela.engine.threads import default_threads
from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.models.base import EncoderDecoder, Network
from loquela.peft.wardrobe import Wardrobe

__all__ = ["CacheType", "CompiledNetwork", "Quantize", "compiled", "default_threads"]

Quantize = Literal["int8", "int4"]
CacheType = Literal["float32", "float16", "int8"]


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
    if network.kind == "encoder":
        raise UsageError(f"the compiled engine runs what writes text, but {network.config.model_type} is an encoder")
    if quantize not in (None, "int8", "int4"):
        raise UsageError(f"quantize must be int8 or int4, but is {quantize!r}")
    if cache_dtype not in CACHE_KINDS:
        raise UsageError(f"cache_dtype must be one of {', '.join(CACHE_KINDS)}, but is {cache_dtype!r}")
    program = Program(CHUNK, quantize, cache_dtype, {} if stored is None else stored)
    return CompiledNetwork(network, program, threads or default_threads())


class CompiledNetwork(Network):
    """A network that writes and reads its weights once for all requests that it serves together.

    Adapters are those of `base` and worn as there (`loquela.peft.wearing` of either); each row may wear its own. An
    encoder reads each source alone, in the same kernels.
    """

    def __init__(self, network: Network, program: Program, threads: int) -> None:
        super().__init__()
        kind: Any = kind_of(network)
        self.config, self.quantize, self.kind = network.config, program.quantize, network.kind  # type: ignore[misc]
        self._sizes = network.vocab_size, int(kind.context_length.fget(network)), network.dim  # whatever is worn now
        frame = frame_of(network)
        self.token_embedding: nn.Embedding = frame.entry.tokens
        self._original = frame.original
        self._start_token = network.start_token_id if isinstance(network, EncoderDecoder) else None
        self._built = build(network, frame, program, self._sizes[1])
        self._program = program
        program.fill(threads)
        self.page_bytes = self._program.pages.bytes
        base = network if program.quantize is None else without_weights(network)
        self._closet = Closet(base, program.sites, program.matrix)
        self._runner = Runners(self._built, self._closet, threads, self._sizes[1])
        self.eval()

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
        """Return an empty cache of this engine's kind; refused where it must hold a source."""
        if self._start_token is not None:
            raise UsageError("the cache of an encoder-decoder holds its source: make it with `start(source)`")
        return PagedCache(self.page_bytes, unreads=self._original is None)

    def start(self, prompt: Tensor, *, padding: Tensor | None = None) -> tuple[Cache, Tensor]:
        """Return a cache and the first tokens to feed; an encoder has read the `prompt` as its source by then."""
        if self._start_token is None:
            return self.new_cache(), prompt
        cache = self._sources(prompt, padding)
        return cache, torch.full((len(prompt), 1), self._start_token, device=prompt.device)

    def _sources(self, prompt: Tensor, padding: Tensor | None) -> PagedCache:
        sources = without_padding(prompt.tolist(), padding)
        check_ids(sources, self._built.source)
        if not all(sources):
            raise UsageError("a source must have a token, but one is empty")
        worn = self._closet.worn(len(sources))
        outfits = [None if name is None else self._closet.outfit(name, fresh=True) for name in worn]
        virtual = [0 if outfit is None else outfit.virtual_source for outfit in outfits]
        longest = max(len(ids) + before for ids, before in zip(sources, virtual, strict=True))
        if self._built.source_places is not None and longest > self._built.source_places:
            raise UsageError(f"there are {self._built.source_places} positions, but a source has {longest} tokens")
        self._runner.prepare(longest)
        return PagedCache(self.page_bytes, self._runner.read(sources, outfits), unreads=False)

    def hidden(  # noqa: D102
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> Tensor:
        given = cache
        if given is None:
            given = self.new_cache() if source is None else self._sources(source, source_padding)
        if not isinstance(given, PagedCache):
            raise UsageError(f"the compiled engine needs a cache that it made, not a {type(given).__name__}")
        given.widen(len(tokens))
        rows: list[list[int]] = tokens.tolist()
        worn = self._closet.worn(len(rows))
        if padding is None:
            return torch.stack(self._run(rows, given.rows, worn))
        if given.length:
            raise UsageError("padded rows must start with an empty cache, but this one holds a text")
        out, found = torch.zeros(*tokens.shape, self.dim), self._run(without_padding(rows, padding), given.rows, worn)
        for row, real, states in zip(out, padding.bool(), found, strict=True):
            row[real] = states
        return out

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> Tensor:
        """Return the logits (batch, seq, vocab_size); an encoder-decoder's of target `tokens`, given a `source`."""
        return self.head(
            self.hidden(tokens, cache=cache, padding=padding, source=source, source_padding=source_padding)
        )

    def hidden_rows(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Sequence[Cache],
        adapters: Sequence[str | None] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return the last hidden states (new tokens, dim) of each of several independent requests.

        `tokens[i]` (at least one) come after what `caches[i]`, made by `new_cache`, holds, and extend it. All caches
        must be different objects. Each request wears one of the `adapters` or None; without these, what is worn now.
        With `wanted` only the states of the last `wanted[i]` tokens are returned: the same bits, for less work.
        """
        rows = rows_of(caches)
        return self._run(tokens, rows, self._closet.worn(len(rows)) if adapters is None else adapters, wanted)

    def outlooks(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Sequence[Cache],
        adapters: Sequence[str | None] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> list[list[Seen]]:
        """Return what may come after each of the states that `hidden_rows` returns."""
        rows = rows_of(caches)
        worn = self._closet.worn(len(rows)) if adapters is None else adapters
        ends = self._original is not None or (wanted is not None and 0 in wanted)
        if len(rows) <= HEAD_ROWS and not ends and all(len(new) == 1 for new in tokens):
            return [[seen] for seen in self._runner.step(tokens, rows, self._ready(tokens, rows, worn))]
        states = self._run(tokens, rows, worn, wanted)
        names = [name for name, part in zip(worn, states, strict=True) for _ in part]
        after = iter(self.outlook_rows(torch.cat(states), names))
        return [[next(after) for _ in part] for part in states]

    def _run(
        self,
        tokens: Sequence[Sequence[int]],
        rows: Sequence[Row],
        worn: Sequence[str | None],
        wanted: Sequence[int] | None = None,
    ) -> list[Tensor]:
        outfits = self._ready(tokens, rows, worn)
        whole = [self._whole(*each) for each in zip(tokens, rows, outfits, strict=True)]
        found: dict[int, Tensor] = {}
        for long in (False, True):
            order = [i for i, row in enumerate(rows) if row.long == long]
            if order:
                several = ([which[i] for i in order] for which in (whole, rows, outfits))
                ends = None if wanted is None else [wanted[i] for i in order]
                states = self._runner.compute(*several, long=long, wanted=ends)  # type: ignore[arg-type]
                found.update(zip(order, states, strict=True))
        counts = [len(new) for new in tokens] if wanted is None else wanted
        return [found[i][len(found[i]) - n :] for i, n in enumerate(counts)]

    def _ready(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], worn: Sequence[str | None]
    ) -> list[Outfit | None]:
        """Check what is to be read, and have everything for it; return what each row wears."""
        check_ids(tokens, self._sizes[0])
        if self._start_token is not None and any(row.memory is None for row in rows):
            raise UsageError("the cache of an encoder-decoder holds its source: make it with `start(source)`")
        outfits = self._dressed(rows, worn)
        furthest = check_room(tokens, rows, outfits, self._sizes[1])
        if self._built.places is not None and furthest > self._built.places:
            raise UsageError(f"there are {self._built.places} positions, but {furthest} tokens")
        self._runner.prepare(furthest)
        return outfits

    def _whole(self, new: Sequence[int], row: Row, outfit: Outfit | None) -> Sequence[int]:
        """What is to be read: `new` tokens, or the whole text where it is turned otherwise than before."""
        if self._original is None:
            return new
        text = [*(row.text or ()), *new]
        long = row.virtual + len(text) > self._original
        if row.length == row.virtual or long != row.long:
            row.truncate(0)
            self._begin(row, outfit, long=long)
            new = text
        row.text, row.long = text, long
        return new

    def _dressed(self, rows: Sequence[Row], worn: Sequence[str | None]) -> list[Outfit | None]:
        """Return what each row wears, made ready; a row that is still empty begins with its virtual positions."""
        outfits = []
        for row, name in zip(rows, worn, strict=True):
            outfits.append(None if name is None else self._closet.outfit(name, fresh=row.length == 0))
            if row.length == 0:
                self._begin(row, outfits[-1])
        return outfits

    def _begin(self, row: Row, outfit: Outfit | None, *, long: bool = False) -> None:
        """Let an empty row hold the virtual positions of what it wears, computed once: those before `long` texts."""
        row.virtual = 0
        if outfit is None or not outfit.virtual:
            return
        if long not in outfit.rows:
            made, given = Row(self.page_bytes), outfit.vectors(self._built.given_scale)
            if given is not None:
                self._runner.prepare(outfit.virtual)
                self._runner.compute([[0] * outfit.virtual], [made], [outfit], given, long=long)
            else:
                made.grow(outfit.virtual)
                for layer, held in zip(self._program.pages.layers, outfit.keys_values(self.base), strict=True):
                    made.write(layer, *held)
            outfit.rows[long] = made
        row.begin(outfit.rows[long])

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        flat = hidden.reshape(-1, self.dim)
        first = len(hidden) if hidden.dim() > 1 else 1
        worn = [name for name in self._closet.worn(first) for _ in range(len(flat) // first)]
        return torch.from_numpy(self.logits_rows(flat, worn)).view(*hidden.shape[:-1], -1)

    def logits_rows(self, hidden: Tensor, adapters: Sequence[str | None] | None = None) -> npt.NDArray[np.float32]:
        """Return the logits (n, vocab) of hidden states (n, dim); see `hidden_rows`."""
        return self._runner.logits(hidden, self._at_the_head(len(hidden), adapters))

    def outlook_rows(self, hidden: Tensor, adapters: Sequence[str | None] | None = None) -> list[Seen]:
        """Return what may come after hidden states (n, dim); see `hidden_rows`."""
        return self._runner.outlooks(hidden, self._at_the_head(len(hidden), adapters))

    def _at_the_head(self, states: int, adapters: Sequence[str | None] | None) -> list[Outfit | None]:
        """Return what each state wears that reaches the head."""
        worn = self._closet.worn(states) if adapters is None else adapters
        site = self._program.sites["lm_head"].number
        outfits = [None if name is None else self._closet.outfit(name, fresh=False) for name in worn]
        return [outfit if outfit and (outfit.runs or site in outfit.reached) else None for outfit in outfits]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its weights are laid out for the kernels."""
        raise UsageError("a compiled network cannot be saved: save the network that it was made from")

    def initialise(self) -> None:
        """Refused: a compiled network is made from one that has its weights."""
        raise UsageError("a compiled network cannot be trained: train the network that it was made from")
