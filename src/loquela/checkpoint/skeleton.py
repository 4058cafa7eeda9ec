"""Networks whose parameters take no memory yet: to be filled from a checkpoint, or only to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loquela.errors import ConfigError
from loquela.models.base import Config, Network, architecture

__all__ = ["skeleton"]

MAX_PARAMETERS = 200_000
"""Tensors that a network of any sense may have: a thousand layers with a hundred experts each are half of it."""
_MAX_TABLE = 1 << 24


class _ParametersOnMeta(TorchFunctionMode):
    """Tensors made to be filled go to the meta device and are not drawn; what is computed, such as tables, is real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.ones, torch.zeros):
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        elif func is torch.arange and any(type(n) is int and n > _MAX_TABLE for n in args):
            raise ConfigError(
                f"a table of a model must have at most {_MAX_TABLE:,} rows, but config.json asks for more"
            )
        return func(*args, **kwargs)


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Stop a construction that a config makes endless."""
    count = 0

    def counted(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise ConfigError(f"config.json describes a network of more than {limit:,} tensors: too many layers")

    handle = nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def skeleton(config: Config, *, at_most: int = MAX_PARAMETERS) -> Network:
    """Return the network of `config` with parameters on the meta device: names and shapes, no memory, no values.

    Raises `ConfigError` for a config that asks for more than `at_most` tensors, or for absurd tables.
    """
    with _ParametersOnMeta(), _at_most(at_most):
        network: Network = architecture(config.model_type).NETWORK(config)
    return network
