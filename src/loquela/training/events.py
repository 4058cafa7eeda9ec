"""What a run tells whoever watches it; the command line draws these, a notebook may collect them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loquela.training.log import Row
from loquela.training.validation import Validation

__all__ = ["Event", "Listener", "Logged", "Note", "Preparing", "Sampled", "Saved", "Started", "Stepped", "Validated"]


@dataclass(frozen=True)
class Note:
    """Something to be said aloud."""

    message: str


@dataclass(frozen=True)
class Preparing:
    """The text is being read or tokenised; `done` runs from 0 to 1, or is None where it cannot be known."""

    what: str
    done: float | None = None


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on, after update `step` of `steps`."""

    step: int
    steps: int
    parameters: int
    vocabulary: int
    train_tokens: int
    train_bytes: int
    val_tokens: int
    tokens_per_step: int


@dataclass(frozen=True)
class Stepped:
    """Update `step` is done; `loss` in nats per token, `tokens` and `seconds` since the run began."""

    step: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Logged:
    """A row of loss.csv was written, `seconds` after the run began; the speed since the row before.

    `mfu` is the share of what the hardware could compute that was spent on tokens, None where that is not known.
    """

    row: Row
    seconds: float
    tokens_per_second: float
    mfu: float | None
    validation: Validation | None


@dataclass(frozen=True)
class Validated:
    """The whole held-out text was scored after update `step`; `best` when no validation before was better."""

    step: int
    train_loss: float
    loss: float
    bits_per_byte: float | None
    """None where the objective does not ask for each token of a text once."""
    best: bool


@dataclass(frozen=True)
class Sampled:
    """What the model writes after update `step`."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    directory: Path


Event = Note | Preparing | Started | Stepped | Logged | Validated | Sampled | Saved
Listener = Callable[[Event], None]
