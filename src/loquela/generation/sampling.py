"""Choosing a token: the rules one after the other, then one draw from what they leave.

The draw is a pure function of the seed, the choice's number and the position, so a seed gives the same tokens
whatever else runs beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.errors import LoquelaError, UsageError
from loquela.generation.rules import RULES, History, Logits, most_probable, softmax
from loquela.generation.settings import SETTINGS, GenerationSettings

__all__ = [
    "SETTINGS",
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


def stages(logits: npt.ArrayLike, history: History, settings: GenerationSettings) -> Iterator[Stage]:
    """Apply the rules that do something to one row of `logits` (vocab,), in order.

    Raises `LoquelaError` for logits that are no distribution (NaN, +inf, all -inf), `UsageError` for rules that leave
    no token.
    """
    row = _checked(logits)
    for name in _active(settings):
        after = _applied(name, row, history, settings)
        yield Stage(name, getattr(settings, name), row, after)
        row = after


def _checked(logits: npt.ArrayLike) -> Logits:
    row = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(largest := row.max()):  # NaN if any is, -inf if all are
        raise LoquelaError(f"logits must be finite, but their maximum is {largest}: the model's weights are damaged")
    return row


def _active(settings: GenerationSettings) -> list[str]:
    """The rules that do something, in order."""
    return [name for name in settings.sampler_order if getattr(settings, name) != RULES[name].off]


def _applied(name: str, row: Logits, history: History, settings: GenerationSettings) -> Logits:
    after = RULES[name].apply(row, getattr(settings, name), history)
    if after.max() == -np.inf:
        raise UsageError(f"the settings must leave a token to choose from, but after {name} none is left")
    return after


def likely(
    logits: npt.ArrayLike, history: History, settings: GenerationSettings
) -> tuple[npt.NDArray[np.intp] | None, Logits]:
    """Return the ids that an early cut leaves, in order, and the probabilities of these; None: of the whole vocabulary.

    The very numbers of `distribution`, for a tenth of the time: where no more than a temperature comes before top-k,
    it is known from the start which tokens are kept, and the other rules need to look at no more than these.
    """
    row, names = _checked(logits), _active(settings)
    ids: npt.NDArray[np.intp] | None = None
    for place, name in enumerate(names):
        if ids is None and all(RULES[later].samples for later in names[place:]):
            count = _kept(names[place:], settings)
            if count:
                ids = np.sort(most_probable(row, count))
                row = row[ids]
        row = _applied(name, row, history, settings)
    return ids, softmax(row)


def _kept(names: list[str], settings: GenerationSettings) -> int:
    """How many tokens rules of these `names` keep whatever the logits are; 0 where that depends on them."""
    for name in names:
        if name == "top_k":
            return int(settings.top_k)
        if name != "temperature":
            return 0
        if settings.temperature == 0:
            return 1
    return 0


def distribution(logits: npt.ArrayLike, history: History, settings: GenerationSettings) -> Logits:
    """Return the probabilities (vocab,) after all rules: they sum to 1, a removed token has exactly 0."""
    ids, found = likely(logits, history, settings)
    if ids is None:
        return found
    probabilities = np.zeros(np.shape(logits))
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
    ids = np.flatnonzero(probabilities)
    reached = np.cumsum(probabilities[ids])
    target = min(uniform * reached[-1], np.nextafter(reached[-1], 0))  # rounding must not step past the end
    return int(ids[np.searchsorted(reached, target, side="right")])
