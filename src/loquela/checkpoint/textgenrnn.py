"""Weights of textgenrnn: a Keras HDF5 file of LSTMs for cuDNN, and a vocabulary of characters beside it.

Keras keeps matrices as (in, out). Its LSTM for cuDNN keeps the gates (input, forget, cell, output) side by side, two
biases one after the other, and each gate's matrices as cuDNN lays them out in memory: as (out, in), though their shape
says (in, out) (keras/engine/saving.py, `preprocess_weights_for_loading`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, processors
from torch import Tensor

from loquela.checkpoint.files import read_json
from loquela.checkpoint.store import Loaded, from_tensors
from loquela.errors import CheckpointError, MissingExtraError, TokenizerError
from loquela.models.textgenrnn import TextGenRNNConfig
from loquela.text.tokenizer import Tokenizer

__all__ = ["read"]

_NOTHING, _EDGE = "<unk>", "<s>"
"""Id 0, which the vocabulary does not name; and what stands before and after every text."""


def read(path: str | Path) -> Loaded:
    """Read `NAME_weights.hdf5` and `NAME_vocab.json` beside it.

    Raises `CheckpointError` for a file of another layout, `TokenizerError` for the vocabulary, `MissingExtraError`
    without h5py.
    """
    path = Path(path)
    weights = _read_weights(path)
    try:
        vocab_size, embedding = weights["embedding/embedding/embeddings:0"].shape
        hidden = weights["rnn_1/rnn_1/recurrent_kernel:0"].shape[0]
        layers = sum(name.endswith("recurrent_kernel:0") for name in weights)
        config = TextGenRNNConfig(vocab_size, embedding, hidden, layers)
        tokenizer = _read_vocabulary(path, vocab_size)
        edge = tokenizer.bos_id
        config.extra |= {"bos_token_id": edge, "eos_token_id": edge, "pad_token_id": None}
        config.check()
        tensors = _tensors(weights, config)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{path} must be a textgenrnn model of LSTMs for cuDNN, but is not: {error}") from error
    network = from_tensors(config, tensors)
    return Loaded(network, tokenizer, {"bos_token_id": edge, "eos_token_id": edge}, path.parent)


def _tensors(weights: dict[str, Tensor], config: TextGenRNNConfig) -> dict[str, Tensor]:
    tensors = {
        "token_embedding.weight": weights["embedding/embedding/embeddings:0"],
        "attention.weight": weights["attention/attention/attention_W:0"].t(),
        "lm_head.weight": weights["output/output/kernel:0"].t(),
        "lm_head.bias": weights["output/output/bias:0"],
    }
    for index in range(config.num_hidden_layers):
        name = f"rnn_{index + 1}/rnn_{index + 1}"
        for kind, where in (("ih", "kernel"), ("hh", "recurrent_kernel")):
            gates = weights[f"{name}/{where}:0"].chunk(4, dim=1)  # each (in, out)
            tensors[f"layers.{index}.cells.weight_{kind}_l0"] = torch.cat(
                [gate.reshape(gate.shape[1], gate.shape[0]) for gate in gates]
            )
        biases = weights[f"{name}/bias:0"].chunk(2)
        tensors[f"layers.{index}.cells.bias_ih_l0"], tensors[f"layers.{index}.cells.bias_hh_l0"] = biases
    return tensors


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return all data sets of the file, each of which must lie in the file itself, uncompressed."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtraError('a Keras file needs h5py: pip install "loquela[keras]"') from error
    weights: dict[str, Tensor] = {}

    def take(group: Any, prefix: str) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{path}: {prefix + name} must lie in the file itself, but is a link")
            item = group[name]
            if isinstance(item, h5py.Group):
                take(item, f"{prefix}{name}/")
            elif item.external or item.is_virtual or item.chunks or item.dtype.kind != "f":
                raise CheckpointError(f"{path}: {prefix + name} must be plain numbers in the file itself, but is not")
            else:
                weights[prefix + name] = torch.from_numpy(item[()]).float()

    try:
        with h5py.File(path, "r") as file:
            take(file, "")
    except (OSError, RuntimeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as HDF5: {error}") from error
    return weights


def _read_vocabulary(path: Path, vocab_size: int) -> Tokenizer:
    file = path.name.replace("weights", "vocab").removesuffix(path.suffix) + ".json"
    if not (path.parent / file).is_file():
        raise TokenizerError(f"the vocabulary of {path.name} must lie beside it as {file}, but does not")
    vocabulary = read_json(path.parent, file)
    if sorted(map(str, vocabulary.values())) != sorted(map(str, range(1, vocab_size))) or _EDGE not in vocabulary:
        raise TokenizerError(f"{file} must number {_EDGE} and the characters from 1 to {vocab_size - 1}, but does not")
    backend = tokenizers.Tokenizer(models.BPE(vocab={_NOTHING: 0, **vocabulary}, merges=[], unk_token=_NOTHING))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_EDGE} $A", pair=f"{_EDGE} $A {_EDGE}:1 $B:1", special_tokens=[(_EDGE, vocabulary[_EDGE])]
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (_NOTHING, _EDGE)])
    return Tokenizer(backend, roles={"unk": _NOTHING, "bos": _EDGE, "eos": _EDGE})
