"""What training a model of any size would take on a given cluster: on paper, from its shape alone.

With P parameters, D tokens to learn from, n devices of peak F operations a second of which the share MFU is used:

- operations      C = c · D, where c is 6 · N + 12 · Σ H · E · T for each token (`loquela.checkpoint.flops`)
- tokens a second n · F · MFU / c
- time            C / (n · F · MFU)
- energy          time · n · watts · 1.2, the last for cooling and conversion (PUE)

Memory of each device, in bytes, mixed precision (products in bfloat16, weights and optimizer in float32), the state in
slices over all n devices (FSDP), each layer's matrices split over t of them (tensor parallelism):

- state        16 · P / n: weights, gradients and the two moments of AdamW, 4 bytes each
- gathered     8 · (L + R) / t: a layer L in computation and the next one on its way, 2 bytes each, and the gradient of
               one, 4 bytes; the same for what stands outside the layers, R (embedding, head)
- activations  2 · A · S / t for the S tokens that a device computes at once and the A numbers that each leaves for the
               backward pass; with layers computed again only 2 · (d · layers + A of one layer / t) · S, where d is the
               width; and 3 slices of logits of 64 MB

What is left out: buffers of the network, fragments of the allocator (ten per cent is a wise margin), time lost to
failures and checkpoints. A stated MFU stands for all that is lost between devices.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loquela.checkpoint.flops import peak_flops, training_flops
from loquela.checkpoint.sizes import kept_per_token
from loquela.checkpoint.skeleton import skeleton
from loquela.errors import UsageError, nearest
from loquela.layers.attention import MultiHeadAttention
from loquela.models.base import Config, Network, config_from_dict

__all__ = ["HARDWARE", "Hardware", "Plan", "decoder_of", "hardware", "plan"]

PUE = 1.2
MARGIN = 0.9
"""The share of a device's memory that a plan may fill."""
TOKENS_PER_PARAMETER = 20
"""Where the compute for a given loss is least (arXiv:2203.15556)."""
_LOGITS = 3 * (64 << 20)


@dataclass(frozen=True)
class Hardware:
    """One device: dense bfloat16 operations a second, bytes of memory, watts of its board."""

    name: str
    flops: float
    memory: float
    watts: float


HARDWARE = {  # of the vendors' data sheets, without sparsity
    one.name: one
    for one in (
        Hardware("b200", 2250e12, 180e9, 1000),
        Hardware("h200", 989e12, 141e9, 700),
        Hardware("h100", 989e12, 80e9, 700),
        Hardware("mi300x", 1307e12, 192e9, 750),
        Hardware("a100", 312e12, 80e9, 400),
        Hardware("a100-40gb", 312e12, 40e9, 400),
        Hardware("l40s", 362e12, 48e9, 350),
        Hardware("rtx4090", 165e12, 24e9, 450),
        Hardware("rtx3090", 71e12, 24e9, 350),
        Hardware("v100", 125e12, 32e9, 300),
        Hardware("t4", 65e12, 16e9, 70),
    )
}


@dataclass(frozen=True)
class Plan:
    """What it takes; see the formulas of this module."""

    hardware: str
    devices: int
    tensor_parallel: int
    parameters: int
    tokens: int
    sequence: int
    tokens_per_step: int
    operations: float
    mfu: float
    memory_bytes: dict[str, float]
    """Of each device: `state`, `gathered`, `activations`, `total`, `available`."""
    fits: bool
    least_devices: int | None
    """The smallest power of two that fits, None where a layer and its activations alone are too much."""
    tokens_per_second: float
    days: float
    megawatt_hours: float


def hardware(name: str) -> Hardware:
    """Return a device by its name; `this` is the machine we are on. Raises `UsageError` for an unknown one."""
    if name == "this":
        threads = torch.get_num_threads()
        peak = peak_flops(torch.device("cpu"), torch.float32) or 0.0
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Hardware("this", peak, memory, 5.0 * threads)
    if name not in HARDWARE:
        raise UsageError(
            f"hardware must be one of {', '.join(HARDWARE)}, this, but is {name!r}{nearest(name, HARDWARE)}"
        )
    return HARDWARE[name]


def plan(
    config: Config,
    *,
    on: Hardware,
    devices: int,
    tokens: int | None = None,
    sequence: int | None = None,
    rows: int = 1,
    tensor_parallel: int = 1,
    mfu: float = 0.4,
    recompute: bool = True,
) -> Plan:
    """Work out the plan for the network that `config` describes, each device computing `rows` texts at once.

    Raises `UsageError` where the devices or the heads cannot be shared so.
    """
    network = skeleton(config)
    heads = min((m.heads for m in network.modules() if isinstance(m, MultiHeadAttention)), default=1)
    if heads % tensor_parallel:
        raise UsageError(f"tensor_parallel must divide the {heads} attention heads, but is {tensor_parallel}")
    if devices % tensor_parallel:
        raise UsageError(f"tensor_parallel must divide the {devices} devices, but is {tensor_parallel}")
    if not 0 < mfu <= 1:
        raise UsageError(f"mfu must be above 0 and at most 1, but is {mfu}")
    count = network.parameter_count()
    sequence = sequence or min(network.context_length, 4096)
    tokens = tokens or TOKENS_PER_PARAMETER * count
    gathered, activations = _transient(network, sequence * rows, tensor_parallel, recompute)
    room = on.memory * MARGIN - gathered - activations
    needed = None if room <= 0 else max(tensor_parallel, 2 ** math.ceil(math.log2(max(1.0, 16 * count / room))))
    memory = {"state": 16 * count / devices, "gathered": gathered, "activations": activations}
    total = sum(memory.values())
    per_token = training_flops(network, sequence)
    speed = devices * on.flops * mfu / per_token
    seconds = tokens / speed
    return Plan(
        hardware=on.name,
        devices=devices,
        tensor_parallel=tensor_parallel,
        parameters=count,
        tokens=tokens,
        sequence=sequence,
        tokens_per_step=devices // tensor_parallel * rows * sequence,
        operations=float(per_token) * tokens,
        mfu=mfu,
        memory_bytes={**memory, "total": total, "available": on.memory},
        fits=total <= on.memory * MARGIN,
        least_devices=needed,
        tokens_per_second=speed,
        days=seconds / 86400,
        megawatt_hours=seconds * devices * on.watts * PUE / 3.6e9,
    )


def decoder_of(parameters: float, *, vocabulary: int = 32_000, window: int = 4096) -> Config:
    """Return a decoder in LLaMA's form of about so many parameters, its layers 1/128 of its width in number.

    Raises `UsageError` for fewer than ten million.
    """
    if not 1e7 <= parameters <= 1e14:
        raise UsageError(
            f"a plan needs between ten million and 100 trillion parameters, but {parameters:.3g} were given"
        )
    best: tuple[float, dict[str, Any]] | None = None
    step = 128 if parameters < 9e8 else 1024  # a number of heads that devices can share
    for dim in range(step, 1 << 17, step):
        hidden = 256 * round(8 * dim / 3 / 256) or 256
        layers = round((parameters - 2 * vocabulary * dim) / (4 * dim * dim + 3 * dim * hidden))
        if layers < 1:
            break
        off = abs(math.log(layers * 128 / dim))
        if best is None or off < best[0]:
            best = off, {"hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers}
    if best is None:
        raise UsageError(f"a vocabulary of {vocabulary:,} alone is more than {parameters:.3g} parameters")
    shape = best[1]
    return config_from_dict(
        {
            "model_type": "llama",
            **shape,
            "num_attention_heads": shape["hidden_size"] // 128,
            "vocab_size": vocabulary,
            "max_position_embeddings": window,
        }
    )


def _transient(network: Network, tokens: int, tensor_parallel: int, recompute: bool) -> tuple[float, float]:
    """Bytes of what is gathered, and of activations."""
    layers = [
        layer
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "layers"
        for layer in module
    ]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers] or [0]
    outside = network.parameter_count() - sum(sizes)
    gathered = 8 * (max(sizes) + outside) / tensor_parallel
    kept = [kept_per_token(layer) for layer in layers] or [kept_per_token(network)]
    inputs_only = network.dim * len(kept) + max(kept) / tensor_parallel
    numbers = inputs_only if recompute else sum(kept) / tensor_parallel
    return gathered, 2.0 * numbers * tokens + _LOGITS
