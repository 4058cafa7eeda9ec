"""A network that runs in compiled kernels, behind the interface of the one that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = ["CompiledNetwork", "compiled"]

Quantize = Literal["int8", "int4"]


def compiled(
    network: Network,
    *,
    quantize: Quantize | None = None,
    threads: int | None = None,
    cache_dtype: Literal["float32", "float16"] = "float32",
) -> CompiledNetwork:
    """Return `network` compiled: the same function of tokens, for generating.

    Every logit is summed in an order that depends on the weights' shapes only: alone or beside others, prefilled in any
    pieces or token by token, on any number of threads, it has the same bits. Raises `UsageError` for a network made of
    bricks that the engine does not know.
    """
    if network.kind != "decoder":
        raise UsageError(f"the compiled engine runs decoders, but {network.config.model_type} is an {network.kind}")
    return CompiledNetwork(network)


class CompiledNetwork(Network):
    """A decoder that reads its weights once for all requests that it serves together."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.config, self._network = network.config, network.eval()

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self._network.vocab_size

    @property
    def context_length(self) -> int:  # noqa: D102
        return self._network.context_length

    @property
    def dim(self) -> int:  # noqa: D102
        return self._network.dim

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        return self._network.hidden(tokens, cache=cache, padding=padding)

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self._network.head(hidden)

    def new_cache(self) -> Cache:
        """Return an empty cache of this engine's kind; its `bytes` says what it holds in memory."""
        return self._network.new_cache()

    def hidden_rows(self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache]) -> list[Tensor]:
        """Return the last hidden states (new tokens, dim) of each of several independent requests.

        `tokens[i]` (at least one) come after what `caches[i]`, made by `new_cache`, holds, and extend it. All caches
        must be different objects.
        """
        with torch.no_grad():
            return [
                self._network.hidden(torch.tensor([ids]), cache=cache)[0]
                for ids, cache in zip(tokens, caches, strict=True)
            ]

    def logits_rows(self, hidden: Tensor) -> npt.NDArray[np.float32]:
        """Return the logits (n, vocab) of hidden states (n, dim)."""
        with torch.no_grad():
            return np.stack([self._network.head(row).float().numpy() for row in hidden])

    def initialise(self) -> None:
        """Refused: a compiled network is made from one that has its weights."""
        raise UsageError("a compiled network cannot be trained: train the network that it was made from")
