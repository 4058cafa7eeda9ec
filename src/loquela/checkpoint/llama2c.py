"""Checkpoints of llama2.c: a LLaMA model in one .bin file, its tokenizer in another.

The model file (https://github.com/karpathy/llama2.c, the layout that `run.c` reads) is seven little-endian int32 (dim,
hidden, layers, heads, key-value heads, vocabulary, context; a negative vocabulary means an output layer of its own) and
float32 matrices (out, in), each kind for all layers in turn. The tokenizer file is an int32 and, for each token, a
float32 score, an int32 length and that many bytes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, processors
from torch import Tensor

from loquela.checkpoint.store import Loaded, from_tensors
from loquela.errors import CheckpointError, TokenizerError
from loquela.models.llama import LlamaConfig
from loquela.text.tokenizer import Tokenizer

__all__ = ["read", "read_tokenizer"]

_HEADER = struct.Struct("<7i")
_SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>"}
_BYTES = range(3, 259)
_BLANK = "\u2581"  # how SentencePiece writes a blank inside a piece
_MAX_PIECE = 1 << 16


def read(path: str | Path, tokenizer: str | Path | None = None) -> Loaded:
    """Read a model and its tokenizer, by default `tok<vocabulary>.bin` or `tokenizer.bin` beside the model.

    Raises `CheckpointError` unless the file is exactly as long as its header says, `TokenizerError` for the tokenizer.
    """
    path = Path(path)
    config, values = _read_model(path)
    if tokenizer is None:
        beside = [path.with_name(name) for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin")]
        tokenizer = next((file for file in beside if file.is_file()), None)
        if tokenizer is None:
            raise TokenizerError(
                f"the tokenizer of {path.name} must lie beside it as {beside[0].name} or {beside[1].name}, "
                f"but {path.parent} has neither"
            )
    network = from_tensors(config, _tensors(config, values))
    generation = {"bos_token_id": 1, "eos_token_id": [1, 2]}  # a text ends where the next would begin, as in run.c
    return Loaded(network, read_tokenizer(tokenizer, config), generation, path.parent)


def read_tokenizer(path: str | Path, config: LlamaConfig) -> Tokenizer:
    """Read a tokenizer file as BPE with byte fallback, <s> before every text; raises `TokenizerError`."""
    path = Path(path)
    pieces = _read_pieces(path, config.vocab_size)
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        raise TokenizerError(f"the pieces of {path} must differ from each other, but do not")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(pieces, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL.values()])
    return Tokenizer(
        backend,
        roles={"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
        config={"model_max_length": config.max_position_embeddings},
    )


def _read_model(path: Path) -> tuple[LlamaConfig, Tensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise CheckpointError(f"{path} must be a llama2.c checkpoint, but has only {len(header)} bytes")
            if header.startswith((b"PK", b"\x80")):
                raise CheckpointError(f"{path} holds pickled weights, which can run code and are never opened")
            if header[:4] == b"24ka":  # 0x616b3432, little-endian
                raise CheckpointError(
                    f"{path} is of a newer llama2.c layout: export it with `--version 0`, which run.c reads"
                )
            numbers = _HEADER.unpack(header)
            if max(map(abs, numbers)) * 4 > size:  # each counts at least so many floats of the file
                raise CheckpointError(f"{path} must be a llama2.c checkpoint, but is shorter than its header says")
            dim, hidden, layers, heads, kv_heads, vocabulary, context = numbers
            config = LlamaConfig(
                vocab_size=abs(vocabulary),
                hidden_size=dim,
                intermediate_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                max_position_embeddings=context,
                rms_norm_eps=1e-5,
                tie_word_embeddings=vocabulary > 0,
                extra={"bos_token_id": 1, "eos_token_id": 2},
            )
            config.check()
            count = sum(math.prod(shape) for shape in _shapes(config).values())
            if size != (expected := _HEADER.size + 4 * count):
                raise CheckpointError(f"{path} must have {expected:,} bytes by its header, but has {size:,}")
            values = np.fromfile(file, dtype="<f4")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return config, torch.from_numpy(values)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the parts of the file in order; `*` in a name stands for the layer, the first dimension of its shape."""
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv_dim = config.num_key_value_heads * config.head_dim
    rotary = (config.max_position_embeddings, config.head_dim // 2)
    head = {} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, dim)}
    return {
        "model.embed_tokens.weight": (config.vocab_size, dim),
        "model.layers.*.input_layernorm.weight": (layers, dim),
        "model.layers.*.self_attn.q_proj.weight": (layers, dim, dim),
        "model.layers.*.self_attn.k_proj.weight": (layers, kv_dim, dim),
        "model.layers.*.self_attn.v_proj.weight": (layers, kv_dim, dim),
        "model.layers.*.self_attn.o_proj.weight": (layers, dim, dim),
        "model.layers.*.post_attention_layernorm.weight": (layers, dim),
        "model.layers.*.mlp.gate_proj.weight": (layers, hidden, dim),
        "model.layers.*.mlp.down_proj.weight": (layers, dim, hidden),
        "model.layers.*.mlp.up_proj.weight": (layers, hidden, dim),
        "model.norm.weight": (dim,),
        "unused cosines": rotary,
        "unused sines": rotary,
        **head,
    }


def _tensors(config: LlamaConfig, values: Tensor) -> dict[str, Tensor]:
    """Cut the values of the file into tensors by their names on disk."""
    assert config.head_dim is not None
    tensors = {}
    for name, shape in _shapes(config).items():
        part, values = values[: math.prod(shape)].view(shape), values[math.prod(shape) :]
        if name.startswith("unused"):
            continue
        for layer, tensor in enumerate(part) if "*" in name else [(0, part)]:
            halves = _halves(tensor, config.head_dim) if name.endswith(("q_proj.weight", "k_proj.weight")) else tensor
            tensors[name.replace("*", str(layer))] = halves
    return tensors


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows from pairs of neighbours (0,1)(2,3)…, which llama2.c rotates, to halves (0, head_dim/2)…"""
    rows, dim = weight.shape
    return weight.view(-1, head_dim // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def _read_pieces(path: Path, vocab_size: int) -> list[tuple[str, float]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    pieces: list[tuple[str, float]] = []
    position = 4
    try:
        while position < len(data):
            score, length = struct.unpack_from("<fi", data, position)
            position += 8 + length
            if not 0 <= length <= _MAX_PIECE or position > len(data) or not math.isfinite(score):
                raise ValueError(f"token {len(pieces)} cannot be read")
            text = data[position - length : position].decode("utf-8")
            pieces.append((_SPECIAL.get(len(pieces)) or text.replace(" ", _BLANK), score))
        if len(pieces) != vocab_size:
            raise ValueError(f"it must have {vocab_size} tokens, as the model has, but has {len(pieces)}")
        if [piece for piece, _ in pieces[_BYTES.start : _BYTES.stop]] != [f"<0x{b:02X}>" for b in range(256)]:
            raise ValueError("tokens 3 to 258 must be the bytes <0x00> to <0xFF>")
    except (ValueError, struct.error) as error:
        raise TokenizerError(f"{path} must be a tokenizer of llama2.c, but is not: {error}") from error
    return pieces


def _merges(pieces: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that join to a piece, best score first: `run.c` always joins the pair of the best piece."""
    by_score = sorted(range(_BYTES.stop, len(pieces)), key=lambda index: -pieces[index][1])  # stable: lowest id first
    return [
        (piece[:cut], piece[cut:])
        for piece in (pieces[index][0] for index in by_score)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
