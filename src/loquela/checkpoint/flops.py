"""How many floating-point operations a token costs, and how many a machine does in a second.

A token that is trained on costs 6 · N + 12 · Σ H · E · T operations: 2 for each of the N weights that it is multiplied
with (the head too; the embedding is looked up), and per layer 4 · H · E for each of the T tokens that its H heads of
width E look at, in the forward pass; twice as many in the backward pass (arXiv:2001.08361, 2.1; arXiv:2204.02311,
appendix B, which defines the share of a machine's peak that is so used, MFU). What is computed twice to save memory, or
masked by causality, is not counted or uncounted.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import nn

from loquela.layers.attention import MultiHeadAttention
from loquela.layers.experts import MixtureOfExperts
from loquela.models.base import Network

__all__ = ["forward_flops", "peak_flops", "training_flops"]

_DENSE = {  # of the vendors' data sheets, without sparsity: what tensor cores do in 16 bits, and outside them in 32
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
    "4090": (165e12, 82.6e12),
    "3090": (71e12, 35.6e12),
}


def forward_flops(network: Network, tokens: int) -> int:
    """Return the operations per token of a forward pass over a text of `tokens`; on the meta device too."""
    return _weights(network) * 2 + _attended(network) * 4 * tokens


def training_flops(network: Network, tokens: int) -> int:
    """Return the operations per token of a forward and a backward pass over a text of `tokens`."""
    return 3 * forward_flops(network, tokens)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second that `device` reaches at best, or None where nobody said.

    Of a GPU, from its data sheet; of a CPU, the best of a few products of large matrices, measured here and now.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = next((peaks for key, peaks in _DENSE.items() if key in name), None)
        return None if found is None else found[dtype == torch.float32]
    if device.type != "cpu":
        return None
    size = 512
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    torch.mm(a, b)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _weights(module: nn.Module) -> int:
    """Weights that each token is multiplied with."""
    if isinstance(module, MixtureOfExperts):  # a token meets the chosen experts only
        experts = sum(map(_weights, module.experts))
        return module.router.weight.numel() + experts * module.chosen // len(module.experts)
    own = 0
    if not isinstance(module, nn.Embedding):
        own = sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 2)
    return own + sum(map(_weights, module.children()))


def _attended(network: Network) -> int:
    return sum(m.heads * m.head_dim for m in network.modules() if isinstance(m, MultiHeadAttention))
