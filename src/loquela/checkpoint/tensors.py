"""Tensors in a file: safetensors, and nothing but safetensors.

The file is eight bytes (the header's length, little-endian), a JSON header, and the tensors' bytes one after another
(https://github.com/huggingface/safetensors#format). The header is read here and not by the library, so that what was
checked is what is used: the library keeps the last of two equal names, and maps the file into memory, where a file
that shrinks later kills the process. What is written is byte for byte what the library would write.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint.files import shown, write_bytes
from loquela.errors import CheckpointError

__all__ = ["StoredTensor", "read_metadata", "read_tensors", "shown", "write_bytes", "write_tensors"]

MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 32
_MAX_NUMBER = 2**63 - 1

_DTYPES = {  # in the library's order of falling alignment, which is the order of the bytes in the file
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file: its shape and dtype are known, its values come with `read`."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int
    size: int
    """First byte in the file, and how many bytes."""

    def read(self) -> Tensor:
        """Return the values in memory of their own; raises `CheckpointError` when the file has changed since."""
        return self.read_into(torch.empty(self.shape, dtype=self.dtype))

    def read_rows(self, start: int, end: int) -> Tensor:
        """Return the rows from `start` to `end` of a matrix, as `read` does."""
        rows = torch.empty((end - start, *self.shape[1:]), dtype=self.dtype)
        return self.read_into(rows, self.size // max(1, self.shape[0]) * start)

    def read_into(self, place: Tensor, skipped: int = 0) -> Tensor:
        """Fill a contiguous tensor of this dtype with what stands `skipped` bytes behind the first; return it."""
        view: memoryview = memoryview(_bytes_of(place))
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + skipped)
                while view:
                    if not (count := file.readinto(view)):
                        raise CheckpointError(f"{self.path} ends early: it was shortened while it was read")
                    view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        return place


def read_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, unread.

    Raises `CheckpointError` unless the header tells the truth about the whole file: names once, known dtypes, shapes
    that fit their bytes, bytes that follow each other without overlap or hole up to the file's end.
    """
    return _read_header(Path(path))[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors file; raises `CheckpointError` as `read_tensors` does."""
    return _read_header(Path(path))[1]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` to a new safetensors file, without a copy of them all in memory. May raise `OSError`."""
    ordered = sorted(tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0]))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(path, len(text).to_bytes(8, "little") + text, *(_bytes_of(tensor) for _, tensor in ordered))


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if len(flat) else b""  # torch cannot see nothing as bytes


def _read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{path} must be a safetensors file, but is cut off within its header")
            if length > MAX_HEADER:
                raise CheckpointError(f"{path}: a header must be at most {MAX_HEADER:,} bytes, but is {length:,}")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header = _parse(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ must map strings to strings")
        tensors = dict(_entries(path, header, 8 + length, size))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} is not a valid safetensors file: {reason}") from error
    return tensors, metadata


def _parse(text: bytes) -> dict[str, Any]:
    """Read the header's JSON; raises `ValueError`, also for what JSON allows and a header does not."""
    if not text.startswith(b"{"):
        raise ValueError("the header must be a JSON object")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the name {shown(key)} is there twice")
            for text in (key, value):
                if isinstance(text, str):
                    text.encode()  # JSON can spell half a character, which is no text
            result[key] = value
        return result

    header: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    return header


def _entries(path: Path, header: dict[str, Any], data: int, size: int) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors in the order of their bytes, which begin at `data` and must fill the file of `size` bytes."""
    found = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{shown(name)} must have dtype, shape and data_offsets, and nothing else")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise ValueError(f"the dtype of {shown(name)} must be one of {', '.join(_DTYPES)}, but is {kind!r:.40}")
        if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS or math.prod(d or 1 for d in shape) > _MAX_NUMBER:
            raise ValueError(f"the shape of {shown(name)} is not one that a tensor can have")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise ValueError(f"the data_offsets of {shown(name)} must be two whole numbers")
        start, end = offsets
        expected = math.prod(shape) * _DTYPES[kind].itemsize
        if end - start != expected:
            raise ValueError(f"{shown(name)} must have {expected:,} bytes for its shape, but has {end - start:,}")
        found.append((start, end, name, StoredTensor(path, _DTYPES[kind], torch.Size(shape), data + start, expected)))
    position = 0
    for start, end, name, tensor in sorted(found, key=lambda item: item[:2]):
        if start != position:
            raise ValueError(f"{shown(name)} must begin at byte {position:,} of the data, but begins at {start:,}")
        position = end
        yield name, tensor
    if data + position != size:
        raise ValueError(f"its tensors end at byte {data + position:,}, but the file at {size:,}")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in value)
