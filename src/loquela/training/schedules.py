"""How the learning rate moves: a pure function of (step, steps), under the names of Hugging Face's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "rate"]

STABLE = 0.8
"""Share of the steps after the warm-up that `warmup_stable_decay` keeps the full rate."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
    "warmup_stable_decay": lambda done: min(1.0, (1.0 - done) / (1.0 - STABLE)),
}
"""Name → the factor after the warm-up, where `done` runs from 0 (its first step) towards 1 (reached by no step)."""


def rate(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Return the factor in (0, 1] on the learning rate of update `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` updates (1/warmup, 2/warmup, …, 1), then follows the schedule. No update
    has factor 0: one that changes nothing would be computed for nothing.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule]((step - warmup) / max(1, steps - warmup))
