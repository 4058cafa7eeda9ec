"""How large a model is, and the memory to run, tune and train it: counted on its shape, without making it.

All in bytes of float32, which everything is computed in here unless said otherwise. With P parameters, T tokens in a
batch of training, and R parameters of LoRA of rank 16 on every linear layer of the blocks:

- run        4·P, and the keys and values of one text as long as the context window
- tune_full  16·P (weights, gradients, the two moments of AdamW), and 4·A·T of activations
- tune_lora  4·P + 16·R + 4·A·T
- train      as tune_full, for 8 texts at once

A, the numbers that each token leaves for the backward pass, is what goes in and out of every matrix that it meets, once
through every norm, and once more the logits: within a third of what PyTorch keeps without dropout and with fused
attention. The process itself (Python, PyTorch: some 300 MB) comes on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from loquela.checkpoint.skeleton import skeleton
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.experts import MixtureOfExperts
from loquela.models.base import Config, Network

__all__ = ["PARTS", "Size", "size"]

PARTS = ("embedding", "attention", "feed_forward", "recurrent", "norms", "head", "other")
TOKENS = 2048
TRAIN_ROWS = 8
LORA_RANK = 16
_FLOAT = 4
_TRAINED = 4 * _FLOAT
_EXPERTS = ("num_experts", "num_local_experts")


@dataclass(frozen=True)
class Size:
    """Parameters by part (`total` first), memory in bytes by use, and the tokens of one text that it is meant for."""

    parameters: dict[str, int]
    memory_bytes: dict[str, int]
    context_length: int
    tokens: int


def size(config: Config, *, tokens: int | None = None) -> Size:
    """Measure the network that `config` describes; works for any size, in a moment.

    `tokens` is the length of one text of tuning and training, by default the context window but at most 2,048.
    A tied tensor counts once, as embedding. Raises `ConfigError`.
    """
    key = next((key for key in _EXPERTS if hasattr(config, key)), None)
    chosen = getattr(config, "num_experts_per_tok", 1)
    if key is None or getattr(config, key) <= chosen + 2:
        return _measured(config, tokens)
    # The experts of a layer are alike, so every count grows by the same with each: two shapes with few of them tell
    # what tens of thousands would, which take seconds to lay out.
    few, more = (_measured(_with(config, key, count), tokens) for count in (chosen, chosen + 1))
    steps = getattr(config, key) - chosen

    def along(few: dict[str, int], more: dict[str, int]) -> dict[str, int]:
        return {name: count + (more[name] - count) * steps for name, count in few.items()}

    return dataclasses.replace(
        few,
        parameters=along(few.parameters, more.parameters),
        memory_bytes=along(few.memory_bytes, more.memory_bytes),
    )


def _measured(config: Config, tokens: int | None) -> Size:
    network = skeleton(config)
    parts = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        parts[_part(name)] += parameter.numel()
    total = sum(parts.values())
    # What reads a source and writes a target has both in memory, and often no window at all.
    window = min(network.context_length, TOKENS) if network.kind == "encoder-decoder" else network.context_length
    tokens = tokens or min(window, TOKENS)
    activations = _FLOAT * tokens * (kept_per_token(network) + network.vocab_size)
    lora = LORA_RANK * sum(linear.in_features + linear.out_features for linear in _block_linears(network))
    memory = {
        "run": _FLOAT * (total + window * _cached_per_token(network)),
        "tune_full": _TRAINED * total + activations,
        "tune_lora": _FLOAT * total + _TRAINED * lora + activations,
        "train": _TRAINED * total + TRAIN_ROWS * activations,
    }
    return Size({"total": total, **{part: count for part, count in parts.items() if count}}, memory, window, tokens)


def _with(config: Config, key: str, value: Any) -> Config:
    changes: dict[str, Any] = {key: value}
    return dataclasses.replace(config, **changes)


def _part(name: str) -> str:
    """Tell a parameter's part from the bricks that its name leads through."""
    bricks = name.split(".")[:-1]
    if any(brick.endswith("norm") for brick in bricks):
        return "norms"
    if any("embedding" in brick or brick == "positions" or brick.endswith("_bias") for brick in bricks):
        return "embedding"
    if "attention" in bricks or "cross" in bricks:
        return "attention"
    if "feedforward" in bricks:
        return "feed_forward"
    if "cells" in bricks:
        return "recurrent"
    return "head" if any("head" in brick for brick in bricks) else "other"


def _block_linears(network: Network) -> Iterator[nn.Linear]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and _part(f"{name}.weight") in ("attention", "feed_forward"):
            yield module


def kept_per_token(module: nn.Module) -> int:
    """Numbers that the backward pass needs of each token (A above, but for the logits)."""
    if isinstance(module, nn.Embedding):
        return 0
    shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
    kept = sum(sum(shape) for shape in shapes if len(shape) == 2)
    kept += sum(shape[0] for shape in shapes[:1] if len(shape) == 1)  # the weight of a norm, not its bias
    kept += sum(map(kept_per_token, module.children()))
    if isinstance(module, MixtureOfExperts):  # a token meets the chosen experts only
        kept -= kept_per_token(module.experts) * (len(module.experts) - module.chosen) // len(module.experts)
    return kept


def _cached_per_token(network: Network) -> int:
    """Numbers that the cache keeps of each token: a key and a value per layer of what writes from left to right."""
    if network.kind == "encoder":
        return 0
    layers = (
        m for n, m in network.named_modules() if isinstance(m, MultiHeadAttention) and "encoder" not in n.split(".")
    )
    return sum(2 * layer.kv_heads * layer.head_dim for layer in layers)
