"""Choosing a token: the rules one after the other, then one draw from what they leave.

The draw is a pure function of the seed, the choice's number and the position, so a seed gives the same tokens
whatever else runs beside it.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.errors import UsageError
from loquela.generation.outlook import Outlook, outlook_of
from loquela.generation.rules import RULES, History, Logits, most_probable, softmax
from loquela.generation.settings import SETTINGS, GenerationSettings

__all__ = [
    "SETTINGS",
    "Chain",
    "GenerationSettings",
    "Guess",
    "History",
    "Stage",
    "choose",
    "distribution",
    "likely",
    "stages",
    "uniform",
    "verified",
]


_FEW = 128  # tokens that Python adds up


@dataclass(frozen=True)
class Stage:
    """What one rule did: the logits (vocab,) before and after it, and its setting's name and value."""

    name: str
    value: Any
    before: Logits
    after: Logits

    @property
    def removed(self) -> float:
        """The probability, before this rule, of the tokens that it removed."""
        return float(softmax(self.before)[np.isneginf(self.after)].sum())


def stages(logits: Outlook | npt.ArrayLike, history: History, settings: GenerationSettings) -> Iterator[Stage]:
    """Apply the rules that do something to one row of `logits` (vocab,), in order.

    Raises `LoquelaError` for logits that are no distribution (NaN, +inf, all -inf), `UsageError` for rules that leave
    no token.
    """
    row = _checked(logits).values
    for name in _active(settings):
        after = _applied(name, row, history, getattr(settings, name))
        yield Stage(name, getattr(settings, name), row, after)
        row = after


def _checked(logits: Outlook | npt.ArrayLike) -> Outlook:
    outlook = outlook_of(logits)
    outlook.check()
    return outlook


def _active(settings: GenerationSettings) -> list[str]:
    """The rules that do something, in order."""
    return [name for name in settings.sampler_order if getattr(settings, name) != RULES[name].off]


def _applied(name: str, row: Logits, history: History, value: Any) -> Logits:
    after = RULES[name].apply(row, value, history)
    if after.max() == -np.inf:
        raise UsageError(f"the settings must leave a token to choose from, but after {name} none is left")
    return after


class Chain:
    """The rules that some settings ask for, looked up once for a whole text.

    Where no more than a temperature comes before top-k, it is known from the start which tokens are kept, and the other
    rules need to look at no more than these: the very numbers of the rules on everything, for a tenth of the time.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        names = _active(settings)
        self._rules = [(name, getattr(settings, name)) for name in names]
        cuts = (
            (place, count, name)
            for place in range(len(names))
            if all(RULES[later].samples for later in names[place:])
            if (found := _kept(names[place:], settings)) is not None
            for count, name in [found]
        )
        self._place, self._count, self._cutting = next(cuts, (len(names), 0, ""))

    @property
    def certain(self) -> bool:
        """Whether the most probable token is chosen, whatever is drawn (greedy)."""
        return self._place == 0 and self._count == 1

    def likely(self, outlook: Outlook, history: History) -> tuple[npt.NDArray[np.intp] | None, Logits]:
        """See `likely`."""
        outlook.check()
        ids, row = None, outlook.values if self._place or not self._count else None
        for place, (name, value) in enumerate(self._rules):
            if place == self._place:
                ids = np.sort(outlook.most_probable(self._count) if row is None else most_probable(row, self._count))
                row = outlook.at(ids) if row is None else row[ids]
            if ids is None or name != self._cutting:  # what cut has done its work
                assert row is not None
                row = _applied(name, row, history, value)
        assert row is not None
        return ids, softmax(row)


def _kept(names: list[str], settings: GenerationSettings) -> tuple[int, str] | None:
    """How many tokens rules of these `names` keep whatever the logits are, and which does; None where that depends."""
    for name in names:
        if name == "top_k":
            return int(settings.top_k), name
        if name != "temperature":
            return None
        if settings.temperature == 0:
            return 1, name
    return None


def likely(
    logits: Outlook | npt.ArrayLike, history: History, settings: GenerationSettings
) -> tuple[npt.NDArray[np.intp] | None, Logits]:
    """Return the ids that an early cut leaves, in order, and the probabilities of these; None: of the whole vocabulary.

    The very numbers of `distribution`; see `Chain`.
    """
    return Chain(settings).likely(outlook_of(logits), history)


def distribution(logits: Outlook | npt.ArrayLike, history: History, settings: GenerationSettings) -> Logits:
    """Return the probabilities (vocab,) after all rules: they sum to 1, a removed token has exactly 0."""
    outlook = outlook_of(logits)
    ids, found = likely(outlook, history, settings)
    if ids is None:
        return found
    probabilities = np.zeros(outlook.values.shape)
    probabilities[ids] = found
    return probabilities


@dataclass(frozen=True)
class Guess:
    """A token that a draft proposes, and the probabilities (vocab,) it was drawn from; None: it could be no other."""

    token: int
    probabilities: Logits | None = None


def verified(probabilities: Logits, guess: Guess) -> Logits:
    """Return the distribution (vocab,) of the next token where a draft has guessed at it.

    Speculative sampling (arXiv:2211.17192, 2302.01318): the guess x is kept with the probability min(1, p(x) / q(x));
    else the token is drawn from where p, the model's `probabilities`, is above q, the draft's. Over all guesses that
    is p. Both cases are one mixture here, so that one draw decides, the same as without a guess: where q is certain the
    mixture is p itself, whether x is kept or not, and the very same token comes.
    """
    if guess.probabilities is None:
        return probabilities
    p, q = float(probabilities[guess.token]), float(guess.probabilities[guess.token])
    mixture = np.maximum(probabilities - guess.probabilities, 0)
    share = p / q if p < q and mixture.any() else 1.0
    if share < 1:
        mixture = (1 - share) * (mixture / mixture.sum())
    else:
        mixture[:] = 0
    mixture[guess.token] = share
    return mixture


def uniform(seed: int, choice: int, position: int, draft: int | None = None) -> float:
    """Return the number in [0, 1) that draws the token at `position` of completion number `choice`.

    A draft that begins at position `draft` has numbers of its own: what becomes of a guess must not depend on how it
    was drawn, nor one draft on another that was thrown away.
    """
    name = f"{seed}:{choice}:{position}" + ("" if draft is None else f":{draft}")
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # as many bits as a float64 holds


def choose(probabilities: Logits, uniform: float) -> int:
    """Return the id that `uniform` in [0, 1) falls on when `probabilities` (vocab,) lie end to end, lowest id first."""
    if len(probabilities) <= _FEW:  # the same sums, in the same order, sooner than NumPy is called
        sums = list(accumulate(probabilities.tolist()))
        return bisect_right(sums, _target(uniform, sums[-1]))
    ids = np.flatnonzero(probabilities)
    reached = np.cumsum(probabilities[ids])
    return int(ids[np.searchsorted(reached, _target(uniform, float(reached[-1])), side="right")])


def _target(uniform: float, whole: float) -> float:
    return min(uniform * whole, math.nextafter(whole, 0))  # rounding must not step past the end
