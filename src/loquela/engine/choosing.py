"""Which engine runs a network: PyTorch's own operations, or the compiled decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from loquela.checkpoint.few_bits import bits_of
from loquela.errors import UsageError
from loquela.models.base import Network

if TYPE_CHECKING:
    from loquela.engine.decoder import Quantize

__all__ = ["ENGINES", "Engine", "EngineName", "kernels_are_ready", "quantised_network", "stored_width"]

EngineName = Literal["auto", "torch", "compiled"]
ENGINES: tuple[EngineName, ...] = ("auto", "torch", "compiled")
WORTH_IT = 20_000_000
"""Parameters from which `auto` compiles: below, a text is written before the kernels are loaded (about a second)."""


class Engine:
    """Finds the network that generates, and compiles it when it is first asked for.

    `auto` compiles decoders of 20 million parameters and more that it knows, and leaves all else to torch; `compiled`
    raises `UsageError` where it cannot. What wears an adapter runs in torch.
    """

    def __init__(self, name: EngineName = "auto") -> None:
        if name not in ENGINES:
            raise UsageError(f"the engine must be one of {', '.join(ENGINES)}, but is {name!r}")
        self.name = name
        self.note: str | None = None
        """Why torch runs a network that one would expect to be compiled."""
        self._made: Network | None = None
        self._made_from: object = None

    def of(self, network: Network, *, dressed: bool = False) -> Network:
        """Return what runs `network`: itself, or its compiled form. `dressed`: whether it wears an adapter now."""
        if self.name == "torch" or hasattr(type(network), "hidden_rows"):
            return network
        if self.name == "auto" and not _worth_it(network):
            return network
        if dressed:
            self.note = "what wears an adapter runs in the torch engine"
            return network
        if self._made_from != (now := _fingerprint(network)):
            self._made, self._made_from = self._make(network), now
        return self._made or network

    def _make(self, network: Network) -> Network | None:
        from loquela.engine.decoder import compiled  # Numba takes most of a second to import

        try:
            return compiled(network)
        except UsageError as error:
            if self.name == "compiled":
                raise
            self.note = str(error)
            return None


def quantised_network(network: Network, quantize: Quantize, engine: EngineName = "auto") -> Network:
    """Return a network of few bits in place of `network`; raises `UsageError` where the engine does not know it."""
    from loquela.engine.decoder import compiled

    if engine == "torch":
        raise UsageError(f"weights of {quantize} need the compiled engine, but the engine is torch")
    return compiled(network, quantize=quantize)


def stored_width(network: Network, directory: Path) -> Quantize | None:
    """Return the width that a directory stores its matrices in, where the engine can run `network`; else None."""
    bits = bits_of(directory)
    if bits is None or network.kind != "decoder":
        return None
    from loquela.engine.decoder import compiled

    try:
        compiled(network, threads=1)
    except UsageError:
        return None
    return "int8" if bits == 8 else "int4"


def kernels_are_ready() -> bool:
    """Whether an earlier process has left its machine code on this disk, so that nothing need be compiled."""
    from loquela.engine.cached import cache_directory

    return any(cache_directory().rglob("*.nbc"))


def _worth_it(network: Network) -> bool:
    first = next(network.parameters())
    plain = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return network.kind == "decoder" and plain and network.parameter_count() >= WORTH_IT


def _fingerprint(network: Network) -> object:
    """What changes when somebody trains the network or puts other weights into it."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in network.parameters())
