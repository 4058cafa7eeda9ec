"""Networks whose parameters take no memory yet: to be filled from a checkpoint, or only to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loquela.checkpoint.configs import NONSENSE
from loquela.errors import ConfigError
from loquela.models.base import Config, Network, architecture

__all__ = ["skeleton"]

MAX_PARAMETERS = 20_000
"""Tensors that a network may have which is only measured: two thousand layers."""
_MAX_ROWS = 1 << 24


class _NothingDrawn(TorchFunctionMode):
    """Matrices to be filled go to the meta device and are not drawn; what is computed, such as tables, is real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        elif func in (torch.arange, torch.ones, torch.zeros) and any(type(n) is int and n > _MAX_ROWS for n in args):
            raise ConfigError(f"a vector of a model must have at most {_MAX_ROWS:,} numbers, but config.json has more")
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
    try:
        with _NothingDrawn(), _at_most(at_most):
            network: Network = architecture(config.model_type).NETWORK(config)
    except NONSENSE as error:
        raise ConfigError(f"config.json describes a network that cannot be: {error}") from error
    return _on_meta(network)


def _on_meta(network: Network) -> Network:
    """Move the parameters that are real, the ones of norms, as well; what is tied stays tied."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                if parameter not in moved:
                    moved[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                setattr(module, name, moved[parameter])
    return network
