"""A network that wears adapters: the rows of its batches are checked, and soft prompts come before its tokens.

Where a decoder wears a soft prompt, its cache does not start empty: what the virtual positions became is computed once,
and every row's text goes on after it. A call without a cache gets one for itself. Where rows wear soft prompts of
different lengths, or none, the shorter ones are padded on the left and masked: each row counts its own positions only.
An encoder reads the vectors before its text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from loquela.errors import ContextWindowError, UsageError
from loquela.layers.cache import Cache
from loquela.layers.heads import first_real
from loquela.models.base import Network
from loquela.peft.base import Virtual
from loquela.peft.virtual import Soft, goes_on, started
from loquela.peft.wardrobe import Inserted, Wardrobe, Worn

__all__ = ["DressedNetwork"]


class DressedNetwork:
    """The mixin of a network with adapters; its class is mixed into the network's own."""

    wardrobe: Wardrobe

    @property
    def context_length(self) -> int:
        """The context window in tokens, less what the virtual positions of what is worn take up."""
        soft = self._soft(1)
        window: int = super().context_length  # type: ignore[misc]
        return window if soft is None else max(0, window - soft.length)

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None, **kw: Any) -> Tensor:
        """As the base's, with what is worn."""
        self._check_rows(tokens)
        soft, network = self._soft(len(tokens)), cast(Network, self)
        if network.kind == "encoder" and soft is not None:
            return self._read(soft, tokens, padding, cache=cache, **kw)[0][:, soft.length :]
        if soft is not None and kw.get("segments") is not None:
            raise UsageError(
                "documents side by side in a row cannot each begin with a soft prompt: give them a row each"
            )
        if network.kind == "decoder":
            cache, padding = self._begun(soft, tokens, cache, padding)
        return super().hidden(tokens, cache=cache, padding=padding, **kw)  # type: ignore[misc, no-any-return]

    def forward(self, tokens: Tensor, *, padding: Tensor | None = None, **kw: Any) -> Tensor:
        """As the base's, with what is worn; a text classifier reads its label off the first virtual position."""
        soft, network = self._soft(len(tokens)), cast(Any, self)
        if soft is None or getattr(self, "task", None) != "text-classification":
            return super().forward(tokens, padding=padding, **kw)  # type: ignore[misc, no-any-return]
        self._check_rows(tokens)
        x, padding = self._read(soft, tokens, padding, **kw)
        return network.head(first_real(x, padding))  # type: ignore[no-any-return]

    def embed(self, tokens: Tensor) -> Tensor:
        """As the base's; inserted vectors are not multiplied by what it multiplies its own by."""
        x: Tensor = super().embed(tokens)  # type: ignore[misc]
        inserted = self.wardrobe.inserted
        return x if inserted is None else inserted.into(x)

    def encode(self, source: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """As the base's, with virtual positions before the source."""
        self._check_rows(source)
        soft = self._soft(len(source), encoder=True)
        if soft is None:
            return super().encode(source, padding=padding)  # type: ignore[misc, no-any-return]
        padding = soft.before(padding, source.shape[1])
        with self._inserting(soft):
            return super().encode(soft.placeholders(source), padding=padding)  # type: ignore[misc, no-any-return]

    def decode(
        self,
        tokens: Tensor,
        memory: list[tuple[Tensor, Tensor]],
        *,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """As the base's, with virtual positions in the memory or before the target."""
        self._check_rows(tokens)
        soft = self._soft(len(tokens), encoder=True)
        if soft is not None:
            memory_padding = soft.before(memory_padding, memory[0][0].shape[2] - soft.length)
        soft = self._soft(len(tokens), encoder=False)
        if soft is not None and cache is None:
            cache = Cache(len(memory))
        cache, padding = self._begun(soft, tokens, cache, padding)
        return super().decode(tokens, memory, memory_padding=memory_padding, cache=cache, padding=padding)  # type: ignore[misc, no-any-return]

    # -- parts of these

    def _check_rows(self, tokens: Tensor) -> None:
        worn: Worn | None = self.wardrobe.worn
        if worn is not None and worn.rows is not None and worn.rows != len(tokens):
            raise UsageError(
                f"adapters are worn by {worn.rows} rows, so a batch must have as many, but has {len(tokens)}"
            )

    def _soft(self, rows: int, *, encoder: bool | None = None) -> Soft | None:
        """Return the virtual positions that `rows` wear, in the encoder or not (None: either); None without any."""
        worn: Worn | None = self.wardrobe.worn
        if worn is None or self.wardrobe.inserted is not None:
            return None

        def virtual(name: str | None) -> Virtual | None:
            part = None if name is None else self.wardrobe.adapters[name].virtual
            return part if part is None or encoder is None or part.in_encoder == encoder else None

        found = [virtual(name) for name in worn.each()]
        return Soft(found, rows) if any(part is not None for part in found) else None

    def _begun(
        self, soft: Soft | None, tokens: Tensor, cache: Cache | None, padding: Tensor | None
    ) -> tuple[Cache | None, Tensor | None]:
        """Return a cache that holds the virtual positions, and a padding that says which rows have them."""
        if soft is None:
            if cache is not None and cache.virtual:
                raise UsageError("a cache begun with a soft prompt must go on with it, but no row wears one")
            return cache, padding
        network = cast(Network, self)
        alone = cache is None
        if cache is None:
            cache = network.new_cache()
        goes_on(cache, network, soft, one_pass=alone)
        if cache.length == 0:
            started(cache, network, soft, one_pass=alone)
        if cache.virtual != soft.length:
            raise UsageError(
                f"a cache must go on with the {soft.length} virtual positions that its rows wear, but was begun with "
                f"{cache.virtual}"
            )
        bias = getattr(self, "bias", None)  # a network's own, of distances that it counts in columns
        if padding is not None and bias is not None and bias(1, 1) is not None and not bool(padding[:, 0].all()):
            raise UsageError(
                f"this {network.config.model_type} counts padding as distance, so a text after a soft prompt must "
                "not be padded on the left: give the rows to the model one by one"
            )
        held, window = cache.length - soft.length, self.context_length
        if held + tokens.shape[1] > window:
            raise ContextWindowError(
                f"{held + tokens.shape[1]} tokens must fit the {window} that {soft.length} virtual ones leave of the "
                "context window, but do not: shorten the text"
            )
        return cache, soft.before(padding, held + tokens.shape[1])

    def _read(
        self, soft: Soft, tokens: Tensor, padding: Tensor | None, *, token_types: Tensor | None = None, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Let an encoder read vectors and text; returns all its hidden states, and their padding."""
        if tokens.shape[1] > self.context_length:
            raise ContextWindowError(
                f"a text must fit the {self.context_length} tokens that {soft.length} virtual ones leave of the "
                f"context window, but has {tokens.shape[1]}"
            )
        padding = soft.before(padding, tokens.shape[1])
        if token_types is not None:
            kw["token_types"] = soft.placeholders(token_types)
        with self._inserting(soft):
            return super().hidden(soft.placeholders(tokens), padding=padding, **kw), padding  # type: ignore[misc]

    @contextmanager
    def _inserting(self, soft: Soft) -> Iterator[None]:
        with inserting(cast(Network, self), self.wardrobe, soft.vectors()):
            yield


@contextmanager
def inserting(network: Network, wardrobe: Wardrobe, vectors: Tensor) -> Iterator[None]:
    """Let the token embedding give `vectors` (rows or 1, positions, dim) in its first positions."""
    place = token_embedding(network)
    wardrobe.inserted = Inserted(place, vectors)
    try:
        yield
    finally:
        wardrobe.inserted = None


def token_embedding(network: Network) -> nn.Module:
    """Return the module that turns the ids of what is read first into vectors."""
    own = getattr(network, "token_embedding", None)
    return own if own is not None else next(m for m in network.modules() if isinstance(m, nn.Embedding))
