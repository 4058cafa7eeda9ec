"""How large a model is, and the memory to run, tune and train it: counted on its shape, without making it.

All in bytes of float32, which everything is computed in here unless said otherwise. With P parameters, T tokens in a
batch of training, and R parameters of LoRA of rank 16 on every linear layer of the blocks:

- run        4·P, and the keys and values of one text as long as the context window
- tune_full  16·P (weights, gradients, the two moments of AdamW), and 4·A·T of activations
- tune_lora  4·P + 16·R + 4·A·T
- train      as tune_full, for 8 texts at once

A, the numbers that each token leaves for the backward pass, is what goes in and out of every matrix, once through every
norm, and once more the logits: within a third of what PyTorch keeps without dropout and with fused attention. The
process itself (Python, PyTorch: some 300 MB) comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from loquela.checkpoint.skeleton import skeleton
from loquela.layers.attention import MultiHeadAttention
from loquela.models.base import Config, Network

__all__ = ["PARTS", "Size", "size"]

PARTS = ("embedding", "attention", "feed_forward", "recurrent", "norms", "head", "other")
_ALWAYS = ("embedding", "attention", "feed_forward", "norms")
TOKENS = 2048
TRAIN_ROWS = 8
LORA_RANK = 16
_FLOAT = 4
_TRAINED = 4 * _FLOAT


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
    network = skeleton(config)
    parts = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        parts[_part(name)] += parameter.numel()
    total = sum(parts.values())
    tokens = tokens or min(network.context_length, TOKENS)
    activations = _FLOAT * tokens * _kept_per_token(network)
    lora = LORA_RANK * sum(linear.in_features + linear.out_features for linear in _block_linears(network))
    memory = {
        "run": _FLOAT * (total + network.context_length * _cached_per_token(network)),
        "tune_full": _TRAINED * total + activations,
        "tune_lora": _FLOAT * total + _TRAINED * lora + activations,
        "train": _TRAINED * total + TRAIN_ROWS * activations,
    }
    counts = {part: count for part, count in parts.items() if count or part in _ALWAYS}
    return Size({"total": total, **counts}, memory, network.context_length, tokens)


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
    if "recurrent" in bricks:
        return "recurrent"
    return "head" if any("head" in brick for brick in bricks) else "other"


def _block_linears(network: Network) -> Iterator[nn.Linear]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and _part(f"{name}.weight") in ("attention", "feed_forward"):
            yield module


def _kept_per_token(network: Network) -> int:
    """Numbers that the backward pass needs of each token (A above)."""
    kept = network.vocab_size
    for module in network.modules():
        if not isinstance(module, nn.Embedding):
            shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
            kept += sum(sum(shape) for shape in shapes if len(shape) == 2)
            kept += sum(shape[0] for shape in shapes[:1] if len(shape) == 1)  # the weight of a norm, not its bias
    return kept


def _cached_per_token(network: Network) -> int:
    """Numbers that the cache keeps of each token: a key and a value per layer of what writes from left to right."""
    if network.kind == "encoder":
        return 0
    return sum(2 * m.kv_heads * m.head_dim for m in network.modules() if isinstance(m, MultiHeadAttention))
