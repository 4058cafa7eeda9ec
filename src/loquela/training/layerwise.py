"""What is done to a network layer by layer before it trains: computing again instead of keeping, and compiling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loquela.errors import RecipeError
from loquela.models.base import Network

__all__ = ["compile_layers", "layers", "recompute_layers", "uncompiled"]


def layers(network: Network) -> Iterator[nn.Module]:
    """Yield the blocks of every stack of the network."""
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "layers":
            yield from module


def recompute_layers(network: Network) -> None:
    """Let every block keep only its input for the backward pass, and compute the rest again there.

    The gradients stay the same to the last bit (dropout is drawn again as it was), a step takes about a third longer
    (Chen et al., arXiv:1604.06174). Raises `RecipeError` for a network that has no blocks.
    """
    for layer in _some(network, "gradient_checkpointing"):
        layer.forward = _recomputed(layer.forward)


def compile_layers(network: Network) -> None:
    """Compile every block by itself: alike blocks share the work, and the first step waits seconds, not minutes."""
    for layer in _some(network, "torch_compile"):
        layer.compile(dynamic=False)


def uncompiled(network: Network) -> AbstractContextManager[Any]:
    """Run a compiled network as it was written, for lengths that change with every call."""
    if any(layer._compiled_call_impl is not None for layer in layers(network)):
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return nullcontext()


def _some(network: Network, key: str) -> list[nn.Module]:
    found = list(layers(network))
    if not found:
        raise RecipeError(f"{key} must have layers to work on, but {network.config.model_type} has none; leave it out")
    return found


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return call
