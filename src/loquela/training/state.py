"""Checkpoints of a run: all that the next update depends on, in one directory that is complete or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from loquela.checkpoint.files import MANIFEST, read_json
from loquela.checkpoint.parts import stored_tensors, write_parts
from loquela.checkpoint.rules import load_into, to_disk
from loquela.checkpoint.store import atomic_directory, verify, write_model
from loquela.checkpoint.tensors import StoredTensor, write_bytes
from loquela.errors import CheckpointError, StorageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training.averaging import Average
from loquela.training.directory import newest, remove, remove_old
from loquela.training.optimizers import Optimizers
from loquela.training.precision import LossScale
from loquela.training.ranks import ALONE, Ranks, alike, local, take, whole
from loquela.training.spikes import Trend
from loquela.training.validation import Validation

__all__ = ["Held", "State", "restore", "resume", "save", "shared_directory"]

OPTIMIZER, BEST, AVERAGE, STATE = "optimizer", "best", "average", "trainer_state.json"


@dataclass
class State:
    """How far a run has come. Written as JSON, whose numbers are exact for Python's floats."""

    step: int = 0
    tokens: int = 0
    """Labels trained on."""
    log_size: int = 0
    """Bytes of loss.csv."""
    logged: int = 0
    """The step of the last row of loss.csv."""
    loss_sum: float = 0.0
    loss_tokens: int = 0
    """Loss in nats, and labels, since that row."""
    train_loss: float = 0.0
    """That row's."""
    gradient_norm: float = 0.0
    """The last update's."""
    validation: Validation | None = None
    best: Validation | None = None
    best_step: int = 0
    worse: int = 0
    """Validations since the best."""
    ended: bool = False
    """Whether it ends here because validations did not get better any more."""
    world: int = 1
    """How many processes the run began with. That decides how many samples an update sees, however many go on."""
    shift: int = 0
    """Batches that were passed over: update `step` sees batch `step + shift`."""
    trend: Trend = field(default_factory=Trend)
    leaps: int = 0
    """Updates in a row that were left out because the loss leapt."""
    rewinds: int = 0
    dtype: str | None = None
    """What products are computed in since the run began; checkpoints of before this was kept do not say."""
    scale: LossScale = field(default_factory=LossScale)
    samples: list[dict[str, Any]] = field(default_factory=list)
    """What the model wrote: `step`, `prompt`, `text`; the newest last."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> State:
        """Read what `asdict` gives; raises `TypeError` for anything else."""
        kinds = {"validation": Validation, "best": Validation, "trend": Trend, "scale": LossScale}
        inner = {key: kind(**raw[key]) for key, kind in kinds.items() if raw.get(key)}
        return cls(**{**raw, **inner})


@dataclass
class Held:
    """What a checkpoint holds beside the `State`: all tensors that the next update depends on."""

    network: Network
    optimizer: Optimizers
    average: Average | None = None
    best: dict[str, Tensor] | None = None
    """The weights of the best validation, where they are kept and are not the present ones."""


def save(
    directory: Path,
    held: Held,
    state: State,
    *,
    tokenizer: Tokenizer,
    keep: int | None,
    kept: int | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `checkpoint-STEP`, a model directory with the optimizer beside it; then remove all but the newest `keep`.

    The checkpoint of step `kept` is not removed. Called on every rank; where each has a slice, each writes a part of
    the files. Raises `StorageError` when it cannot be written; the checkpoints before are untouched then.
    """
    target = directory / f"checkpoint-{state.step}"
    where: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world if ranks.sharded else 1, "whole": whole}
    with ranks.together():
        if ranks.main and target.exists():  # damaged, or passed over by resume_from_checkpoint
            remove(target)
    with shared_directory(target, ranks) as temporary:
        if ranks.main or ranks.sharded:
            write_model(held.network, tokenizer, temporary, **where)
            write_parts(temporary, held.optimizer.state(), OPTIMIZER, **where)
            parameters = dict(held.network.named_parameters())
            average = None if held.average is None else held.average.means
            others = {BEST: held.best, AVERAGE: average}
            for stem, tensors in others.items():
                if tensors is not None:
                    sliced = {name: alike(tensor, parameters[name]) for name, tensor in tensors.items()}
                    write_parts(temporary, sliced, stem, **where)
        if ranks.main:
            for name, content in (extra_files or {}).items():
                write_bytes(temporary / name, content)
            write_bytes(temporary / STATE, json.dumps(asdict(state), indent=2).encode() + b"\n")
    with ranks.together():
        if ranks.main:
            remove_old(directory, keep, kept)
    return target


@contextmanager
def shared_directory(target: Path, ranks: Ranks) -> Iterator[Path]:
    """Yield, on every rank, the temporary directory that `atomic_directory` makes on rank 0."""
    if ranks.world == 1:
        with atomic_directory(target) as temporary:
            yield temporary
        return
    with ranks.together():
        if not ranks.main:
            name = ranks.text("")
            if not name:
                raise StorageError(f"{target} could not be made by rank 0")
            with ranks.together():
                yield Path(name)
            return
        told = False
        try:
            with atomic_directory(target) as temporary:
                told = bool(ranks.text(str(temporary)))
                with ranks.together():
                    yield temporary
        except StorageError:
            if not told:
                ranks.text("")
            raise


def resume(directory: Path, which: bool | str, held: Held, ranks: Ranks = ALONE) -> tuple[State, list[str]]:
    """Take over the newest intact checkpoint (`which` True), none (False), or the one that is named.

    Returns the state and what is to be said aloud. Raises `CheckpointError` when the one that
    is named cannot be used.
    """
    if isinstance(which, str):
        named = [path for path in (Path(which), directory / which) if path.is_dir()]
        if not named:
            raise CheckpointError(f"resume_from_checkpoint must be true, false or a directory, but is {which!r}")
        return restore(named[0], held, ranks), []
    state, notes = newest(directory, lambda path: restore(path, held, ranks), "training") if which else (None, [])
    return state or State(world=ranks.world), notes


def restore(checkpoint: Path, held: Held, ranks: Ranks = ALONE) -> State:
    """Fill all that is `held` from a checkpoint, saved by however many ranks; to be called on every rank.

    Raises `CheckpointError` unless every byte is as it was saved.
    """
    with ranks.together():
        if ranks.main:
            if not (checkpoint / MANIFEST).is_file():
                raise CheckpointError(f"{checkpoint} has no {MANIFEST}")
            verify(checkpoint)
    with ranks.together():
        try:
            state = State.from_dict(read_json(checkpoint, STATE))
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{checkpoint / STATE} is not a state of this version: {error}") from error
        load_into(held.network, _sliced(stored_tensors(checkpoint), to_disk(held.network)))
        held.optimizer.restore(stored_tensors(checkpoint, OPTIMIZER))
        if held.average is not None:
            held.average.restore(_own(checkpoint, AVERAGE, held.network))
        held.best = _own(checkpoint, BEST, held.network) if _has(checkpoint, BEST) else None
    return state


def _sliced(stored: Mapping[str, StoredTensor], like: Mapping[str, Tensor]) -> dict[str, Tensor | StoredTensor]:
    """Make a sharded tensor of each that stands for one."""
    sliced: dict[str, Tensor | StoredTensor] = dict(stored)
    for name, tensor in stored.items():
        model = like.get(name)
        if model is not None and local(model) is not model and model.shape == tensor.shape:
            sliced[name] = alike(take(tensor.read(), model).contiguous(), model)
    return sliced


def _own(checkpoint: Path, stem: str, network: Network) -> dict[str, Tensor]:
    """Return this rank's slices of tensors that were saved under the names of parameters."""
    parameters = dict(network.named_parameters())
    stored = stored_tensors(checkpoint, stem)
    return {name: take(tensor.read(), parameters[name]).clone() for name, tensor in stored.items()}


def _has(checkpoint: Path, stem: str) -> bool:
    return any((checkpoint / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json"))
