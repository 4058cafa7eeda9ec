"""Counts of n-grams, and the smoothing that turns them into probabilities.

Interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998, TR-10-98). The probability of a word w after a
history h is

    p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h•) + γ(h) · p(w | h without its first word)

where γ(h) is the mass that the discounts D took from h; below the single word stands the uniform distribution. Counts
are those of the text for the longest n-grams only. A shorter one counts after how many different words it comes, since
it is asked only where the longer history was not seen. D has three values per order: for counts of 1, of 2, and above.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Counting", "NGramCounts", "count", "learnable", "only_counts"]

Ints = npt.NDArray[np.int64]


@runtime_checkable
class Counting(Protocol):
    """A network that counts a text: all that it learns, or what it learns the rest from by gradients."""

    def fit(self, tokens: npt.NDArray[np.integer]) -> None:
        """Count all of a text (n,), in place of what was counted before."""


def only_counts(network: nn.Module) -> bool:
    """Tell whether a network learns by counting alone, nothing by gradients."""
    return isinstance(network, Counting) and not learnable(network)


class NGramCounts(nn.Module):
    """The n-grams of one order, sorted. Each is known by its number here, and is `parent · vocabulary + last word`.

    The parent is the number, one order below, of the n-gram without its last word; that of a single word is 0.
    """

    def __init__(self, size: int, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.keys = nn.Parameter(torch.arange(size), requires_grad=False)
        self.counts = nn.Parameter(torch.zeros(size, dtype=torch.int32), requires_grad=False)
        self.discounts = nn.Parameter(torch.zeros(4), requires_grad=False)
        """D of a count, by `min(count, 3)`."""

    def fill(self, keys: Ints, counts: Ints) -> None:
        """Take over what was counted, and estimate the discounts from how much was counted once, twice, …"""
        device = self.keys.device
        self.keys = nn.Parameter(torch.from_numpy(keys).to(device), requires_grad=False)
        self.counts = nn.Parameter(torch.from_numpy(counts.astype(np.int32)).to(device), requires_grad=False)
        self.discounts.copy_(torch.tensor([0.0, *_discounts(counts)]))

    def find(self, parent: Tensor, word: Tensor) -> Tensor:
        """Return the number of the n-gram that extends `parent` by `word` (any shape), -1 where it was never seen."""
        if not len(self.keys):
            return torch.full_like(parent, -1)
        key = parent * self.vocab_size + word  # negative, and so not found, for a parent of -1
        at = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[at] == key, at, -1)

    def smooth(self, lower: Tensor, parent: Tensor, without: Tensor | None = None) -> Tensor:
        """Return p(· | parent) (n, vocab) for each `parent` (n,), given p (n or 1, vocab) of the shorter histories.

        `without` (n,) is an n-gram for each, by its number, that is counted once less; -1 for none.
        """
        start = torch.searchsorted(self.keys, parent * self.vocab_size)
        size = torch.searchsorted(self.keys, (parent + 1) * self.vocab_size) - start  # children stand side by side
        row = torch.arange(len(parent), device=parent.device).repeat_interleave(size)
        at = torch.arange(len(row), device=parent.device) + (start - size.cumsum(0) + size)[row]
        counted = self.counts[at] if without is None else self.counts[at] - (at == without[row]).int()
        counts = counted.double()
        taken = self.discounts.double()[counted.clamp_max(3).long()]
        total, mass = (
            torch.zeros_like(parent, dtype=torch.float64).index_add(0, row, part) for part in (counts, taken)
        )
        safe = total.clamp_min(1)  # an unseen history has no total: all its mass goes to the shorter one
        p = lower * torch.where(total > 0, mass / safe, 1.0)[:, None].float()
        share = ((counts - taken) / safe[row]).float()
        p.view(-1).index_add_(0, row * self.vocab_size + self.keys[at] % self.vocab_size, share)
        return p


def learnable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters, by name, that a gradient could tune: all but counts and what was estimated from them."""
    counted = {id(p) for m in network.modules() if isinstance(m, NGramCounts) for p in m.parameters()}
    return {name: p for name, p in network.named_parameters() if id(p) not in counted}


def count(tokens: npt.NDArray[np.integer], order: int, vocab_size: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the keys and counts of the n-grams of 1, 2, … `order` words in `tokens` (n,); see `NGramCounts`.

    The beginning of the text counts as one more word before what stands there.
    """
    words = tokens.astype(np.int64)
    ids = words  # of the n-gram that ends at each place from `shorter` on, in the table of its order
    keys, counts = np.arange(vocab_size), np.bincount(words, minlength=vocab_size)
    for shorter in range(order - 1):
        longer, first, inverse, longer_counts = np.unique(
            ids[:-1] * vocab_size + words[shorter + 1 :], return_index=True, return_inverse=True, return_counts=True
        )
        endings = np.append(ids[first + 1], ids[0])  # each different n-gram is one word more before its ending
        yield keys, np.bincount(endings, minlength=len(keys))
        ids, keys, counts = inverse, longer, longer_counts
    yield keys, counts


def _discounts(counts: Ints) -> list[float]:
    """Return D for counts of 1, 2 and above (Chen and Goodman, equation 26)."""
    n1, n2, n3, n4 = np.bincount(counts[counts <= 4], minlength=5)[1:].tolist()
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        if all(0 < d <= i + 1 for i, d in enumerate(found)):
            return found
    return [0.5, 1.0, 1.5]  # too few to estimate from: the values that KenLM falls back to
