"""Checkpoints of a run: all that the next update depends on, in one directory that is complete or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from loquela.checkpoint.files import MANIFEST, read_json
from loquela.checkpoint.rules import load_into
from loquela.checkpoint.store import atomic_directory, read_tensors, stored_tensors, verify, write_model, write_tensors
from loquela.checkpoint.tensors import write_bytes
from loquela.errors import CheckpointError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training.directory import checkpoints, remove
from loquela.training.optimizers import Optimizers
from loquela.training.validation import Validation

__all__ = ["State", "restore", "resume", "save"]

OPTIMIZER, BEST, STATE = "optimizer.safetensors", "best.safetensors", "trainer_state.json"


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

    @classmethod
    def from_dict(cls, raw: Mapping[str, object]) -> State:
        """Read what `asdict` gives; raises `TypeError` for anything else."""
        inner = {key: Validation(**raw[key]) if raw[key] else None for key in ("validation", "best")}  # type: ignore[arg-type]
        return cls(**{**raw, **inner})  # type: ignore[arg-type]


def save(
    directory: Path,
    *,
    network: Network,
    tokenizer: Tokenizer,
    optimizer: Optimizers,
    state: State,
    best: Mapping[str, Tensor] | None,
    keep: int | None,
) -> Path:
    """Write `checkpoint-STEP`, a model directory with the optimizer beside it; then remove all but the newest `keep`.

    Raises `StorageError` when it cannot be written; the checkpoints before are untouched then.
    """
    target = directory / f"checkpoint-{state.step}"
    if target.exists():  # damaged, or passed over by resume_from_checkpoint
        remove(target)
    with atomic_directory(target) as temporary:
        write_model(network, tokenizer, temporary)
        write_tensors(temporary / OPTIMIZER, optimizer.state())
        if best is not None:
            write_tensors(temporary / BEST, best)
        write_bytes(temporary / STATE, json.dumps(asdict(state), indent=2).encode() + b"\n")
    for old in checkpoints(directory)[keep:] if keep is not None else ():
        remove(old)
    return target


def resume(
    directory: Path, which: bool | str, network: Network, optimizer: Optimizers
) -> tuple[State, dict[str, Tensor] | None, list[str]]:
    """Take over the newest intact checkpoint (`which` True), none (False), or the one that is named.

    Returns the state, the best weights where the checkpoint holds others than its own, and what is to be said aloud.
    Raises `CheckpointError` when the one that is named cannot be used.
    """
    if isinstance(which, str):
        named = [path for path in (Path(which), directory / which) if path.is_dir()]
        if not named:
            raise CheckpointError(f"resume_from_checkpoint must be true, false or a directory, but is {which!r}")
        return *restore(named[0], network, optimizer), []
    notes = []
    candidates = checkpoints(directory) if which else []
    for checkpoint in candidates:
        try:
            restored = restore(checkpoint, network, optimizer)
        except CheckpointError as error:
            notes.append(f"{checkpoint.name} is damaged and was passed over: {error}")
            continue
        return *restored, [*notes, f"going on from {checkpoint.name}"]
    if notes:
        notes.append("no checkpoint is intact: training begins anew")
    return State(), None, notes


def restore(checkpoint: Path, network: Network, optimizer: Optimizers) -> tuple[State, dict[str, Tensor] | None]:
    """Fill network and optimizer from a checkpoint; raises `CheckpointError` unless every byte is as it was saved."""
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(f"{checkpoint} has no {MANIFEST}")
    verify(checkpoint)
    try:
        state = State.from_dict(read_json(checkpoint, STATE))
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint / STATE} is not a state of this version: {error}") from error
    load_into(network, stored_tensors(checkpoint))
    optimizer.restore({name: tensor.read() for name, tensor in read_tensors(checkpoint / OPTIMIZER).items()})
    if not (checkpoint / BEST).is_file():
        return state, None
    return state, {name: tensor.read() for name, tensor in read_tensors(checkpoint / BEST).items()}
