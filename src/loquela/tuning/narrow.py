"""A frozen base held in the type that updates are computed in: half the memory, and no casting in every product.

Whatever is scored (held-out rows, probes, before, during and after) is computed in float32 with the weights as they
are on the disk, so that all scores compare, and are those that anyone else gets with the saved result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loquela.checkpoint.store import load_model
from loquela.errors import CheckpointError
from loquela.models.base import Network
from loquela.training.memory import give_freed_memory_back
from loquela.training.precision import dtype_of
from loquela.tuning.subject import Subject

__all__ = ["WIDE", "Narrow", "products"]

WIDE = 512
"""The width from which `dtype: auto` looks for bfloat16. Below, its casts cost more than its products save.

Measured, whole updates in float32's time: on a CPU with AVX512_BF16 LoRA on a width of 192 took 1.0 to 1.3, on 384
0.8, on 768 0.55. With AMX, one thread of a busy machine, updates of one shape gain from 384 (256 tokens: 0.7), but rows
of many lengths have a kernel made for each shape, kept in memory: 30 to 60 updates of LoRA on 192 took 1.35 to 1.8 and
three times the memory, on 384 1.1 to 1.15 and 2.3 times.
"""


def products(wanted: str, network: Network, *, tokens: int, began: str | None = None) -> tuple[torch.dtype, list[str]]:
    """Return what updates of so many `tokens` at once are computed in, by a recipe's `dtype`, and what is to be said.

    A run that goes on keeps what it `began` in.
    """
    if wanted == "auto" and began is None and network.dim < WIDE:
        return torch.float32, [
            f"products are computed in float32: tuning a width of {network.dim} gains nothing from less"
        ]
    device = next(network.parameters()).device
    dtype, said = dtype_of(wanted, device, tokens=tokens, dim=network.dim, began=began)
    notes = [] if said is None else [said]
    if dtype != torch.float32:
        notes.append("scores are computed in float32, with the base as it is stored")
    return dtype, notes


class Narrow:
    """The matrices of linear layers that are frozen and stand in one place: what only products ever read.

    A matrix that is an embedding too stays as it is, for it gives what layers add to. With float32 nothing is narrow.
    """

    def __init__(self, subject: Subject, dtype: torch.dtype) -> None:
        self.subject, self.dtype = subject, dtype
        network = subject.network
        counts = Counter(id(p) for module in network.modules() for p in module._parameters.values() if p is not None)
        self.matrices: dict[str, nn.Parameter] = {}
        for name, layer in network.named_modules():
            weight = layer._parameters.get("weight")
            if (
                dtype.itemsize < 4
                and getattr(type(layer), "undressed", type(layer)) is nn.Linear
                and weight is not None
                and weight.dtype == torch.float32
                and not weight.requires_grad
                and counts[id(weight)] == 1
                and f"{name}.weight" in subject.stored
            ):
                self.matrices[f"{name}.weight"] = weight

    @contextmanager
    def held(self) -> Iterator[None]:
        """The base as updates compute with it; afterwards, unless something was raised, as it is on the disk."""
        self._narrow()
        yield
        self._widen()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """The base as it is on the disk, inside of `held`.

        Raises `CheckpointError` when what is there is not what was there.
        """
        self._widen()
        yield
        self._narrow()

    def _narrow(self) -> None:
        for weight in self.matrices.values():
            weight.data = weight.data.to(self.dtype)
        if self.matrices:
            give_freed_memory_back()

    def _widen(self) -> None:
        if not self.matrices:
            return
        give_freed_memory_back()
        stored: dict[str, Tensor] = dict(load_model(self.subject.base, verify=False).network.named_parameters())
        for name, weight in self.matrices.items():
            found = stored.get(name)
            if found is None or not torch.equal(found.to(self.dtype), weight.data):
                raise CheckpointError(
                    f"the model {self.subject.base} must stay as it is while it is tuned, but {name} in it has "
                    "changed; put it back, and give the same command again"
                )
            weight.data = found.data
