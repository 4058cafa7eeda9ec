"""Outlooks of the compiled engine: logits in float32, of which the crew has found what a draw asks first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loquela.engine.glancing import MOST, largest_first
from loquela.engine.memory import address
from loquela.generation.outlook import Outlook
from loquela.generation.rules import Logits

__all__ = ["Seen"]


class Seen(Outlook):
    """An `Outlook` that is widened to float64 only where somebody looks at all of it.

    `logits` (vocab,) are lent until `keep` is called, `known` is what `loquela.engine.glancing.join` found of them.
    """

    def __init__(self, logits: npt.NDArray[np.float32], known: npt.NDArray[np.float64]) -> None:
        self._logits = logits
        self._wide: Logits | None = None
        self._largest, self._spread, best = known[:3].tolist()
        self._best = int(best)

    def keep(self) -> None:
        """Have logits of its own: those that were lent are about to change."""
        self._logits = self._logits.copy()

    @property
    def values(self) -> Logits:  # noqa: D102
        if self._wide is None:
            self._wide = self._logits.astype(np.float64)
        return self._wide

    @property
    def largest(self) -> float:  # noqa: D102
        return self._largest

    @property
    def spread(self) -> float:  # noqa: D102
        return self._spread

    @property
    def best(self) -> int:  # noqa: D102
        return self._best

    def most_probable(self, count: int) -> npt.NDArray[np.intp]:  # noqa: D102
        if not 0 < count <= MOST:
            return super().most_probable(count)
        ids, values = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.float32)
        found = largest_first(address(self._logits), len(self._logits), ids, values)
        return ids[:found]

    def at(self, ids: npt.NDArray[np.intp]) -> Logits:  # noqa: D102
        return self._logits[ids].astype(np.float64)

    def log_probability(self, token: int) -> float:  # noqa: D102
        return float(self._logits[token]) - self._largest - self._spread
