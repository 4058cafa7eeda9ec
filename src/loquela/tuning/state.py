"""Checkpoints of a tuning: what is trained, the optimizer, and how far it had come; complete or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from loquela.checkpoint.files import MANIFEST, atomic_directory, read_json, verify
from loquela.checkpoint.tensors import read_tensors, write_bytes, write_tensors
from loquela.errors import CheckpointError
from loquela.training.directory import newest, remove, remove_old
from loquela.training.optimizers import Optimizers
from loquela.training.precision import LossScale
from loquela.tuning.subject import Subject

__all__ = ["Progress", "resume", "save"]

TUNED, BEST, OPTIMIZER, STATE = "tuned.safetensors", "best.safetensors", "optimizer.safetensors", "tuning_state.json"


@dataclass
class Progress:
    """How far a tuning has come. Written as JSON, whose numbers are exact for Python's floats."""

    step: int = 0
    tokens: int = 0
    """Labels trained on."""
    positions: int = 0
    """Tokens computed, prompts too."""
    log_size: int = 0
    """Bytes of loss.csv."""
    logged: int = 0
    """The step of the last row of loss.csv."""
    loss_sum: float = 0.0
    loss_tokens: int = 0
    train_loss: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    strength: float = 0.0
    """Of the pull towards the base."""
    pace: float = 1.0
    """What the learning rate is multiplied by since the budget of forgetting was broken."""
    broken: int = 0
    """How often the budget of forgetting was broken."""
    ended: str | None = None
    """Why it ended before its last step."""
    dtype: str | None = None
    """What products of updates are computed in."""
    scale: LossScale = field(default_factory=LossScale)
    """Of the loss, in float16."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """The probes' scores at each validation, in bits per byte."""
    curves: list[dict[str, Any]] = field(default_factory=list)
    """Loss and metrics of each task at each validation."""


def save(
    directory: Path,
    subject: Subject,
    optimizer: Optimizers,
    progress: Progress,
    best: Mapping[str, Tensor] | None,
    keep: int | None,
) -> Path:
    """Write `checkpoint-STEP`; then remove all but the newest `keep`. Raises `StorageError`; what was there stays."""
    target = directory / f"checkpoint-{progress.step}"
    if target.exists():
        remove(target)
    with atomic_directory(target) as temporary:
        write_tensors(temporary / TUNED, {name: p.detach().contiguous() for name, p in subject.parameters.items()})
        write_tensors(temporary / OPTIMIZER, optimizer.state())
        if best is not None:
            write_tensors(temporary / BEST, dict(best))
        write_bytes(temporary / STATE, json.dumps(asdict(progress), indent=2).encode() + b"\n")
    remove_old(directory, keep)
    return target


def resume(
    directory: Path, subject: Subject, optimizer: Optimizers
) -> tuple[Progress | None, dict[str, Tensor] | None, list[str]]:
    """Take over the newest intact checkpoint, if there is one; also return the best weights, and what is to be said."""
    found, notes = newest(directory, lambda path: _restore(path, subject, optimizer), "tuning")
    return *(found or (None, None)), notes


def _restore(checkpoint: Path, subject: Subject, optimizer: Optimizers) -> tuple[Progress, dict[str, Tensor] | None]:
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(f"{checkpoint} has no {MANIFEST}")
    verify(checkpoint)
    try:
        raw = read_json(checkpoint, STATE)
        progress = Progress(**raw | {"scale": LossScale(**raw.get("scale", {}))})
    except TypeError as error:
        raise CheckpointError(f"{checkpoint / STATE} is not a state of this version: {error}") from error
    stored = {file: read_tensors(checkpoint / file) for file in (TUNED, OPTIMIZER)}
    subject.restore({name: tensor.read() for name, tensor in stored[TUNED].items()})
    optimizer.restore({name: tensor.read() for name, tensor in stored[OPTIMIZER].items()})
    if not (checkpoint / BEST).is_file():
        return progress, None
    return progress, {name: tensor.read() for name, tensor in read_tensors(checkpoint / BEST).items()}
