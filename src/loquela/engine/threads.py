"""How many threads the engine takes."""

from __future__ import annotations

import os

__all__ = ["default_threads"]


def default_threads() -> int:
    """As many as there are cores for this process, or what OMP_NUM_THREADS says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
