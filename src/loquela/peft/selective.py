"""Selective tuning: some tensors of the base are tuned, the rest stays; the adapter is those tensors, whole.

`tune` names kinds: `biases` is BitFit (Ben Zaken et al., 2021, arXiv:2106.10199); others are embeddings, attention,
feedforward, recurrent, norms, head. `target_modules` chooses by name on disk, `layers_to_transform` by the number of a
layer (from the end where it is negative). A tensor that is tied stays tied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from loquela.errors import ConfigError, UsageError, nearest
from loquela.layers.block import Block
from loquela.layers.positions import RelativeBias
from loquela.models.base import Network
from loquela.peft.base import AdapterConfig, Part
from loquela.peft.draw import Draw
from loquela.peft.saved import Leaf, replaced
from loquela.peft.targets import HEADS, matches

__all__ = ["CONFIG", "KINDS", "SelectiveConfig", "make"]


def _inside(half: str) -> Callable[[Network, str, Any], bool]:
    def is_inside(network: Network, name: str, module: Any) -> bool:
        blocks = [place for place, block in network.named_modules() if isinstance(block, Block)]
        return any(f"{name}.".startswith(f"{place}.{half}.") for place in blocks)

    return is_inside


KINDS: dict[str, Callable[[Network, str, Any], bool]] = {
    "embeddings": lambda network, name, module: (
        isinstance(module, nn.Embedding)
        and not isinstance(network.get_submodule(name.rpartition(".")[0]), RelativeBias)
    ),
    "attention": lambda network, name, module: (
        _inside("attention")(network, name, module) or _inside("cross")(network, name, module)
    ),
    "feedforward": _inside("feedforward"),
    "recurrent": lambda network, name, module: isinstance(module, nn.RNNBase),
    "norms": lambda network, name, module: "Norm" in type(module).__name__,
    "head": lambda network, name, module: name.startswith(HEADS),
    "biases": lambda network, name, module: False,  # a matter of the tensor, not of its layer
}
"""Kinds of layers that `tune` can name."""


@dataclass
class SelectiveConfig(AdapterConfig):
    """adapter_config.json of selective tuning: what `tune` or `target_modules` name, within `layers_to_transform`."""

    method: ClassVar[str] = "selective"
    peft_type: ClassVar[str] = "SELECTIVE"

    tune: list[str] | None = None
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None

    def check(self) -> None:
        """Something must be chosen, and kinds must be known."""
        super().check()
        for kind in self.tune or ():
            if kind not in KINDS:
                raise ConfigError(f"tune must name {', '.join(KINDS)}, but names {kind!r}{nearest(kind, KINDS)}")
        if not self.tune and not self.target_modules and self.layers_to_transform is None:
            raise ConfigError(
                f"selective tuning needs tune (of {', '.join(KINDS)}), target_modules or layers_to_transform, but has "
                "none"
            )


def make(
    network: Network, config: SelectiveConfig, draw: Draw
) -> tuple[SelectiveConfig, dict[str, Part], dict[str, str]]:
    """Return the config and, for each layer with tuned tensors, what replaces them."""
    leaves = [leaf for leaf in Leaf.all(network) if _is_chosen(network, leaf, config)]
    if not leaves:
        raise UsageError(
            f"selective tuning must name tensors of this {network.config.model_type}, but tune={config.tune}, "
            f"target_modules={config.target_modules!r} and layers_to_transform={config.layers_to_transform} name none"
        )
    return config, replaced(network, leaves, draw), {}


def _is_chosen(network: Network, leaf: Leaf, config: SelectiveConfig) -> bool:
    if config.layers_to_transform is not None and not _in_layers(network, leaf, config.layers_to_transform):
        return False
    if not config.tune and not config.target_modules:
        return True
    if config.target_modules and (
        matches(config.target_modules, leaf.disk) or matches(config.target_modules, leaf.disk.rpartition(".")[0])
    ):
        return True
    layer, kinds = network.get_submodule(leaf.module), config.tune or ()
    if "biases" in kinds and "bias" in leaf.leaf:
        return True
    return any(KINDS[kind](network, leaf.module, layer) for kind in kinds)


def _in_layers(network: Network, leaf: Leaf, wanted: list[int] | int) -> bool:
    layer = network.get_submodule(leaf.module)
    if match := re.search(r"\blayers\.(\d+)\b", leaf.module):
        stack = network.get_submodule(leaf.module[: match.start()] + "layers")
        count = len(stack) if isinstance(stack, nn.ModuleList) else 0
    elif isinstance(layer, nn.RNNBase) and (match := re.search(r"_l(\d+)$", leaf.leaf)):
        count = layer.num_layers
    else:
        return False
    layers = [wanted] if isinstance(wanted, int) else wanted
    return int(match[1]) in [layer + count if layer < 0 else layer for layer in layers]


CONFIG = SelectiveConfig
