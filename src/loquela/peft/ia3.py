"""(IA)³ (Liu et al., 2022, arXiv:2205.05638): a factor for each key, each value and each unit of the feed-forward.

    k, v: y = l ⊙ (W x + bias)          feed-forward: y = W (l ⊙ x) + bias

All factors start at one, so that nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.models.base import Network
from loquela.peft.base import AdapterConfig, Part
from loquela.peft.draw import Draw
from loquela.peft.targets import chosen, ends_with, stored_transposed, suffixes

__all__ = ["CONFIG", "IA3", "IA3Config", "make"]

_FEEDFORWARD = ("feedforward.down_proj",)
_DEFAULT = ("k_proj", "v_proj", "qkv_proj", *_FEEDFORWARD)


@dataclass
class IA3Config(AdapterConfig):
    """adapter_config.json of (IA)³; without `target_modules`, keys, values and what leads out of the feed-forward."""

    method: ClassVar[str] = "ia3"
    peft_type: ClassVar[str] = "IA3"

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    feedforward_modules: list[str] | str | None = None
    """Those of the targets whose input is multiplied, by name or the end of one."""
    fan_in_fan_out: bool = False
    init_ia3_weights: bool = True
    """Whether factors start at one; else N(0, 1)."""


class IA3(Part):
    """The factors of one layer: (out, 1) for its output, (1, in) for its input."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__({"ia3_l": factors})
        self.inputs = factors.shape[0] == 1 and factors.shape[1] != 1

    def before(self, layer: Any, x: Tensor) -> Tensor:
        """`l ⊙ x` in a feed-forward."""
        return (x * self.tensors["ia3_l"][0]).to(x.dtype) if self.inputs else x

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """`l ⊙ y` for keys and values."""
        return y if self.inputs else (y * self.tensors["ia3_l"][:, 0]).to(y.dtype)

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """Rows or columns of W multiplied, and the bias with the rows."""
        return self._multiplied(layer, 1 + weight * (self.tensors["ia3_l"] - 1))

    def unmerged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """Rows or columns of W divided; a factor of zero cannot be."""
        factors = 1 + weight * (self.tensors["ia3_l"] - 1)
        return super().unmerged(layer, weight) if bool((factors == 0).any()) else self._multiplied(layer, 1 / factors)

    def _multiplied(self, layer: Any, factors: Tensor) -> dict[str, Tensor]:
        values = {"weight": (layer.weight.detach() * factors).to(layer.weight.dtype)}
        if layer.bias is not None and not self.inputs:
            values["bias"] = (layer.bias.detach() * factors[:, 0]).to(layer.bias.dtype)
        return values


def make(network: Network, config: IA3Config, draw: Draw) -> tuple[IA3Config, dict[str, Part], dict[str, str]]:
    """Return the config with its targets spelled out, factors for each, and their names on disk."""
    picked = chosen(network, config, default=_DEFAULT, kinds=(nn.Linear,))
    if config.feedforward_modules is None:
        inner = [disk for name, disk in picked.items() if name.endswith(_FEEDFORWARD)]
    elif isinstance(config.feedforward_modules, str):
        inner = list(chosen(network, replace(config, target_modules=config.feedforward_modules), default=()).values())
    else:
        inner = [disk for disk in picked.values() if ends_with(disk, config.feedforward_modules)]
    parts: dict[str, Part] = {}
    for name, disk in picked.items():
        layer: Any = network.get_submodule(name)
        shape = (1, layer.in_features) if disk in inner else (layer.out_features, 1)
        parts[name] = IA3(draw.filled(1, *shape) if config.init_ia3_weights else draw.normal(1, *shape))
    targets = suffixes(network, picked, (nn.Linear,))
    feedforward = suffixes(network, {name: disk for name, disk in picked.items() if disk in inner}, (nn.Linear,))
    if not set(feedforward) <= set(targets):  # PEFT wants them spelled alike
        targets, feedforward = sorted(picked.values()), sorted(inner)
    config = replace(
        config,
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=stored_transposed(network, picked),
    )
    return config, parts, picked


CONFIG = IA3Config
