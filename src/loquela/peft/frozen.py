"""A base whose matrices are stored in few bits, to be tuned by an adapter that is not (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from torch import nn

from loquela.errors import UsageError
from loquela.layers.experts import MixtureOfExperts
from loquela.layers.quantized import QuantizedLinear
from loquela.models.base import Network
from loquela.peft.targets import HEADS
from loquela.peft.wardrobe import wardrobe_of

__all__ = ["quantize_base"]


def quantize_base(network: Network, bits: int = 4, group: int = 64) -> int:
    """Store the matrices of `network` in 8 or 4 bits, in place and for good; return the bytes that this freed.

    Embeddings, the head and a mixture's routers stay as they are. All that is quantised is frozen; adapters are
    attached afterwards, and the network can no longer be saved or merged. Raises `UsageError` when adapters are on it.
    """
    if wardrobe_of(network) is not None:
        raise UsageError("a base is quantised before adapters are attached: detach them first")
    routers = [module.router for module in network.modules() if isinstance(module, MixtureOfExperts)]
    freed = 0
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear and not name.startswith(HEADS) and module not in routers:
            before = module.weight.numel() * module.weight.element_size()
            QuantizedLinear.adopt(module, bits, group)
            freed += before - sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    return freed
