"""Model directories in Hugging Face's layout: what we save opens in transformers, what it saves opens here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint.configs import read_config
from loquela.checkpoint.files import (
    INCOMING,
    atomic_directory,
    finish_install,
    inside,
    install_files,
    read_json,
    reading_errors,
    verify,
)
from loquela.checkpoint.hub import resolve
from loquela.checkpoint.rules import load_into, to_disk
from loquela.checkpoint.skeleton import skeleton
from loquela.checkpoint.tensors import StoredTensor, read_tensors, shown, write_bytes, write_tensors
from loquela.errors import CheckpointError, UsageError
from loquela.models.base import Config, Network
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Loaded",
    "atomic_directory",
    "from_tensors",
    "install_files",
    "load_model",
    "read_tensors",
    "save_model",
    "stored_tensors",
    "verify",
    "write_model",
    "write_tensors",
]

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_VOCABULARIES = (
    "tokenizer.json tokenizer.json.gz tokenizer.model spiece.model vocab.json encoder.json vocab.txt".split()
)
_BESIDE = "merges.txt vocab.bpe tokenizer_config.json special_tokens_map.json chat_template.jinja".split()


@dataclass
class Loaded:
    """What a model directory holds."""

    network: Network
    tokenizer: Tokenizer | None
    generation_config: dict[str, Any]
    directory: Path


def save_model(
    network: Network,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    *,
    generation_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Save a model as a directory, new or existing: all of it or, after a `StorageError`, what was there before."""
    directory = Path(directory)
    place = directory
    if directory.exists():
        finish_install(directory)
        place = directory / INCOMING
    with atomic_directory(place) as temporary:
        write_model(network, tokenizer, temporary, generation_config=generation_config)
        for name, content in (extra_files or {}).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(temporary / name, content)
    if place != directory:
        finish_install(directory)


def write_model(
    network: Network,
    tokenizer: Tokenizer | None,
    directory: Path,
    *,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model into an empty directory, such as `atomic_directory` yields. May raise `OSError`."""
    tensors = to_disk(network)
    ends = {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
    config = ends | network.config.to_dict()  # what the config says itself wins
    config.pop("torch_dtype", None)  # the older name of dtype
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    ends = {key: config[key] for key in ends if config[key] is not None}
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", ends if generation_config is None else generation_config)
    if tokenizer is not None:
        tokenizer.save(directory)
    write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})


def load_model(
    directory: str | Path, *, dtype: str = "float32", device: str | torch.device = "cpu", verify: bool = True
) -> Loaded:
    """Open a model directory, ours or of any library that writes Hugging Face's layout.

    `dtype` is what the model computes in, whatever the file holds ("auto": as stored). With `verify`, the files are
    held against the manifest, if there is one. `ORG/NAME` means a model of the Hub that was pulled. Raises
    `CheckpointError` or one of its kinds.
    """
    directory = resolve(directory)
    if dtype not in DTYPES and dtype != "auto":
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)} or auto, but is {dtype!r}")
    with reading_errors(directory):
        return _load(directory, DTYPES.get(dtype), device, check=verify)


def _load(directory: Path, dtype: torch.dtype | None, device: str | torch.device, *, check: bool) -> Loaded:
    if not directory.is_dir():
        raise CheckpointError(f"a model must be a directory, but {directory} {_what_is(directory)}")
    finish_install(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"a model directory must have a config.json, but {directory} has none")
    if check:
        verify(directory)
    config = read_config(directory)
    tensors = stored_tensors(directory)
    try:
        network = from_tensors(config, tensors, dtype=dtype, device=device)
    except CheckpointError as error:
        raise type(error)(f"{directory}: {error}") from error
    generation = read_json(directory, "generation_config.json") if _has(directory, "generation_config.json") else {}
    there = [name for name in (*_VOCABULARIES, *_BESIDE) if _has(directory, name)]  # none may be a link to elsewhere
    tokenizer = Tokenizer.load(directory) if any(name in _VOCABULARIES for name in there) else None
    return Loaded(network, tokenizer, generation, directory)


def from_tensors(
    config: Config,
    tensors: Mapping[str, Tensor | StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """Build the network of `config` from `tensors` by their names on disk; see `load_into`."""
    limit = 1000 + 8 * len(tensors)  # fused or split, a tensor is never eight
    network = skeleton(config.as_stored(tensors.keys()), at_most=limit)
    load_into(network, tensors, dtype=dtype, device=device)
    return network.to(device).eval()


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model directory by name, unread: from one file, or from the shards of an index."""
    if _has(directory, WEIGHTS):
        return read_tensors(inside(directory, WEIGHTS))
    if not _has(directory, INDEX):
        raise CheckpointError(f"{directory} must have {WEIGHTS} or {INDEX}, but has {_weights_found(directory)}")
    weight_map = read_json(directory, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{directory / INDEX} must have a weight_map from tensors to files, but has none")
    shards = {file: inside(directory, file) for file in sorted(set(weight_map.values()))}
    if absent := [shown(file) for file, path in shards.items() if not path.is_file()]:
        raise CheckpointError(f"{directory} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent)}")
    held = {file: read_tensors(path) for file, path in shards.items()}
    wrong = [f"{shown(name)} is not in {file}" for name, file in weight_map.items() if name not in held[file]]
    wrong += [
        f"{shown(name)} is in {file} but not in the index"
        for file, tensors in held.items()
        for name in tensors
        if weight_map.get(name) != file
    ]
    if wrong:
        raise CheckpointError(f"{directory / INDEX} does not tell the truth: {'; '.join(wrong)}")
    return {name: held[file][name] for name, file in weight_map.items()}


def _has(directory: Path, name: str) -> bool:
    return inside(directory, name).is_file()


def _what_is(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"


def _weights_found(directory: Path) -> str:
    """Say which files hold weights that are not opened, so that nobody looks for a mistake of their own."""
    other = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5"))
    return f"only {', '.join(other)} (pickled weights can run code and are never opened)" if other else "neither"


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    write_bytes(file, json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
