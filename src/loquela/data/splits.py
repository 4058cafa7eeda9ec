"""Which end of the data is held out."""

from __future__ import annotations

from loquela.errors import UsageError

__all__ = ["split_at"]


def split_at(size: int, validation_fraction: float) -> int:
    """Return where the held-out end of `size` characters or documents begins, never at the very first.

    Raises `UsageError` for a fraction outside [0, 1).
    """
    if not 0 <= validation_fraction < 1:
        raise UsageError(f"validation_fraction must be at least 0 and below 1, but is {validation_fraction}")
    return max(1, int(size * (1 - validation_fraction)))
