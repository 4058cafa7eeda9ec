"""The processes that train together: who they are, and what they tell each other.

torchrun starts them and sets `RANK`, `WORLD_SIZE` and `LOCAL_RANK`; without those a process is alone, and everything
here is done at once and at no cost. Two ways to share the work:

- ddp: every process has the whole model. Each computes the gradient of its rows of the batch, the gradients are summed
  over all processes in a few large pieces, and every process makes the same update.
- fsdp: every process has a slice of each tensor, of its gradient and of its optimizer state (FSDP2; Zhao et al.,
  arXiv:2304.11277). A layer is gathered just before it computes, and dropped after.

All processes build the same global batch, a pure function of (seed, step), and take their rows of it. So what is
learnt does not depend on how many they are, but for the order of floating-point sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from loquela.errors import LoquelaError, StorageError, TrainingError
from loquela.models.base import Network
from loquela.training.layerwise import layers

__all__ = ["ALONE", "Ranks", "joined", "local", "rows_of", "take", "whole"]

_CPU = torch.device("cpu")
_PIECE = 1 << 24
"""Numbers of gradients that are summed over the processes in one go (64 MB)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `world`, and how they share the work; its methods are to be called on every rank."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    kind: Literal["ddp", "fsdp"] = "ddp"
    device: torch.device = _CPU

    @property
    def main(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank has a slice only."""
        return self.world > 1 and self.kind == "fsdp"

    def sum(self, *values: float) -> list[float]:
        """Add up numbers over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any rank."""
        return flag if self.world == 1 else self.sum(float(flag))[0] > 0

    def prepare(self, network: Network) -> None:
        """Give every rank the weights of rank 0 (ddp), or its slice of them (fsdp)."""
        if self.world == 1:
            return
        if self.kind == "ddp":
            for tensor in (*network.parameters(), *network.buffers()):
                distributed.broadcast(tensor.detach(), 0)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in layers(network):
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        for method in ("hidden", "head", "encode", "decode", "memory"):
            if hasattr(network, method):
                register_fsdp_forward_method(network, method)
        for module in network.modules():
            if hasattr(module, "set_gradient_divide_factor"):  # the loss is divided by the labels of all ranks already
                module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
                module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]

    def reshard(self, network: Network) -> None:
        """Drop gathered weights, so that the next to compute are gathered from slices that were changed meanwhile."""
        if self.sharded:
            for module in network.modules():
                if hasattr(module, "reshard"):
                    module.reshard()  # type: ignore[operator]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all ranks in place; fsdp has done so in its backward pass.

        A parameter that one rank's rows did not meet, an expert say, counts as zero there.
        """
        if self.world == 1 or self.sharded:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for piece in _pieces([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in piece])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in piece])
            for gradient, part in zip(piece, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm (a scalar) of all gradients together, the slices of other ranks included."""
        total = torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients])
        if self.sharded:
            total = total.double().square()
            distributed.all_reduce(total)
            total = total.sqrt().float()
        return total

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.world > 1:
            distributed.barrier()

    def main_first(self, do: Callable[[], T]) -> T:
        """Do something on rank 0, and then, where that went well, on the others; an error of rank 0 is everyone's."""
        made = None
        with self.together():
            if self.main:
                made = do()
        return made if self.main else do()  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block whose error on any rank is raised on all, once all have come to its end."""
        if self.world == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except (LoquelaError, OSError) as error:
            failure = error
        told: list[Any] = [None] * self.world
        distributed.all_gather_object(told, None if failure is None else _plain(failure))
        if failure is not None:
            raise failure
        if errors := [error for error in told if error is not None]:
            raise errors[0]

    def text(self, value: str) -> str:
        """Return the text of rank 0."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, 0)
        return held[0]


ALONE = Ranks()


@contextmanager
def joined(kind: Literal["ddp", "fsdp"], device: Callable[[int], torch.device]) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; raises `TrainingError` when they cannot be reached.

    Over NCCL where each has a GPU of its own, else over gloo.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=device(0))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    place = device(local_rank)
    began = not distributed.is_initialized()
    if began:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        try:
            store, _, _ = next(rendezvous("env://"))
            # A launcher that restarts its processes may keep the store, with the addresses of those that are gone.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = distributed.distributed_c10d.PrefixStore(f"attempt-{attempt}", store)
            backend = "nccl" if place.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"the {world} processes must reach each other, but cannot: {reason}") from error
    try:
        yield Ranks(rank, world, local_rank, kind, place)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
            raise
        raise TrainingError(
            f"all {world} processes must stay together, but another has ended: "
            f"{str(error).splitlines()[0]}; the same command goes on from the last checkpoint"
        ) from error
    finally:
        if began:
            distributed.destroy_process_group()


def rows_of(count: int, rank: int, world: int) -> slice:
    """Return which of `count` rows are a rank's: within one, as many for each."""
    return slice(count * rank // world, count * (rank + 1) // world)


# -- tensors that are whole on one rank and sliced by their first dimension on several


def local(tensor: Tensor) -> Tensor:
    """Return this rank's slice of a sharded tensor; shares its memory. Any other tensor is returned as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return all of a sharded tensor; to be called on every rank. Any other tensor is returned as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def alike(part: Tensor, like: Tensor) -> Tensor:
    """Return a tensor sharded as `like` whose slice on this rank is `part`; shares its memory."""
    if not hasattr(like, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def take(full: Tensor, like: Tensor) -> Tensor:
    """Return what of a whole tensor is this rank's slice, if `like` is sharded."""
    if not hasattr(like, "to_local"):
        return full
    dimension = like.placements[0].dim  # type: ignore[attr-defined]
    mesh = like.device_mesh  # type: ignore[attr-defined]
    chunks = torch.chunk(full, mesh.size(), dimension)
    rank = mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else full.narrow(dimension, 0, 0)


def first_row(parameter: Tensor) -> int:
    """Return which row of a matrix is the first of this rank's slice."""
    if not hasattr(parameter, "to_local"):
        return 0
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    rows = parameter.shape[0]
    first: int = min(rows, -(-rows // mesh.size()) * mesh.get_local_rank())
    return first


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    piece: list[Tensor] = []
    count = 0
    for tensor in tensors:
        if piece and (count + tensor.numel() > _PIECE or tensor.dtype != piece[0].dtype):
            yield piece
            piece, count = [], 0
        piece.append(tensor)
        count += tensor.numel()
    if piece:
        yield piece


def _plain(error: Exception) -> Exception:
    """Return an error that can be sent to another process: no cause, no traceback."""
    return type(error)(str(error)) if isinstance(error, LoquelaError) else StorageError(str(error))
