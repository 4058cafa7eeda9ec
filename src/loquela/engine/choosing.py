"""Which engine runs a network: PyTorch's own operations, or the compiled decoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch

from loquela.checkpoint.few_bits import bits_of
from loquela.checkpoint.hub import resolve
from loquela.errors import UsageError
from loquela.models.base import Network
from loquela.peft.attaching import adapters
from loquela.peft.wardrobe import wardrobe_of

if TYPE_CHECKING:
    from loquela.checkpoint.store import Loaded
    from loquela.engine.decoder import CacheType, CompiledNetwork, Quantize

__all__ = [
    "ENGINES",
    "Engine",
    "EngineName",
    "base_of",
    "check_wearable",
    "compiled_already",
    "kernels_are_ready",
    "quantised_network",
    "stored_width",
    "warm",
]

EngineName = Literal["auto", "torch", "compiled"]
ENGINES: tuple[EngineName, ...] = ("auto", "torch", "compiled")
WORTH_IT = 20_000_000
"""Parameters from which `auto` compiles: below, a text is written before the kernels are loaded (about a second)."""


class Engine:
    """Finds the network that generates, and compiles it when it is first asked for.

    `auto` compiles what writes text, has 20 million parameters or more and is known to it, and leaves all else to
    torch; `compiled` raises `UsageError` where it cannot. Where something is worn that the compiled form does not know,
    torch runs it. A `cache_dtype` other than float32 asks for the compiled one.
    """

    def __init__(self, name: EngineName = "auto", cache_dtype: CacheType = "float32") -> None:
        if name not in ENGINES:
            raise UsageError(f"the engine must be one of {', '.join(ENGINES)}, but is {name!r}")
        if cache_dtype != "float32" and name == "torch":
            raise UsageError(f"a cache of {cache_dtype} needs the compiled engine, but the engine is torch")
        self.name = name if cache_dtype == "float32" else "compiled"
        self._cache_dtype = cache_dtype
        self.note: str | None = None
        """Why torch runs a network that one would expect to be compiled."""
        self._made: CompiledNetwork | None = None
        self._made_from: object = None

    def of(self, network: Network) -> Network:
        """Return what runs `network` with what it wears now: itself, or its compiled form."""
        if self.name == "torch" or compiled_already(network):
            return network
        if self.name == "auto" and not _worth_it(network):
            return network
        if self._made_from != (now := _fingerprint(network)):
            self._made, self._made_from = self._make(network), now
        if self._made is None:
            return network
        if (reason := _refusal(self._made, _worn_names(network))) is not None:
            self.note = reason
            return network
        return self._made

    def _make(self, network: Network) -> CompiledNetwork | None:
        from loquela.engine.decoder import compiled  # Numba takes most of a second to import

        try:
            return compiled(network, cache_dtype=self._cache_dtype)
        except UsageError as error:
            if self.name == "compiled":
                raise
            self.note = str(error)
            return None


def quantised_network(
    network: Network,
    quantize: Quantize,
    engine: EngineName = "auto",
    cache_dtype: CacheType = "float32",
    loaded: Loaded | None = None,
    *,
    asked: bool = True,
) -> Network:
    """Return a network of few bits, with the same adapters, in place of `network`.

    Matrices that were `loaded` unread are rounded while they are read, and are never in memory. Where the engine does
    not know the network, or one of its adapters, it raises `UsageError`, or, if nobody `asked` for few bits, returns
    the network itself with all its matrices.
    """
    from loquela.engine.decoder import compiled

    if engine == "torch":
        raise UsageError(f"weights of {quantize} need the compiled engine, but the engine is torch")
    try:
        stored = {} if loaded is None else loaded.unread
        made = compiled(network, quantize=quantize, cache_dtype=cache_dtype, stored=stored)
        for name in adapters(network):
            check_wearable(made, name)
    except UsageError:
        if asked or loaded is None:
            raise
        loaded.read_rest()
        return network
    return made


def check_wearable(network: Network, name: str) -> None:
    """Raise `UsageError` for an adapter on a network of few bits that the engine does not know: torch has no such."""
    if not compiled_already(network) or network.quantize is None:
        return
    if (reason := network.refusal(name)) is not None:
        what = reason.partition(":")[0]
        raise UsageError(f"weights of {network.quantize} cannot wear adapter {name!r}, since {what}: merge it first")


def compiled_already(network: Network) -> TypeGuard[CompiledNetwork]:
    """Whether a network is a compiled one, which gives each row of a batch the bits that it would have alone."""
    return hasattr(type(network), "hidden_rows")


def base_of(network: Network) -> Network:
    """Return the network that adapters are put on: that which a compiled one was made from, else itself."""
    return network.base if compiled_already(network) else network


def stored_width(directory: str | Path, engine: EngineName = "auto") -> Quantize | None:
    """Return the width that a model directory stores its matrices in; None: floating point, or `engine` is torch."""
    place = resolve(directory)
    if engine == "torch" or not (place / "config.json").is_file():
        return None
    bits = bits_of(place)
    return None if bits is None else "int8" if bits == 8 else "int4"


def warm(directory: str | Path, engine: EngineName, quantize: Quantize | None) -> None:
    """Have the kernels loaded in a thread, while others read, if a model is likely to need them."""
    size = sum(file.stat().st_size for file in resolve(directory).glob("*.safetensors"))
    if quantize is not None or engine == "compiled" or (engine == "auto" and size > 2 * WORTH_IT):
        Thread(target=_warm, name="loquela-warm", daemon=True).start()


def _warm() -> None:
    import loquela.engine.decoder  # noqa: F401
    from loquela.engine.crew import Crew

    if kernels_are_ready():
        Crew(1, 1).run(0, 0, 0, {})


def kernels_are_ready() -> bool:
    """Whether an earlier process has left its machine code on this disk, so that nothing need be compiled."""
    from loquela.engine.cached import cache_directory

    return any(cache_directory().rglob("*.nbc"))


def _worth_it(network: Network) -> bool:
    first = next(network.parameters())
    plain = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return network.kind != "encoder" and plain and network.parameter_count() >= WORTH_IT


def _worn_names(network: Network) -> list[str]:
    wardrobe = wardrobe_of(network)
    worn = () if wardrobe is None or wardrobe.worn is None else wardrobe.worn.each()
    return [name for name in worn if name is not None]


def _refusal(made: CompiledNetwork, names: Iterable[str]) -> str | None:
    return next((reason for name in names if (reason := made.refusal(name)) is not None), None)


def _fingerprint(network: Network) -> object:
    """What changes when somebody trains the network or puts other weights into it."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in network.parameters())
