"""The head of a GGUF file: its metadata, and where its tensors are (https://github.com/ggml-org/ggml/docs/gguf.md).

The head is read here and not by the `gguf` package, whose reader takes seconds for a vocabulary and believes what a
file says of its lengths.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from loquela.errors import CheckpointError

__all__ = ["GGUFHead", "GGUFTensor", "read_head"]

MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in its file: shape, slowest dimension first; `kind` is GGML's number of its quantisation."""

    shape: tuple[int, ...]
    kind: int
    start: int
    """First byte in the file."""


@dataclass(frozen=True)
class GGUFHead:
    """Everything in a GGUF file but the values of its tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    size: int
    """Bytes of the whole file."""


def read_head(path: str | Path) -> GGUFHead:
    """Read the head of a GGUF file of version 2 or 3; raises `CheckpointError`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _head(path, _Source(file, size), size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is one
        raise CheckpointError(f"{path} must be a GGUF file, but is not: {error}") from error


def _head(path: Path, source: _Source, size: int) -> GGUFHead:
    if source.take(4) != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    version = source.number("<I")
    if version not in (2, 3):
        raise ValueError(f"its version must be 2 or 3 in little-endian order, but is {version}")
    tensor_count, value_count = source.number("<Q"), source.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = source.text()
        if key in metadata:
            raise ValueError(f"the key {key!r:.80} stands there twice")
        metadata[key] = source.value(source.number("<I"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError(f"general.alignment must be a small positive number, but is {alignment!r:.40}")
    found: dict[str, GGUFTensor] = {}
    for _ in range(tensor_count):
        name, dimensions = source.text(), source.number("<I")
        if name in found or dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r:.80} must be there once, with at most {_MAX_DIMENSIONS} dimensions")
        shape = tuple(source.number("<Q") for _ in range(dimensions))[::-1]
        found[name] = GGUFTensor(shape, source.number("<I"), source.number("<Q"))
    data = math.ceil(source.position / alignment) * alignment
    tensors = {name: GGUFTensor(t.shape, t.kind, data + t.start) for name, t in found.items()}
    return GGUFHead(path, metadata, tensors, size)


class _Source:
    """Reads values one after another, never past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.position = file, size, 0

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > self._size or len(data := self._file.read(count)) < count:
            raise ValueError("it ends early")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"{kind} is no kind of value")
        item, count = self.number("<I"), self.number("<Q")
        if item in _SCALARS:
            layout = _SCALARS[item]
            data = self.take(count * struct.calcsize(layout))
            return list(struct.unpack(f"<{count}{layout[1]}", data))
        return [self.value(item) for _ in range(count)]  # each takes bytes, so a false count ends with the file
