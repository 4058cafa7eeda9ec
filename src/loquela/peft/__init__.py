"""Parameter-efficient tuning: methods, adapters on a network, wearing, saving, merging.

```python
from loquela import peft

config = peft.config_for("lora", r=16, target_modules="all-linear")
peft.attach(network, config, "polite", seed=0)
parameters = peft.train_only(network, "polite")        # {key on disk: nn.Parameter}; all else is frozen
with peft.wearing(network, "polite"):                   # forward AND backward
    network(tokens).sum().backward()
peft.save_adapter(network, "polite", "out/polite", base="my-base")

peft.load_adapter(network, "out/sentiment", "sentiment")
with peft.wearing(network, ["polite", "sentiment", None]):   # one per row of the batch
    network(three_rows)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loquela.peft.attaching import adapters, attach, detach, train_only, trainable, virtual_tokens, wearing
    from loquela.peft.base import METHODS, AdapterConfig, config_for
    from loquela.peft.frozen import quantize_base
    from loquela.peft.merging import combine, merge, unmerge
    from loquela.peft.storing import load_adapter, read_adapter_config, save_adapter

__all__ = [
    "METHODS",
    "AdapterConfig",
    "adapters",
    "attach",
    "combine",
    "config_for",
    "detach",
    "load_adapter",
    "merge",
    "quantize_base",
    "read_adapter_config",
    "save_adapter",
    "train_only",
    "trainable",
    "unmerge",
    "virtual_tokens",
    "wearing",
]

_HOMES = {
    "METHODS": "base",
    "AdapterConfig": "base",
    "config_for": "base",
    **dict.fromkeys(
        ("adapters", "attach", "detach", "train_only", "trainable", "virtual_tokens", "wearing"), "attaching"
    ),
    "quantize_base": "frozen",
    **dict.fromkeys(("combine", "merge", "unmerge"), "merging"),
    **dict.fromkeys(("load_adapter", "read_adapter_config", "save_adapter"), "storing"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loquela.peft' has no attribute {name!r}")
    return getattr(importlib.import_module(f"loquela.peft.{_HOMES[name]}"), name)
