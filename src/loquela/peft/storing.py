"""Adapter directories in PEFT's layout: what we save opens in `peft`, what it saves opens here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from loquela.checkpoint import house
from loquela.checkpoint.configs import NONSENSE
from loquela.checkpoint.files import (
    INCOMING,
    atomic_directory,
    finish_install,
    inside,
    read_json,
    reading_errors,
    verify,
)
from loquela.checkpoint.tensors import StoredTensor, read_tensors, shown, write_bytes, write_tensors
from loquela.errors import CheckpointError, ConfigError, MismatchError
from loquela.models.base import Network
from loquela.peft.attaching import adapter_of, new_adapter, put_on
from loquela.peft.base import Adapter, AdapterConfig, config_from_dict, draw_for
from loquela.peft.targets import disk_names

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "load_adapter", "read_adapter_config", "save_adapter"]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_BASE_COPY = ".base_layer.weight"
"""The end of keys under which PEFT writes an embedding of the base along."""


def save_adapter(network: Network, name: str, directory: str | Path, base: str | None = None) -> None:
    """Write an adapter as a directory, new or existing, whole or not at all: its config and exactly its tensors.

    `base` becomes `base_model_name_or_path`, unless it is None. Raises `StorageError`; what was there stays then.
    """
    directory, adapter = Path(directory), adapter_of(network, name)
    config = adapter.config.to_dict()
    if base is not None:
        config["base_model_name_or_path"] = str(base)
    tensors = {key: parameter.detach().contiguous() for key, parameter in adapter.tensors()}
    place = directory
    if directory.exists():
        finish_install(directory)
        place = directory / INCOMING
    with atomic_directory(place) as temporary:
        text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
        write_bytes(temporary / CONFIG_FILE, text.encode() + b"\n")
        write_tensors(temporary / WEIGHTS_FILE, tensors, {"format": "pt"})
    if place != directory:
        finish_install(directory)


def load_adapter(network: Network, directory: str | Path, name: str = "default") -> Adapter:
    """Open an adapter directory, ours or PEFT's, and put it on `network` under `name`; nothing wears it yet.

    Everything is checked before the network is touched. Raises `CheckpointError` for a directory that is missing,
    half-written or damaged, `ConfigError` for a config that cannot be honoured, `MismatchError` that lists every
    tensor which does not fit this base, `UsageError` for a name in use.
    """
    directory = house.adapter(directory)
    with reading_errors(directory):
        config = read_adapter_config(directory)
        weights = inside(directory, WEIGHTS_FILE)
        if not weights.is_file():
            pickled = (directory / "adapter_model.bin").exists()
            only = "only adapter_model.bin (pickled weights can run code and are never opened)" if pickled else "none"
            raise CheckpointError(f"{directory} must have {WEIGHTS_FILE}, but has {only}")
        stored = read_tensors(weights)
        try:
            adapter = new_adapter(network, config, name, draw_for(network, None))
        except NONSENSE as error:
            raise ConfigError(f"{directory / CONFIG_FILE} describes an adapter that cannot be: {error}") from error
        _fill(network, adapter, stored, directory)
    put_on(network, adapter)
    return adapter


def read_adapter_config(directory: str | Path) -> AdapterConfig:
    """Read and check the adapter_config.json of a directory, and its manifest if it has one."""
    directory = house.adapter(directory)
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist" + house.instead(house.adapter_names())
        raise CheckpointError(f"an adapter must be a directory with {CONFIG_FILE}, but {directory} {what}")
    finish_install(directory)
    if not inside(directory, CONFIG_FILE).is_file():
        raise CheckpointError(f"an adapter directory must have an {CONFIG_FILE}, but {directory} has none")
    verify(directory)
    try:
        return config_from_dict(read_json(directory, CONFIG_FILE))
    except NONSENSE as error:
        raise ConfigError(f"{directory / CONFIG_FILE} has values that contradict each other: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{directory / CONFIG_FILE}: {error}") from error


def _fill(network: Network, adapter: Adapter, stored: dict[str, StoredTensor], directory: Path) -> None:
    """Give the adapter's tensors the values of the file; they must be the same ones, of the same shapes."""
    wanted = dict(adapter.tensors())
    copies = {key for key in stored if key.endswith(_BASE_COPY) and key not in wanted}
    missing = [f"{key} {[*wanted[key].shape]}" for key in wanted if key not in stored]
    extra = [f"{shown(key)} {[*stored[key].shape]}" for key in stored if key not in wanted and key not in copies]
    wrong = [
        f"{key} must be {[*wanted[key].shape]} for this base but is {[*stored[key].shape]}"
        for key in wanted
        if key in stored and stored[key].shape != wanted[key].shape
    ]
    kinds = [shown(key) for key in wanted if key in stored and not stored[key].dtype.is_floating_point]
    problems = [("missing", missing), ("extra", extra), ("misshapen", wrong), ("not of floating-point numbers", kinds)]
    listed = [f"{len(items)} {what} ({_short(items)})" for what, items in problems if items]
    if listed:
        was = adapter.config.base_model_name_or_path
        origin = f" (it was made for {shown(was)})" if was else ""
        raise MismatchError(f"the adapter {directory} does not fit this base{origin}: {'; '.join(listed)}")
    _check_copies(network, copies, stored, directory)
    values: dict[int, nn.Parameter] = {}
    like = draw_for(network, torch.Generator())
    for key, parameter in wanted.items():
        values[id(parameter)] = nn.Parameter(stored[key].read().to(like.device, like.dtype), requires_grad=False)
    holders = [part.tensors for part in adapter.parts.values()]
    for holder in [*holders, *([adapter.virtual.tensors] if adapter.virtual is not None else [])]:
        for name, parameter in holder.items():
            holder[name] = values[id(parameter)]


def _check_copies(network: Network, keys: set[str], stored: dict[str, StoredTensor], directory: Path) -> None:
    """A tensor of the base that PEFT wrote along must be this base's."""
    layers = {f"base_model.model.{disk}{_BASE_COPY}": name for name, disk in disk_names(network).items()}
    for key in keys:
        own = network.get_submodule(layers[key]).weight if key in layers else None
        if not isinstance(own, Tensor) or not torch.equal(own.detach().float(), stored[key].read().float()):
            raise MismatchError(f"the adapter {directory} was made with another {shown(key)} than this base has")


def _short(items: list[str], most: int = 12) -> str:
    return ", ".join(items[:most]) + (f", and {len(items) - most} more" if len(items) > most else "")
