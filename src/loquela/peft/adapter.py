"""Bottleneck adapters (Houlsby et al., 2019, arXiv:1902.00751): a small network behind each half of a block.

    y = y + s · up(activation(down(y)))        or, beside the half (He et al., 2021, arXiv:2110.04366):
    y = y + s · up(activation(down(x)))

`up` starts at zero, so that nothing is changed. The names of the settings are those of AdapterHub; PEFT has no such
method. With `mh_adapter=False` only the feed-forward has one (Pfeiffer et al., 2020, arXiv:2005.00247). A recurrent
stack has one behind it, as a feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from loquela.errors import ConfigError, UsageError
from loquela.layers.block import Block
from loquela.layers.feedforward import ACTIVATIONS
from loquela.layers.recurrent import Recurrent
from loquela.models.base import Network
from loquela.peft.base import AdapterConfig, Part
from loquela.peft.draw import Draw

__all__ = ["CONFIG", "Bottleneck", "BottleneckConfig", "make"]


@dataclass
class BottleneckConfig(AdapterConfig):
    """adapter_config.json of bottleneck adapters; where they stand, how wide they are, what they compute."""

    method: ClassVar[str] = "adapter"
    peft_type: ClassVar[str] = "BOTTLENECK"

    mh_adapter: bool = True
    """Whether attention has one, that to an encoder's output included."""
    output_adapter: bool = True
    """Whether the feed-forward has one, or a recurrent stack."""
    is_parallel: bool = False
    """Whether it reads what its half of the block reads, not what that gives."""
    reduction_factor: int | float = 16
    """The model's dim divided by the width of the bottleneck."""
    bottleneck_size: int | None = None
    """The width itself; overrides `reduction_factor`."""
    non_linearity: str = "relu"
    scaling: int | float = 1.0
    dropout: float = 0.0
    layers_to_transform: list[int] | int | None = None

    def check(self) -> None:
        """There must be a place and a width, and the activation must be known."""
        super().check()
        self.at_least("bottleneck_size", 1, 2**20)
        self.at_least("reduction_factor", 1e-3)
        self.at_least("dropout", 0, 1)
        if not (self.mh_adapter or self.output_adapter):
            raise ConfigError("mh_adapter or output_adapter must be true, but both are false: nothing would be tuned")
        if self.non_linearity not in ACTIVATIONS:
            raise ConfigError(f"non_linearity must be one of {', '.join(ACTIVATIONS)}, but is {self.non_linearity!r}")


class Bottleneck(Part):
    """Down, activation, up; its output is added to that of half a block."""

    def __init__(self, tensors: dict[str, Tensor], config: BottleneckConfig) -> None:
        super().__init__(tensors)
        self.config = config

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """`y + s · up(activation(down(·)))`."""
        t, config = self.tensors, self.config
        inner = (x if config.is_parallel else y).to(t["adapter_down.weight"].dtype)
        inner = F.dropout(inner, config.dropout, training=layer.training and config.dropout > 0)
        h = ACTIVATIONS[config.non_linearity](F.linear(inner, t["adapter_down.weight"], t["adapter_down.bias"]))
        return y + (config.scaling * F.linear(h, t["adapter_up.weight"], t["adapter_up.bias"])).to(y.dtype)


def make(
    network: Network, config: BottleneckConfig, draw: Draw
) -> tuple[BottleneckConfig, dict[str, Part], dict[str, str]]:
    """Return the config, and an adapter for each half of a block that is to have one."""
    halves = [*(["attention", "cross"] * config.mh_adapter), *(["feedforward"] * config.output_adapter)]
    wanted = config.layers_to_transform
    layers = None if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    width = config.bottleneck_size or max(1, round(network.dim / config.reduction_factor))
    if width > 2**20:
        raise ConfigError(f"reduction_factor must give a bottleneck of at most {2**20}, but gives {width}")
    parts: dict[str, Part] = {}
    for name, module in network.named_modules():
        number = name.rpartition(".")[2]
        if layers is not None and not (number.isdigit() and int(number) in layers):
            continue
        if isinstance(module, Block):
            for half in halves:
                if getattr(module, half) is not None:
                    parts[f"{name}.{half}"] = Bottleneck(_start(network.dim, width, network.dim, draw), config)
        elif isinstance(module, Recurrent) and config.output_adapter:
            read = module.cells.input_size if config.is_parallel else module.cells.hidden_size
            parts[name] = Bottleneck(_start(read, width, module.cells.hidden_size, draw), config)
    if not parts:
        raise UsageError(
            "bottleneck adapters stand in the blocks of a transformer or behind recurrent layers, but "
            f"{network.config.model_type} has none" + ("" if layers is None else f" among layers_to_transform={layers}")
        )
    return config, parts, {name: name for name in parts}


def _start(read: int, width: int, dim: int, draw: Draw) -> dict[str, Tensor]:
    return {
        "adapter_down.weight": draw.uniform(read**-0.5, width, read),
        "adapter_down.bias": draw.filled(0, width),
        "adapter_up.weight": draw.filled(0, dim, width),
        "adapter_up.bias": draw.filled(0, dim),
    }


CONFIG = BottleneckConfig
