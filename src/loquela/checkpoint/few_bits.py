"""Model directories whose matrices are stored in 8 or 4 bits.

config.json says so: `"quantization_config": {"quant_method": "loquela", "bits": 8, "group_size": 32}`. Of a matrix
`X.weight` (rows, columns) the file holds its codes under that name and, as `X.weight_scale` (rows, ⌈columns / 32⌉;
bfloat16), a scale for every 32 columns: a weight is code times scale. At 8 bits codes are int8 (rows, columns),
from -127 to 127. At 4 bits, from -8 to 7, two are in a uint8 (rows, columns / 2), each plus 8, that of the even column
in the lower half. What is stored as floating point stays as it was. Opened, a matrix has the values that its codes and
scales stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loquela.checkpoint.files import read_json
from loquela.checkpoint.rules import disk_name, to_disk
from loquela.checkpoint.tensors import StoredTensor, shown
from loquela.errors import CheckpointError, ConfigError, UsageError
from loquela.layers.experts import MixtureOfExperts
from loquela.models.base import Network

__all__ = ["Rounded", "StoredCodes", "bits_of", "check", "described", "matrices", "to_disk_rounded", "unrounded"]

KEY, METHOD, GROUP = "quantization_config", "loquela", 32
_SCALE = "_scale"

Rounded = tuple[int, Tensor, Tensor]
"""Bits (8 or 4), codes (rows, columns; int8), scales (rows, ⌈columns / 32⌉; bfloat16)."""


@dataclass(frozen=True)
class StoredCodes(StoredTensor):
    """A matrix of few bits in its file, read as what it stands for: float32."""

    bits: int = field(default=8, kw_only=True)
    scales: StoredTensor = field(kw_only=True)

    def read(self) -> Tensor:  # noqa: D102
        return self.read_rows(0, self.shape[0])

    def read_rows(self, start: int, end: int) -> Tensor:  # noqa: D102
        held, scales = self.rows(start, end)
        return self.codes(held).float() * scales.float().repeat_interleave(GROUP, dim=1)[:, : self.shape[1]]

    def read_into(self, place: Tensor, skipped: int = 0) -> Tensor:  # noqa: D102
        rows = skipped // (4 * self.shape[1])
        return place.copy_(self.read_rows(rows, rows + len(place)))

    def rows(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return some rows as they are stored, and their scales."""
        shape = self.shape if self.bits == 8 else torch.Size((self.shape[0], self.shape[1] // 2))
        kind = torch.int8 if self.bits == 8 else torch.uint8
        stored = StoredTensor(self.path, kind, shape, self.start, self.size)
        return stored.read_rows(start, end), self.scales.read_rows(start, end)

    def codes(self, held: Tensor) -> Tensor:
        """Return the codes (rows, columns; int8) of rows as they are stored."""
        if self.bits == 8:
            return held
        return torch.stack((held & 15, held >> 4), dim=-1).flatten(1).to(torch.int8) - 8


def bits_of(directory: str | Path) -> int | None:
    """Return how many bits the matrices of a model directory have, by its config.json; None: floating point."""
    said = read_json(Path(directory), "config.json").get(KEY)
    return check(said) if isinstance(said, dict) and said.get("quant_method") == METHOD else None


def described(bits: int) -> dict[str, Any]:
    """Return the `quantization_config` of matrices of so many bits."""
    return {"quant_method": METHOD, "bits": bits, "group_size": GROUP}


def check(said: Mapping[str, Any]) -> int:
    """Return the bits of a `quantization_config` of ours; raises `ConfigError` for one that nobody wrote."""
    if (
        said.keys() != {"quant_method", "bits", "group_size"}
        or said["group_size"] != GROUP
        or said["bits"] not in (4, 8)
    ):
        raise ConfigError(
            f"quantization_config must have bits of 8 or 4 and a group_size of {GROUP}, but is {shown(said)}"
        )
    return int(said["bits"])


def unrounded(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of such a directory as if they were floating point; raises `CheckpointError`."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        scales = tensors.get(name + _SCALE)
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        if scales is None:
            found[name] = tensor
            continue
        bits = {torch.int8: 8, torch.uint8: 4}.get(tensor.dtype)
        columns = tensor.shape[-1] * (2 if bits == 4 else 1)
        wanted = torch.Size((tensor.shape[0], -(-columns // GROUP)))
        if bits is None or len(tensor.shape) != 2 or scales.dtype != torch.bfloat16 or scales.shape != wanted:
            raise CheckpointError(
                f"the codes of {shown(name)} must have one bfloat16 for every row and {GROUP} columns"
            )
        shape = torch.Size((tensor.shape[0], columns))
        found[name] = StoredCodes(
            tensor.path, torch.float32, shape, tensor.start, tensor.size, bits=bits, scales=scales
        )
    return found


def matrices(network: Network) -> dict[str, tuple[str, nn.Linear]]:
    """Return the matrices that are rounded, by name in code, with their names on disk; raises `UsageError`.

    Those that choose and weigh experts are not: they are small, and another choice is another function.
    """
    found = {}
    whole = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    mixtures = [m for m in network.modules() if isinstance(m, MixtureOfExperts)]
    whole |= {id(child.weight) for m in mixtures for child in m.children() if isinstance(child, nn.Linear)}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in whole:
            stored, transposed = disk_name(f"{name}.weight", network.renames)
            if transposed:
                raise UsageError(f"{network.config.model_type} stores its matrices transposed, which cannot be rounded")
            found[name] = (stored, module)
    return found


def to_disk_rounded(network: Network, rounded: Mapping[str, Rounded]) -> dict[str, Tensor]:
    """Return what the file holds: all tensors of `network`, those in `rounded` as codes and scales."""
    tensors = to_disk(network)
    for name, (bits, codes, scales) in rounded.items():
        if bits == 4:
            if codes.shape[1] % 2:
                raise UsageError(f"rows of 4 bits must have an even number of columns, but {name} has {codes.shape[1]}")
            halves = (codes + 8).to(torch.uint8)
            codes = halves[:, 0::2] | (halves[:, 1::2] << 4)
        tensors[name], tensors[name + _SCALE] = codes.contiguous(), scales
    return tensors
