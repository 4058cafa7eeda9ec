"""GGUF, the files of llama.cpp: what both directions share, the names of keys and tensors for each architecture.

The tables are those of the `gguf` package and of llama.cpp's own converter; see `gguf_read` and `gguf_write`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from loquela.errors import MissingExtraError

__all__ = ["ARCHITECTURES", "DTYPES", "EOT", "GGUFArchitecture", "package", "pairs_to_halves"]

DTYPES = {"f32": 1e-5, "f16": 5e-3, "bf16": 4e-2, "q8_0": 1e-1}
"""How weights can be stored → the largest difference of logits that it may cause, as a share of the largest logit."""
EOT = "tokenizer.ggml.eot_token_id"
"""A second token that ends a completion."""

_ROTARY = {
    "model.embed_tokens": "token_embd",
    "model.layers.*.input_layernorm": "blk.*.attn_norm",
    "model.layers.*.self_attn.q_proj": "blk.*.attn_q",
    "model.layers.*.self_attn.k_proj": "blk.*.attn_k",
    "model.layers.*.self_attn.v_proj": "blk.*.attn_v",
    "model.layers.*.self_attn.o_proj": "blk.*.attn_output",
    "model.layers.*.self_attn.q_norm": "blk.*.attn_q_norm",
    "model.layers.*.self_attn.k_norm": "blk.*.attn_k_norm",
    "model.layers.*.post_attention_layernorm": "blk.*.ffn_norm",
    "model.layers.*.mlp.gate_proj": "blk.*.ffn_gate",
    "model.layers.*.mlp.up_proj": "blk.*.ffn_up",
    "model.layers.*.mlp.down_proj": "blk.*.ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.h.*.ln_1": "blk.*.attn_norm",
    "transformer.h.*.attn.c_attn": "blk.*.attn_qkv",
    "transformer.h.*.attn.c_proj": "blk.*.attn_output",
    "transformer.h.*.ln_2": "blk.*.ffn_norm",
    "transformer.h.*.mlp.c_fc": "blk.*.ffn_up",
    "transformer.h.*.mlp.c_proj": "blk.*.ffn_down",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
_ROTARY_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_GPT2_KEYS = {
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


@dataclass(frozen=True)
class GGUFArchitecture:
    """An architecture of llama.cpp and how ours is written as it."""

    keys: Mapping[str, str]
    """Key of config.json → key of the metadata, without the architecture's name."""
    modules: Mapping[str, str]
    """Module on disk → tensor in the file; `*` is a layer's number."""
    transposed: frozenset[str] = frozenset()
    """Tensors of the file whose matrix is the other way round."""
    paired: bool = False
    """Whether neighbours are rotated together, where ours rotates halves."""

    def name(self, name: str) -> str | None:
        """Return the name in the file of a tensor's `name` on disk, or None for one that it does not have."""
        return _renamed(name, self.modules)

    def name_on_disk(self, name: str) -> str | None:
        """Return the name on disk of a tensor's `name` in the file, or None."""
        return _renamed(name, {there: here for here, there in self.modules.items()})

    def is_transposed(self, name: str) -> bool:
        """Tell whether the tensor `name` of the file is the transpose of ours."""
        return name.endswith(".weight") and _parts(name)[0] in self.transposed

    def is_paired(self, name: str) -> bool:
        """Tell whether the rows of the tensor `name` of the file are in another order than ours."""
        return self.paired and _parts(name)[0] in ("blk.*.attn_q", "blk.*.attn_k")


ARCHITECTURES = {
    "llama": GGUFArchitecture(_ROTARY_KEYS, _ROTARY, paired=True),
    "qwen2": GGUFArchitecture(_ROTARY_KEYS, _ROTARY),
    "qwen3": GGUFArchitecture(_ROTARY_KEYS, _ROTARY),
    "gpt2": GGUFArchitecture(
        _GPT2_KEYS,
        _GPT2,
        transposed=frozenset({"blk.*.attn_qkv", "blk.*.attn_output", "blk.*.ffn_up", "blk.*.ffn_down"}),
    ),
}
"""By `general.architecture`."""


def package() -> ModuleType:
    """Return the `gguf` package; raises `MissingExtraError`."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise MissingExtraError("GGUF files need the gguf package: pip install 'loquela[gguf]'") from error


def pairs_to_halves(tensor: Tensor, head_dim: int, *, back: bool = False) -> Tensor:
    """Reorder rows from pairs of neighbours (0,1)(2,3)…, as llama.cpp rotates them, to halves (0, head_dim/2)…"""
    rows, *rest = tensor.shape
    order = (2, head_dim // 2) if back else (head_dim // 2, 2)
    return tensor.view(-1, *order, *rest).transpose(1, 2).reshape(rows, *rest)


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    module, layer, leaf = _parts(name)
    return f"{table[module].replace('*', layer)}.{leaf}" if module in table else None


def _parts(name: str) -> tuple[str, str, str]:
    """The module of a tensor with `*` for its layer, the layer, and the last part of its name."""
    module, _, leaf = name.rpartition(".")
    found = re.search(r"\.(0|[1-9]\d*)(?=\.|$)", module, re.ASCII)
    if found is None:
        return module, "", leaf
    return f"{module[: found.start()]}.*{module[found.end() :]}", found[1], leaf
