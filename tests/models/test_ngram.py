"""The n-gram model: probabilities that are some, and the same as those of a plain, slow implementation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError, DataError, UsageError
from loquela.generation.decode import generate_ids
from loquela.generation.sampling import GenerationSettings
from loquela.layers.cache import Cache
from loquela.models.ngram import NGram, NGramConfig

VOCAB = 6
Words = tuple[int, ...]


def fitted(text: list[int], order: int, vocab_size: int = VOCAB) -> NGram:
    config = NGramConfig.from_dict({"vocab_size": vocab_size, "order": order})
    assert isinstance(config, NGramConfig)
    network = NGram(config)
    network.initialise()
    network.fit(np.array(text, dtype=np.uint16))
    return network


class Slow:
    """The formulas of Chen and Goodman over dictionaries of tuples."""

    def __init__(self, text: list[int], order: int) -> None:
        self.counts: list[Counter[Words]] = []
        for n in range(1, order + 1):
            grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
            if n < order:
                before = {(text[i - 1] if i else None, gram) for i, gram in enumerate(grams)}
                grams = [gram for _, gram in before]
            self.counts.append(Counter(grams))
        self.discounts = [self.estimate(list(counts.values())) for counts in self.counts]

    @staticmethod
    def estimate(counts: list[int]) -> list[float]:
        n = [counts.count(i) for i in range(5)]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            d = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
            if all(0 < d[i] <= i + 1 for i in range(3)):
                return [0.0, *d]
        return [0.0, 0.5, 1.0, 1.5]

    def probability(self, word: int, history: Words, vocab_size: int = VOCAB) -> float:
        n = len(history) + 1
        lower = self.probability(word, history[1:], vocab_size) if n > 1 else 1 / vocab_size
        counts = self.counts[n - 1]
        after = [c for gram, c in counts.items() if gram[:-1] == history]
        if not after:
            return lower
        discount = self.discounts[n - 1]
        c = counts[(*history, word)]
        mass = sum(discount[min(c, 3)] for c in after)
        return ((c - discount[min(c, 3)] if c else 0.0) + mass * lower) / sum(after)


texts = st.lists(st.integers(0, VOCAB - 1), min_size=5, max_size=60)


@given(text=texts, order=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_equal_to_a_slow_reference(text: list[int], order: int, seed: int) -> None:
    network, slow = fitted(text, order), Slow(text, order)
    words = np.random.default_rng(seed).integers(0, VOCAB, 12).tolist() + text[:4]
    got = network(torch.tensor([words]))[0].exp().double()
    for position in range(len(words)):
        history = tuple(words[max(0, position - order + 2) : position + 1]) if order > 1 else ()
        expected = [slow.probability(word, history) for word in range(VOCAB)]
        assert got[position].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(text=texts, order=st.integers(1, 5), words=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
@settings(max_examples=60)
def test_every_history_sums_to_one(text: list[int], order: int, words: list[int]) -> None:
    log_probs = fitted(text, order)(torch.tensor([words])).double()
    assert log_probs.isfinite().all()
    assert (log_probs.exp().sum(-1) - 1).abs().max() < 1e-5


def test_discounts_are_estimated_where_there_is_enough() -> None:
    text = np.random.default_rng(0).zipf(1.3, 4000) % 40
    network, slow = fitted(text.tolist(), 3, 40), Slow(text.tolist(), 3)
    for level, discounts in zip(network.levels, slow.discounts, strict=True):
        assert level.get_parameter("discounts").tolist() == pytest.approx(discounts)
    assert slow.discounts[2] != [0.0, 0.5, 1.0, 1.5]
    words = [3, 1, 1, 2, 39, 5, 1]
    got = network(torch.tensor([words]))[0].exp()
    expected = slow.probability(7, (5, 1), 40)
    assert float(got[-1, 7]) == pytest.approx(expected, rel=1e-5)


@given(
    real=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3),
    cut=st.integers(1, 6),
    order=st.integers(1, 4),
)
@settings(max_examples=40)
def test_cut_and_padded_anywhere(real: list[list[bool]], cut: int, order: int) -> None:
    network = fitted(np.random.default_rng(1).integers(0, VOCAB, 300).tolist(), order)
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, VOCAB, (len(real), 7)))
    padding, cache = torch.tensor(real), network.new_cache()
    first = network(tokens[:, :cut], padding=padding[:, :cut], cache=cache)
    got = torch.cat((first, network(tokens[:, cut:], padding=padding, cache=cache)), 1)
    assert cache.length == 7
    for row, mask in enumerate(padding):
        assert torch.equal(got[row, mask], network(tokens[row : row + 1, mask])[0])


def test_saved_opened_and_generated_from(tmp_path: Path) -> None:
    network = fitted([0, 1, 2, 3, 4, 5] * 20, 4)
    save_model(network, None, tmp_path / "model")
    again = load_model(tmp_path / "model").network
    assert isinstance(again, NGram)
    assert again.config.counted == network.config.counted == [6, 6, 6]
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    half = load_model(tmp_path / "model", dtype="float16").network
    assert half.get_parameter("levels.1.keys").dtype == torch.int64
    steps = generate_ids(again, [2], GenerationSettings(max_new_tokens=7, temperature=0))
    assert [step.id for step in steps] == [3, 4, 5, 0, 1, 2, 3]


def test_nothing_counted_is_uniform() -> None:
    config = NGramConfig.from_dict({"vocab_size": 10, "order": 3})
    assert isinstance(config, NGramConfig)
    network = NGram(config)
    assert torch.allclose(network(torch.tensor([[1, 2, 3]])), torch.tensor(-math.log(10)))
    network.fit(np.arange(9))
    network.initialise()
    assert torch.allclose(network(torch.tensor([[1, 2, 3]])), torch.tensor(-math.log(10)))


def test_a_longer_history_helps() -> None:
    """On text with a memory of three words, each order is better than the one below; on its own text at least."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB, 3).tolist()
    for _ in range(4000):
        text.append((text[-1] + 2 * text[-3]) % VOCAB if rng.random() < 0.8 else int(rng.integers(VOCAB)))
    held_out = torch.tensor([text[3500:]])
    losses = []
    for order in (1, 2, 3, 4):
        logits = fitted(text[:3500], order)(held_out[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits[0], held_out[0, 1:]).item())
    assert losses[3] < 1.1 < losses[2]
    assert losses == sorted(losses, reverse=True) or losses[2] - losses[0] < 0.05  # orders 1 to 3 know nothing here


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="at least the 4 tokens"):
        fitted([1, 2], 4)
    with pytest.raises(DataError, match="below the vocabulary of 6"):
        fitted([1, 2, 6], 2)
    with pytest.raises(ConfigError, match="counted must have"):
        NGramConfig.from_dict({"order": 3, "counted": [1]})
    with pytest.raises(UsageError, match="new_cache"):
        fitted([1, 2, 3], 2).hidden(torch.zeros(1, 1, dtype=torch.int64), cache=Cache(1))
