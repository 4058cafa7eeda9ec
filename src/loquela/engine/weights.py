"""The matrices of a program: as they are, in few bits, or those of another program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loquela.checkpoint.tables import in_16_bits
from loquela.checkpoint.tensors import StoredTensor
from loquela.engine.bricks import kind_of, unknown
from loquela.engine.memory import Arena, address
from loquela.engine.products import KINDS, few_bits
from loquela.engine.quantize import laid_out, read_back, together

__all__ = ["Weights"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Weights:
    """What a program multiplies by, and all else that it must hold.

    Matrices come from `stored` files where they are there. Those of a program `like` this one are taken from it, but
    for the tensors `replaced`, by name.
    """

    def __init__(
        self,
        quantize: str | None,
        stored: Mapping[str, StoredTensor],
        like: Weights | None = None,
        replaced: Collection[str] = (),
    ) -> None:
        self.quantize, self.bits = quantize, {None: 0, "int8": 8, "int4": 4}[quantize]
        self._in_files, self._work = stored, list[Callable[[], None]]()
        self._like, self._replaced, self.laid = like, replaced, dict[Any, Any]()
        self.kept: list[Any] = []
        self.weight_bytes = 0
        self._matrices = dict[str, Callable[[], Tensor]]()
        self._arena = Arena()

    def keep(self, thing: Any) -> Any:
        """Hold what an operation points to."""
        self.kept.append(thing)
        return thing

    def fill(self, threads: int) -> None:
        """Read and round the matrices of few bits: to be called once, before the first run."""
        together(self._work, threads)
        self._work.clear()

    def matrix(self, name: str) -> Tensor:
        """What is multiplied by, in float32 (outputs, inputs), by its layer's name; a rounded one is read back."""
        return self._matrices[name]()

    def table_of(self, name: str, weight: Tensor) -> tuple[Tensor, int]:
        """An embedding's table as it is kept, and the number of its type; in few bits' company it has 16 bits."""
        replaced = f"{name}.weight" in self._replaced
        if self._like is not None and not replaced:
            return self._like.laid[name]  # type: ignore[no-any-return]
        found = self.laid[name] = self._matrix(in_16_bits(weight) if self.bits and not replaced else weight)
        return found

    def stored(
        self, named: Mapping[str, nn.Linear], bits: int, bias_of_all: Tensor | None = None
    ) -> tuple[list[tuple[int, ...]], int]:
        """Matrices to be multiplied one after the other (kind, address, stride, columns, rows, first column of the
        output), and their bias. One that is replaced comes after those that it stands beside, and is not rounded."""
        layers = [*named.values()]
        for layer in layers:
            if kind_of(layer) is not nn.Linear:
                raise unknown(f"a matrix of kind {kind_of(layer).__name__}")
        rows, bias = [layer.out_features for layer in layers], 0
        starts = [int(start) for start in np.cumsum([0, *rows])]
        if bias_of_all is not None or any(layer.bias is not None for layer in layers):
            joined = torch.zeros(-(-sum(rows) // 16) * 16)
            if bias_of_all is not None:
                joined[: sum(rows)] = bias_of_all.detach()
            for start, layer in zip(starts, layers, strict=False):
                if layer.bias is not None:
                    joined[start : start + layer.out_features] += layer.bias.detach()
            bias = address(self.keep(joined))
        key = (*named, str(bits))
        others = [name for name in named if f"{name}.weight" in self._replaced]
        if self._like is not None and not others:
            return self._like.laid[key], bias
        if bits and self._like is not None:
            found = [] if len(named) == 1 else [*self._like.laid[key]]
            for (name, layer), start in zip(named.items(), starts, strict=False):
                found += self._whole(layer.weight, start) if name in others else []
            return found, bias
        found = self.laid[key] = self._read(named, bits, starts)
        return found, bias

    def _read(self, named: Mapping[str, nn.Linear], bits: int, starts: Sequence[int]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        if bits:
            parts = [self._in_files.get(f"{name}.weight", layer.weight) for name, layer in named.items()]
            array, tile, padded, work = laid_out(parts, bits, self._arena)
            self._work += work
            self.keep(array)
            self.weight_bytes += array.nbytes
            for (name, layer), start in zip(named.items(), starts, strict=False):
                own = slice(start, start + layer.out_features), layer.in_features
                self._matrices[name] = partial(read_back, array, bits, tile, padded, *own)
            return [(few_bits(bits), address(array), tile, padded, starts[-1], 0)]
        for (name, layer), start in zip(named.items(), starts, strict=False):
            there = self._in_files.get(f"{name}.weight") if self._like is None else None
            weight = layer.weight if there is None else there.read_rows(0, layer.out_features)
            self._matrices[name] = weight.detach().float
            found += self._whole(weight, start)
        return found

    def _whole(self, weight: Tensor, start: int) -> list[tuple[int, ...]]:
        weight, kind = self._matrix(weight)
        self.weight_bytes += weight.numel() * weight.element_size()
        return [(kind, address(weight), weight.stride(0) * weight.element_size(), weight.shape[1], len(weight), start)]

    def vector(self, values: Tensor | None) -> int:
        """Where values stand in float32; 0 for none."""
        return 0 if values is None else address(self.keep(values.detach().float().contiguous()))

    def _matrix(self, weight: Tensor) -> tuple[Tensor, int]:
        if weight.dtype not in _DTYPES or weight.device.type != "cpu":
            raise unknown(f"weights of {weight.dtype} on {weight.device}")
        return self.keep(weight.detach().contiguous()), KINDS[_DTYPES[weight.dtype]]
