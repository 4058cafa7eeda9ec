"""The sampling rules: each one function, logits → logits.

A rule sees one row of logits (vocab,) in float64, its setting's value, and what was said so far; it returns new
logits, with -inf where it removes a token. Its name, its type (that of the default), its range and its help are
declared once, by the decorator, and every flag, field and control derives from that. To add a rule, write its
function here, at the place in the order where it belongs.

NumPy and not torch: one thread, one order of summation, so the tokens do not depend on the machine's threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.errors import UsageError
from loquela.generation.setting import Setting

__all__ = ["RULES", "History", "Logits", "Rule", "most_probable", "rule", "softmax"]

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """The token ids before the one to choose."""

    prompt: Sequence[int] = ()
    completion: Sequence[int] = ()
    end_ids: frozenset[int] = frozenset()
    """The tokens that end a completion."""
    last: bool = False
    """Whether there is room for this token only."""

    @property
    def ids(self) -> list[int]:
        """Prompt and completion."""
        return [*self.prompt, *self.completion]


@dataclass(frozen=True)
class Rule:
    """A rule, its setting, and the value with which it changes nothing."""

    setting: Setting
    off: Any
    apply: Callable[[Logits, Any, History], Logits]
    samples: bool = False
    """Whether it shapes the draw of a token, and so has no place where none is drawn (greedy, beam search)."""


RULES: dict[str, Rule] = {}
"""Every rule by its setting's name, in the order in which they are applied."""


def rule(
    *,
    default: Any,
    off: Any,
    help: str,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    samples: bool = False,
) -> Callable[[Callable[[Logits, Any, History], Logits]], Callable[[Logits, Any, History], Logits]]:
    """Declare the decorated function as the rule of the setting that has its name."""

    def declare(apply: Callable[[Logits, Any, History], Logits]) -> Callable[[Logits, Any, History], Logits]:
        name = apply.__name__
        RULES[name] = Rule(Setting(name, type(default), default, help, minimum, maximum), off, apply, samples)
        return apply

    return declare


def softmax(logits: Logits) -> Logits:
    """Return the probabilities of `logits` (vocab,); exactly 0 where a logit is -inf.

    What is left is summed without what is not, so it gets the same bits wherever it stands.
    """
    if len(logits) <= 128 and logits.min() > -np.inf:  # nothing is left out
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()  # type: ignore[no-any-return]
    kept = np.flatnonzero(logits > -np.inf)
    weights = np.exp(logits[kept] - logits.max())
    probabilities = np.zeros_like(logits)
    probabilities[kept] = weights / weights.sum()
    return probabilities


def most_probable(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """Return the ids of the `count` largest logits, largest first; of equal ones the lowest id comes first.

    Removed tokens (-inf) are never among them.
    """
    ids = _candidates(logits, count)
    if count < len(ids):
        left = logits[ids]
        threshold = np.partition(left, -count)[-count]
        above, tied = ids[left > threshold], ids[left == threshold]
        ids = np.sort(np.concatenate((above, tied[: count - len(above)])))
    return ids[np.argsort(-logits[ids], kind="stable")]


def _candidates(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """Return ids, in order, among which the `count` largest are, with all that equal the last of them.

    A vocabulary is cut into columns of 64. The count-th largest of the columns' maxima is no more than the count-th
    largest of all, and few tokens reach it: partitioning those is ten times faster than partitioning all.
    """
    columns = len(logits) // 64
    if 0 < count <= columns // 4:
        maxima = logits[: 64 * columns].reshape(64, columns).max(0)
        bound = np.partition(maxima, -count)[-count]
        if bound > -np.inf:
            return np.flatnonzero(logits >= bound)
    return np.flatnonzero(logits > -np.inf)


def _keep(logits: Logits, count: int) -> Logits:
    kept = np.full_like(logits, -np.inf)
    ids = most_probable(logits, count)
    kept[ids] = logits[ids]
    return kept


@rule(default=1.0, off=1.0, minimum=0.01, help="Above 1, what stands in prompt or completion is less likely.")
def repetition_penalty(logits: Logits, penalty: float, history: History) -> Logits:
    """Positive logits of tokens already said are divided by `penalty`, negative ones multiplied (CTRL, 1909.05858)."""
    said = np.unique(np.array(history.ids, dtype=np.intp))
    logits = logits.copy()
    logits[said] = np.where(logits[said] > 0, logits[said] / penalty, logits[said] * penalty)
    return logits


@rule(default=0.0, off=0.0, minimum=-2, maximum=2, help="Subtract from the logit of each token in the completion.")
def presence_penalty(logits: Logits, penalty: float, history: History) -> Logits:
    """Subtract `penalty` once from each token of the completion (OpenAI's API)."""
    logits = logits.copy()
    logits[np.unique(np.array(history.completion, dtype=np.intp))] -= penalty
    return logits


@rule(default=0.0, off=0.0, minimum=-2, maximum=2, help="The same for each time that it is there.")
def frequency_penalty(logits: Logits, penalty: float, history: History) -> Logits:
    """Subtract `penalty` times a token's count in the completion (OpenAI's API)."""
    return logits - penalty * np.bincount(np.array(history.completion, dtype=np.intp), minlength=len(logits))


@rule(default={}, off={}, minimum=-100, maximum=100, help='Add to the logits of token ids: {"ID": BIAS, …}.')
def logit_bias(logits: Logits, biases: Mapping[int, float], history: History) -> Logits:
    """Add each bias to its token's logit; raises `UsageError` for an id that the vocabulary does not have."""
    logits = logits.copy()
    for token, bias in biases.items():
        if token >= len(logits):
            raise UsageError(f"logit_bias must name tokens below the vocabulary's {len(logits)}, but names {token}")
        logits[token] += bias
    return logits


def _without(logits: Logits, tokens: Sequence[int]) -> Logits:
    kept: Logits = logits.copy()
    kept[[token for token in tokens if token < len(kept)]] = -np.inf
    return kept


def _only(logits: Logits, token: int) -> Logits:
    """Logits of a token that is certain; raises `UsageError` for one that the vocabulary does not have."""
    if token >= len(logits):
        raise UsageError(f"a forced token must be below the vocabulary's {len(logits)}, but is {token}")
    forced: Logits = np.full_like(logits, -np.inf)
    forced[token] = 0.0
    return forced


@rule(default=0, off=0, minimum=0, help="Let no run of N tokens come twice; 0 lets it.")
def no_repeat_ngram_size(logits: Logits, size: int, history: History) -> Logits:
    """Remove every token that would end a run of `size` tokens that prompt and completion have had (1705.04304)."""
    ids = history.ids
    if len(ids) + 1 < size:
        return logits
    begun = ids[len(ids) - size + 1 :]
    return _without(logits, [ids[i + size - 1] for i in range(len(ids) - size + 1) if ids[i : i + size - 1] == begun])


@rule(default=[], off=[], help="Never say these token ids, nor those in a row: [[ID, …], …].")
def bad_words_ids(logits: Logits, words: Sequence[Sequence[int]], history: History) -> Logits:
    """Remove the last token of each word (a list of ids) whose other tokens have just been said."""
    ids = history.ids
    return _without(logits, [last for *begun, last in words if ids[len(ids) - len(begun) :] == begun])


@rule(default=0, off=0, minimum=0, help="No end before prompt (or a target's start) and completion have N tokens.")
def min_length(logits: Logits, length: int, history: History) -> Logits:
    """Remove the end tokens until prompt and completion have `length` tokens."""
    return logits if len(history.ids) >= length else _without(logits, sorted(history.end_ids))


@rule(default=-1, off=-1, minimum=-1, help="Begin with this token, such as a translation's language; -1: with any.")
def forced_bos_token_id(logits: Logits, token: int, history: History) -> Logits:
    """Leave only `token` at the beginning of a completion."""
    return logits if history.completion else _only(logits, token)


@rule(default=-1, off=-1, minimum=-1, help="End with this token where no more fit; -1: with any.")
def forced_eos_token_id(logits: Logits, token: int, history: History) -> Logits:
    """Leave only `token` for the last place."""
    return _only(logits, token) if history.last else logits


@rule(default=0.8, off=1.0, minimum=0, samples=True, help="Below 1 the probable becomes more probable; 0 is greedy.")
def temperature(logits: Logits, degrees: float, history: History) -> Logits:
    """Divide by the temperature; its limit 0 leaves the most probable token alone."""
    if degrees == 0:
        return _keep(logits, 1)
    with np.errstate(over="ignore"):  # beside a temperature near 0, what is not the maximum becomes -inf
        scaled: Logits = (logits - logits.max()) / degrees
    return scaled


@rule(default=25, off=0, minimum=0, samples=True, help="Keep the K most probable tokens; 0 keeps all.")
def top_k(logits: Logits, k: int, history: History) -> Logits:
    """Keep exactly the `k` most probable tokens (arXiv:1805.04833); of equal ones those with the lowest ids."""
    return _keep(logits, k)


@rule(
    default=1.0,
    off=1.0,
    minimum=0,
    maximum=1,
    samples=True,
    help="Keep the smallest set of tokens whose probability reaches P.",
)
def top_p(logits: Logits, p: float, history: History) -> Logits:
    """Keep the smallest set of most probable tokens whose probability reaches `p`, at least one (arXiv:1904.09751)."""
    probabilities, looked_at = softmax(logits), 128
    while True:  # most often the few most probable reach P, and the others need not be sorted
        ids = _candidates(probabilities, looked_at)
        reached = np.cumsum(np.sort(probabilities[ids])[::-1][:looked_at])
        # the sum of many rounded numbers may miss by a hair a P that the exact sum meets
        if reached[-1] >= p - 1e-12 or looked_at >= len(probabilities):
            return _keep(logits, int(np.searchsorted(reached, p - 1e-12)) + 1)
        looked_at *= 16


@rule(
    default=0.0,
    off=0.0,
    minimum=0,
    maximum=1,
    samples=True,
    help="Remove tokens less probable than this share of the likeliest.",
)
def min_p(logits: Logits, share: float, history: History) -> Logits:
    """Remove tokens whose probability is below `share` times that of the most probable (arXiv:2407.01082)."""
    return np.where(logits >= logits.max() + math.log(share), logits, -np.inf)
