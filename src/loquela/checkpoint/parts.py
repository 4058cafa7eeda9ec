"""The tensors of a directory: in one file, or in several with an index that says where each is.

`model.safetensors`, or `model-00001-of-0000N.safetensors` and `model.safetensors.index.json` with a `weight_map`: the
form of Hugging Face, for any stem. Several processes write their files at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from loquela.checkpoint.files import inside, read_json
from loquela.checkpoint.tensors import StoredTensor, read_tensors, shown, write_bytes, write_tensors
from loquela.errors import CheckpointError

__all__ = ["MAX_FILE", "stored_tensors", "write_parts"]

MAX_FILE = 5_000_000_000
"""Bytes of tensors in one file, roughly; more are spread over several."""


def write_parts(
    directory: Path,
    tensors: Mapping[str, Tensor],
    stem: str = "model",
    *,
    metadata: Mapping[str, str] | None = None,
    rank: int = 0,
    world: int = 1,
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write `tensors` as one file, or as several where they are large or several processes write.

    Every process calls this with the same names. `whole` is called on each tensor, in the same order everywhere, and
    returns all of it; the processes take turns in keeping and writing a file, so none ever holds more than its files.
    May raise `OSError`, on the process whose write failed, once all tensors were gathered.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    count = max(1, min(len(tensors), max(world, -(-sum(sizes.values()) // MAX_FILE))))
    if count == 1:
        gathered = {name: whole(tensor) for name, tensor in tensors.items()}
        if rank == 0:
            write_tensors(directory / f"{stem}.safetensors", gathered, metadata)
        return
    place = _places(sizes, count)
    failure: OSError | None = None
    for part in range(count):
        kept = {}
        for name in (name for name, where in place.items() if where == part):
            full = whole(tensors[name])
            if part % world == rank:
                kept[name] = full.detach().cpu()
        if part % world == rank and failure is None:
            try:
                write_tensors(directory / _file(stem, part, count), kept, metadata)
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure
    if rank == 0:
        weight_map = {name: _file(stem, part, count) for name, part in place.items()}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_bytes(directory / f"{stem}.safetensors.index.json", json.dumps(index, indent=2).encode() + b"\n")


def stored_tensors(directory: Path, stem: str = "model") -> dict[str, StoredTensor]:
    """Return the tensors of a directory by name, unread: from one file, or from the parts of an index.

    Raises `CheckpointError` when neither is there, or the index does not tell the truth about its files.
    """
    one, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if _has(directory, one):
        return read_tensors(inside(directory, one))
    if not _has(directory, index):
        raise CheckpointError(f"{directory} must have {one} or {index}, but has {_weights_found(directory)}")
    weight_map = read_json(directory, index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{directory / index} must have a weight_map from tensors to files, but has none")
    parts = {file: inside(directory, file) for file in sorted(set(weight_map.values()))}
    if absent := [shown(file) for file, path in parts.items() if not path.is_file()]:
        raise CheckpointError(f"{directory} lacks {len(absent)} of {len(parts)} shards: {', '.join(absent)}")
    held = {file: read_tensors(path) for file, path in parts.items()}
    wrong = [f"{shown(name)} is not in {file}" for name, file in weight_map.items() if name not in held[file]]
    wrong += [
        f"{shown(name)} is in {file} but not in the index"
        for file, tensors in held.items()
        for name in tensors
        if weight_map.get(name) != file
    ]
    if wrong:
        raise CheckpointError(f"{directory / index} does not tell the truth: {'; '.join(wrong)}")
    return {name: held[file][name] for name, file in weight_map.items()}


def _places(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Give each tensor, in order, one of `count` parts of about the same size, none of them empty."""
    places: dict[str, int] = {}
    total, begun, part = sum(sizes.values()), 0, 0
    for index, (name, size) in enumerate(sizes.items()):
        left = len(sizes) - index
        full = begun + size / 2 > total * (part + 1) / count
        if index and part + 1 < count and (full or left < count - part) and part in places.values():
            part += 1
        places[name] = part
        begun += size
    return places


def _file(stem: str, part: int, count: int) -> str:
    return f"{stem}-{part + 1:05}-of-{count:05}.safetensors"


def _has(directory: Path, name: str) -> bool:
    return inside(directory, name).is_file()


def _weights_found(directory: Path) -> str:
    """Say which files hold weights that are not opened, so that nobody looks for a mistake of their own."""
    other = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5"))
    return f"only {', '.join(other)} (pickled weights can run code and are never opened)" if other else "neither"
