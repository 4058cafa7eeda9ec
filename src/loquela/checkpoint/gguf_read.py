"""A GGUF file as a model of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from loquela.checkpoint.gguf import ARCHITECTURES, EOT, GGUFArchitecture, package, pairs_to_halves
from loquela.checkpoint.store import Loaded, from_tensors
from loquela.checkpoint.tensors import shown
from loquela.errors import CheckpointError
from loquela.layers.positions import rotary_frequencies
from loquela.layers.rotary_scaling import stretch_long_waves
from loquela.models.base import config_from_dict
from loquela.text import gguf_vocab
from loquela.text.gguf_file import GGUFHead, GGUFTensor, read_head
from loquela.text.library import library_errors
from loquela.text.tokenizer import Tokenizer

__all__ = ["read"]

_PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(path: str | Path) -> Loaded:
    """Read the model and the tokenizer of a GGUF file; quantised weights become float32, others stay as they are.

    Raises `CheckpointError` or one of its kinds, and `TokenizerError` for a tokenizer that cannot be rebuilt.
    """
    head = read_head(path)
    name = head.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{head.path} must be of {', '.join(ARCHITECTURES)}, but is of {name!r:.40}")
    layout = ARCHITECTURES[name]
    config = config_from_dict(_config(head, name))
    tensors = _tensors(head, layout, getattr(config, "head_dim", 0))
    network = from_tensors(config, tensors)
    return Loaded(network, _tokenizer(head, network.context_length), _ends(head), head.path.parent)


def _config(head: GGUFHead, name: str) -> dict[str, Any]:
    layout = ARCHITECTURES[name]
    metadata = {k.removeprefix(f"{name}."): v for k, v in head.metadata.items() if k.startswith(f"{name}.")}
    raw = {ours: _short(metadata[theirs]) for ours, theirs in layout.keys.items() if theirs in metadata}
    embedding = head.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{head.path} must have the matrix token_embd.weight, but has not")
    raw |= {
        "model_type": name,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in head.tensors,
    }
    raw |= _ends(head)
    if name == "gpt2":
        return raw
    if metadata.get("expert_count"):
        raise CheckpointError(f"{head.path} must have one feed-forward in each block, but has experts")
    if name == "llama":
        raw["attention_bias"] = "blk.0.attn_q.bias" in head.tensors
        raw["mlp_bias"] = "blk.0.ffn_up.bias" in head.tensors
    return raw | {"rope_parameters": _rope(head, metadata, raw)}


def _rope(head: GGUFHead, metadata: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    theta = _short(metadata.get("rope.freq_base", 10_000.0))
    width = raw.get("head_dim") or raw.get("hidden_size", 0) // raw.get("num_attention_heads", 1)
    if metadata.get("rope.dimension_count", width) != width:
        raise CheckpointError(f"{head.path} must rotate whole heads, but rotates only a part of each")
    kind = metadata.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _short(metadata.get("rope.scaling.factor", 1.0))}
    if kind != "none":
        raise CheckpointError(f"rope.scaling.type must be none or linear, but is {kind!r:.40}")
    if _ROPE_FACTORS not in head.tensors:
        return {"rope_type": "default", "rope_theta": theta}
    # The file has what LLaMA 3's rule gives and not its settings: those in use are tried.
    factors = _read(head, _ROPE_FACTORS, head.tensors[_ROPE_FACTORS])
    settings = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **_LLAMA3}
    plain = rotary_frequencies(width, theta)
    low, high, original = _LLAMA3.values()
    ours = plain / stretch_long_waves(plain, settings["factor"], low=low, high=high, original=int(original))
    if ours.shape != factors.shape or not torch.allclose(ours, factors, rtol=1e-4):
        raise CheckpointError(f"{_ROPE_FACTORS} must be what LLaMA 3's rule with {_LLAMA3} gives, but is not")
    return settings


def _ends(head: GGUFHead) -> dict[str, Any]:
    """The tokens that begin and end a text, as generation_config.json names them."""
    ids = {role: head.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    found: dict[str, Any] = {f"{role}_token_id": index for role, index in ids.items() if type(index) is int}
    turn = head.metadata.get(EOT)
    if type(turn) is int and turn != ids["eos"]:
        found["eos_token_id"] = [i for i in (ids["eos"], turn) if type(i) is int]
    return found


def _tokenizer(head: GGUFHead, context_length: int) -> Tokenizer | None:
    with library_errors(f"the tokenizer of {head.path} cannot be rebuilt"):
        files = gguf_vocab.read(head.metadata)
        if files is None:
            return None
        backend = tokenizers.Tokenizer.from_str(files.json)
    config = {"model_max_length": context_length}
    return Tokenizer(backend, roles=files.roles, config=config, chat_template=files.chat_template, source=files.json)


def _tensors(head: GGUFHead, layout: GGUFArchitecture, head_dim: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, stored in head.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        tensor = _read(head, name, stored)
        if layout.is_transposed(name):
            tensor = tensor.t()
        if layout.is_paired(name):
            if len(tensor) % head_dim:
                raise CheckpointError(
                    f"{shown(name)} must have rows for whole heads of {head_dim}, but has {len(tensor)}"
                )
            tensor = pairs_to_halves(tensor, head_dim)
        tensors[layout.name_on_disk(name) or name] = tensor  # a name that we do not know is told of as extra
    return tensors


def _read(head: GGUFHead, name: str, stored: GGUFTensor) -> Tensor:
    count = math.prod(stored.shape)
    if stored.kind in _PLAIN:
        block, size = 1, _PLAIN[stored.kind].itemsize
    else:
        gguf = package()
        try:
            kind = gguf.GGMLQuantizationType(stored.kind)
        except ValueError as error:
            raise CheckpointError(f"{shown(name)} must be of a known quantisation, but is of {stored.kind}") from error
        block, size = gguf.GGML_QUANT_SIZES[kind]
    length = count // block * size
    if not stored.shape or stored.shape[-1] % block or not 0 < length <= head.size - stored.start:
        raise CheckpointError(
            f"{shown(name)} must lie within {head.path}, but does not: the file is cut off or damaged"
        )
    try:
        data = np.fromfile(head.path, np.uint8, length, offset=stored.start)
    except OSError as error:
        raise CheckpointError(f"{head.path} cannot be read: {error.strerror}") from error
    if len(data) < length:
        raise CheckpointError(f"{head.path} ends early: it was shortened while it was read")
    if stored.kind in _PLAIN:
        return torch.from_numpy(data).view(_PLAIN[stored.kind]).view(stored.shape)
    rows = data.reshape(*stored.shape[:-1], stored.shape[-1] // block * size)
    try:
        return torch.from_numpy(gguf.quants.dequantize(rows, kind))
    except NotImplementedError as error:
        raise CheckpointError(f"{shown(name)} is of {kind.name}, which the gguf package cannot read") from error


def _short(value: Any) -> Any:
    """A float32 as the shortest number that it stands for: 1e-05, not 9.99999974737875e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
