"""How the learning rate moves: a pure function of (step, steps), under the names of Hugging Face's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["SCHEDULES", "Moment", "rate"]

STABLE = 0.8
"""Share of the steps after the warm-up that `warmup_stable_decay` keeps the full rate."""
TIMESCALE = 10_000
"""Steps in which `inverse_sqrt` falls by √2 where there is no warm-up to take them from, as Hugging Face's does."""


@dataclass(frozen=True)
class Moment:
    """Where an update after the warm-up stands: `since` updates after it (from 0), `done` from 0 towards 1."""

    since: int
    warmup: int
    done: float


SCHEDULES: dict[str, Callable[[Moment], float]] = {
    "linear": lambda at: 1.0 - at.done,
    "cosine": lambda at: 0.5 * (1.0 + math.cos(math.pi * at.done)),
    "constant": lambda at: 1.0,
    "warmup_stable_decay": lambda at: min(1.0, (1.0 - at.done) / (1.0 - STABLE)),
    # The transformer's own of 2017 (arXiv:1706.03762, 5.3): warmup^½ · step^-½ after the warm-up.
    "inverse_sqrt": lambda at: (1.0 + at.since / (at.warmup or TIMESCALE)) ** -0.5,
}
"""Name → the factor after the warm-up."""


def rate(schedule: str, step: int, steps: int, warmup: int, *, floor: float = 0.0) -> float:
    """Return the factor in (0, 1] on the learning rate of update `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` updates (1/warmup, 2/warmup, …, 1), then follows the schedule, squeezed
    between 1 and `floor`. No update has factor 0: one that changes nothing would be computed for nothing.
    """
    if step < warmup:
        return (step + 1) / warmup
    since = step - warmup
    factor = SCHEDULES[schedule](Moment(since, warmup, since / max(1, steps - warmup)))
    return floor + (1.0 - floor) * factor if floor else factor
