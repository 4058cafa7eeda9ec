"""What may come next in a text: the logits of its next token, and what a draw wants to know of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from loquela.errors import LoquelaError
from loquela.generation.rules import Logits, most_probable

__all__ = ["Outlook", "outlook_of"]


class Outlook:
    """One row of logits (vocab,), in float64, and numbers of it that are found when they are first asked for.

    A network that knows these numbers already makes an outlook of its own kind (`loquela.engine.seen`).
    """

    def __init__(self, values: npt.ArrayLike) -> None:
        self._values: Logits = np.asarray(values, dtype=np.float64)
        self._largest = self._spread = math.nan

    @property
    def values(self) -> Logits:
        """The logits (vocab,)."""
        return self._values

    @property
    def largest(self) -> float:
        """The largest logit; NaN if any is."""
        if math.isnan(self._largest):
            self._largest = float(self.values.max())
        return self._largest

    @property
    def spread(self) -> float:
        """log Σ e^(logit - largest): minus the log-probability of the most probable token."""
        if math.isnan(self._spread):
            below = self.values - self.largest
            self._spread = float(np.log(np.exp(below, out=below).sum()))
        return self._spread

    @property
    def best(self) -> int:
        """The most probable token; of equal ones the lowest id."""
        return int(self.values.argmax())

    def most_probable(self, count: int) -> npt.NDArray[np.intp]:
        """Return the ids of the `count` largest logits; see `loquela.generation.rules.most_probable`."""
        return most_probable(self.values, count)

    def at(self, ids: npt.NDArray[np.intp]) -> Logits:
        """Return the logits (n,) of tokens."""
        chosen: Logits = self.values[ids]
        return chosen

    def log_probability(self, token: int) -> float:
        """Return the log of the softmax of the logits at `token`."""
        return float(self.values[token]) - self.largest - self.spread

    def check(self) -> None:
        """Raise `LoquelaError` for logits that are no distribution: NaN, +inf, all -inf."""
        if not math.isfinite(self.largest):
            raise LoquelaError(
                f"logits must be finite, but their maximum is {self.largest}: the model's weights are damaged"
            )


def outlook_of(logits: Outlook | npt.ArrayLike) -> Outlook:
    """Return what is one already, or that of a row of logits (vocab,)."""
    return logits if isinstance(logits, Outlook) else Outlook(logits)
