"""The network behind one of few bits, for those who look into it: modules of torch, with the weights of the engine.

Where weights are rounded, the engine is one compiled piece that nobody can look into. What is made here has the same
matrices, each number what its code stands for, and the same adapters. It differs in one thing: torch multiplies
activations as they are, while the engine rounds them to 8 bits, 32 at a time, before each product.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from loquela import peft
from loquela.checkpoint.few_bits import bits_of
from loquela.checkpoint.store import load_model
from loquela.checkpoint.tables import in_16_bits
from loquela.engine.frames import frame_of
from loquela.engine.quantize import quantised
from loquela.models.base import Network

__all__ = ["unrounded"]

_WIDE = frozenset({"router", "shared_expert_gate"})
"""What chooses among experts is never rounded."""


def unrounded(directory: str | Path, bits: int, adapters: Mapping[str, Path]) -> Network:
    """Return a network of a model `directory` whose matrices have what the engine has of them at so many `bits`."""
    loaded = load_model(directory)
    network, in_codes = loaded.network, bits_of(loaded.directory) is not None
    tied = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    table = frame_of(network).entry.tokens
    with torch.no_grad():
        for name, module in network.named_modules():
            if not isinstance(module, nn.Linear) or name.rpartition(".")[2] in _WIDE:
                continue
            is_tied = id(module.weight) in tied
            if in_codes and not is_tied:
                continue  # what has codes in its file is rounded once
            weight = quantised(module.weight, bits).dequantised()
            if is_tied:  # the engine has it twice, once as a table of 16 bits, but it is one parameter
                del module.weight
                module.register_buffer("weight", weight)
            else:
                module.weight = nn.Parameter(weight, requires_grad=False)
        table.weight = nn.Parameter(in_16_bits(table.weight).float(), requires_grad=False)
    for name, place in adapters.items():
        peft.load_adapter(network, place, name)
    return network.eval()
