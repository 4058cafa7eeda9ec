"""Collect what modules compute, by name, while a network runs; nothing is kept of what nobody asked for.

    with model.watch("decoder.layers.*", "decoder.layers.*.attention:weights") as seen:
        model.logits(ids)
    seen["decoder.layers.0"]  # [(1, seq, dim)]: one tensor for each time that the module ran

A name is a module's, as `network.named_modules()` has it, and `*` stands for one segment. Behind a colon stands what is
collected: `output` (unless said otherwise), `input`, or `weights`, which are an attention's after its softmax. This is
what every picture is built from, and the way to build a new one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from loquela.errors import UsageError, nearest

__all__ = ["Seen", "watch"]

Seen = Mapping[str, list[Tensor]]
"""Name → what was collected, one tensor for each call. The name is the module's, with what follows the colon."""


def _output(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(hook).remove


def _input(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(inputs[0])

    return module.register_forward_pre_hook(hook).remove


def _weights(module: nn.Module, keep: Callable[[Tensor], None]) -> Callable[[], None]:
    module.probe = keep  # type: ignore[assignment]
    return partial(setattr, module, "probe", None)


_WAYS: dict[str, Callable[[nn.Module, Callable[[Tensor], None]], Callable[[], None]]] = {
    "output": _output,
    "input": _input,
    "weights": _weights,
}


@contextmanager
def watch(network: nn.Module, *names: str) -> Iterator[Seen]:
    """Collect what the named modules of `network` compute within the `with`; afterwards nothing listens any more.

    Tensors are detached: they belong to whoever holds the result, and are free when it is. Raises `UsageError` for a
    name that no module has, and for the `weights` of what is no attention or is watched already.
    """
    seen: dict[str, list[Tensor]] = {}
    modules = dict(network.named_modules())
    wanted: list[tuple[str, str, str]] = []
    for name in names:
        pattern, _, way = name.partition(":")
        way = way or "output"
        if way not in _WAYS:
            raise UsageError(
                f"what is collected must be one of {', '.join(_WAYS)}, but is {way!r}{nearest(way, _WAYS)}"
            )
        found = [module for module in modules if _fits(pattern, module)]
        if not found:
            raise UsageError(
                f"a watched name must be a module's, but none is called {pattern!r}{nearest(pattern, modules)}"
            )
        if way == "weights" and (bad := [m for m in found if getattr(modules[m], "probe", 0) is not None]):
            raise UsageError(f"only an attention that nobody watches has weights to collect, which {bad[0]!r} is not")
        wanted += [(module, way, module if way == "output" else f"{module}:{way}") for module in found]
    undo: list[Callable[[], None]] = []
    try:
        for module, way, key in wanted:
            if key not in seen:
                kept: list[Tensor] = []
                seen[key] = kept
                undo.append(_WAYS[way](modules[module], partial(_keep, kept)))
        yield seen
    finally:
        for step in undo:
            step()


def _keep(kept: list[Tensor], x: Tensor) -> None:
    kept.append(x.detach())


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"[^.]+"), name) is not None
