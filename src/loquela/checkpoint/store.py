"""Model directories in Hugging Face's layout: what we save opens in transformers, what it saves opens here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint import few_bits, house
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
    verifying,
)
from loquela.checkpoint.hub import resolve
from loquela.checkpoint.parts import stored_tensors, write_parts
from loquela.checkpoint.rules import load_into, read_rest, to_disk
from loquela.checkpoint.skeleton import skeleton
from loquela.checkpoint.tensors import StoredTensor, read_tensors, write_bytes, write_tensors
from loquela.errors import CheckpointError, UsageError
from loquela.models.base import Config, Network
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Loaded",
    "atomic_directory",
    "end_ids",
    "from_tensors",
    "install_files",
    "load_model",
    "opened",
    "read_tensors",
    "save_model",
    "stored_tensors",
    "verify",
    "write_model",
    "write_tensors",
]

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
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
    unread: dict[str, StoredTensor] = field(default_factory=dict)
    """Matrices that were left in their file, by their names in code; in the network they are on the meta device."""
    dtype: torch.dtype | None = None
    """What the network computes in; None: as stored."""

    def read_rest(self) -> Network:
        """Have the network's matrices in memory after all; return it."""
        read_rest(self.network, self.unread, dtype=self.dtype)
        return self.network


def end_ids(network: Network, tokenizer: Tokenizer | None, generation_config: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end a text: those of the generation config, else of the config, else the tokenizer's EOS."""
    ends = generation_config.get("eos_token_id", network.config.extra.get("eos_token_id"))
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_id
    return frozenset([ends] if isinstance(ends, int) else ends or [])


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
    rank: int = 0,
    world: int = 1,
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    rounded: Mapping[str, few_bits.Rounded] | None = None,
) -> None:
    """Write the files of a model into an empty directory, such as `atomic_directory` yields. May raise `OSError`.

    Several processes may write together, each its share of the weights: see `write_parts`. Matrices in `rounded`, by
    their names on disk, are stored in few bits.
    """
    tensors = few_bits.to_disk_rounded(network, rounded) if rounded else to_disk(network)
    write_parts(directory, tensors, metadata={"format": "pt"}, rank=rank, world=world, whole=whole)
    if rank:
        return
    ends = {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
    config = ends | network.config.to_dict()  # what the config says itself wins
    config.pop("torch_dtype", None)  # the older name of dtype
    stored = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), next(iter(tensors.values())))
    config["dtype"] = str(stored.dtype).removeprefix("torch.")
    if rounded:
        config["quantization_config"] = few_bits.described(min(bits for bits, _, _ in rounded.values()))
    ends = {key: config[key] for key in ends if config[key] is not None}
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", ends if generation_config is None else generation_config)
    if tokenizer is not None:
        tokenizer.save(directory)


def load_model(
    directory: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Loaded:
    """Open a model directory, ours or of any library that writes Hugging Face's layout.

    `dtype` is what the model computes in, whatever the file holds ("auto": as stored). With `verify`, the files are
    held against the manifest, if there is one. `ORG/NAME` means a model of the Hub that was pulled, and `stories` or
    another name of `loquela.checkpoint.house` a model in the package. Raises `CheckpointError` or one of its kinds.
    """
    with opened(directory, dtype=dtype, device=device, verify=verify) as loaded:
        pass
    return loaded


@contextmanager
def opened(
    directory: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    verify: bool = True,
    unread: bool = False,
) -> Iterator[Loaded]:
    """Open a model directory as `load_model` does, and verify it while the `with` block goes on.

    With `unread`, matrices of linear layers stay in their file: see `Loaded.unread`. What is wrong with the files is
    raised at the end of the block, before anything that the block raises.
    """
    directory, dtype = resolve(directory), str(dtype).removeprefix("torch.")
    if dtype not in DTYPES and dtype != "auto":
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)} or auto, but is {dtype!r}")
    with reading_errors(directory):
        _findable(directory)
        with verifying(directory) if verify else nullcontext():
            later: dict[str, StoredTensor] | None = {} if unread and torch.device(device).type == "cpu" else None
            yield _load(directory, DTYPES.get(dtype), device, later)


def _findable(directory: Path) -> None:
    if not directory.is_dir():
        raise CheckpointError(f"a model must be a directory, but {directory} {_what_is(directory)}")
    finish_install(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"a model directory must have a config.json, but {directory} has none")


def _load(
    directory: Path, dtype: torch.dtype | None, device: str | torch.device, unread: dict[str, StoredTensor] | None
) -> Loaded:
    config = read_config(directory)
    tensors = stored_tensors(directory)
    if few_bits.bits_of(directory) is not None:
        tensors = few_bits.unrounded(tensors)
    try:
        network = from_tensors(config, tensors, dtype=dtype, device=device, unread=unread)
    except CheckpointError as error:
        raise type(error)(f"{directory}: {error}") from error
    generation = read_json(directory, "generation_config.json") if _has(directory, "generation_config.json") else {}
    there = [name for name in (*_VOCABULARIES, *_BESIDE) if _has(directory, name)]  # none may be a link to elsewhere
    tokenizer = Tokenizer.load(directory) if any(name in _VOCABULARIES for name in there) else None
    return Loaded(network, tokenizer, generation, directory, unread or {}, dtype)


def from_tensors(
    config: Config,
    tensors: Mapping[str, Tensor | StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    unread: dict[str, StoredTensor] | None = None,
) -> Network:
    """Build the network of `config` from `tensors` by their names on disk; see `load_into`."""
    limit = 1000 + 8 * len(tensors)  # fused or split, a tensor is never eight
    network = skeleton(config.as_stored(tensors.keys()), at_most=limit)
    load_into(network, tensors, dtype=dtype, device=device, unread=unread)
    return (network if unread else network.to(device)).eval()


def _has(directory: Path, name: str) -> bool:
    return inside(directory, name).is_file()


def _what_is(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist" + house.instead(house.model_names())


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    write_bytes(file, json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
