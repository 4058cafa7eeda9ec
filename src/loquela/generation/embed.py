"""One vector per text, from the last hidden states of any network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loquela.checkpoint.sentence import Pooling
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.generation.decode import evaluating
from loquela.generation.inputs import states
from loquela.layers.counts import Counting
from loquela.layers.heads import pool
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = ["embed"]


def embed(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str | Sequence[int]],
    pooling: Pooling | None = None,
    *,
    truncate: bool = False,
    batch_tokens: int = 4096,
) -> Tensor:
    """Return one vector per text: (n, dim), or (n, modes · dim) for several modes of pooling.

    A text may be given as token ids, read as they are: without `pooling.prompt` and with no special tokens added.
    Texts of like length are read side by side, `batch_tokens` at a time, padding included; padding changes nothing in
    a vector. A text longer than `pooling.max_length` or the context window raises `ContextWindowError`, or with
    `truncate` is cut at its end, as sentence-transformers does. An empty text without special tokens is a `DataError`,
    a network that counts a `UsageError`.
    """
    if isinstance(network, Counting):
        raise UsageError(f"a {network.config.model_type} has no vector of a text: its states hold numbers of n-grams")
    pooling = pooling or Pooling()
    read = iter(tokenizer.encode_batch([pooling.prompt + text for text in texts if isinstance(text, str)]))
    rows = [next(read) if isinstance(text, str) else list(text) for text in texts]
    longest = min(pooling.max_length or network.context_length, network.context_length)
    for i, row in enumerate(rows):
        if not row:
            raise DataError(f"a text must have a token to be embedded, but text {i + 1} of {len(rows)} has none")
        if len(row) > longest:
            if not truncate:
                raise ContextWindowError(
                    f"a text must have at most {longest} tokens to be embedded whole, but text {i + 1} of {len(rows)} "
                    f"has {len(row)}: shorten it, or let it be truncated"
                )
            rows[i] = _cut(row, tokenizer, longest)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(rows)
    device = next(network.parameters()).device
    with evaluating(network):
        while order:
            count = max(1, batch_tokens // len(rows[order[0]]))
            batch, order = order[:count], order[count:]
            tokens, real = _padded([rows[i] for i in batch], device)
            hidden = states(network, tokens, padding=None if bool(real.all()) else real)
            for i, vector in zip(batch, pool(hidden, real, pooling.modes, normalise=pooling.normalise), strict=True):
                vectors[i] = vector
    return torch.stack(vectors) if vectors else torch.empty(0, network.dim * len(pooling.modes), device=device)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids (batch, longest) and where they are real; what fills a row up is never seen, so it is 0."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens.to(device), (torch.arange(tokens.shape[1]) < lengths[:, None]).to(device)


def _cut(row: list[int], tokenizer: Tokenizer, longest: int) -> list[int]:
    """Cut a text's own tokens, not those that the tokenizer puts behind every text."""
    around = tokenizer.encode("")
    behind = 0
    while behind < min(len(around), longest) and row[-1 - behind] == around[-1 - behind]:
        behind += 1
    return row[: longest - behind] + row[len(row) - behind :]
