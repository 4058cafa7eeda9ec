"""What was forgotten: scores of texts, changes of them, and how much of a change is noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.evaluation.forgetting import (
    Forgetting,
    ProbeText,
    bits_per_byte,
    change,
    noise_floor,
    own_texts,
    score_texts,
    texts_of,
)
from loquela.evaluation.perplexity import score_ids
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", ["the cat sat on the mat; the dog sat on the log\n"] * 9, 280)


@pytest.fixture(scope="module")
def network(tokenizer: Tokenizer) -> Network:
    module = architecture("llama")
    raw = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(2)
    made: Network = module.NETWORK(module.CONFIG.from_dict(raw))
    return made.eval()


def test_texts_are_scored_as_one_by_one(network: Network) -> None:
    texts = [ProbeText(tuple(range(1, n)), n) for n in (4, 9, 30)]
    for text, nats in zip(texts, score_texts(network, texts, batch_size=2), strict=True):
        alone = -score_ids(network, text.ids, window=60, stride=60)
        np.testing.assert_allclose(nats, alone, atol=1e-5)


def test_what_the_model_writes_is_the_same_each_time(network: Network, tokenizer: Tokenizer) -> None:
    first, again = (own_texts(network, tokenizer, tokens=40, length=12, seed=3) for _ in range(2))
    assert first == again
    assert sum(len(text.ids) - 1 for text in first) >= 40
    assert all(len(text.ids) <= 13 and text.n_bytes > 0 for text in first)
    assert first != own_texts(network, tokenizer, tokens=40, length=12, seed=4)


def test_a_text_is_probed_all_over(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat; the dog sat on the log\n" * 30
    found = texts_of(tokenizer, text, length=10, at_most=8)
    ids = tokenizer.encode(text)
    assert len(found) == 8
    places = [next(i for i in range(len(ids)) if tuple(ids[i : i + 11]) == part.ids) for part in found]
    assert places[0] == 0
    assert all(len(part.ids) == 11 for part in found)


@given(
    nats=st.lists(st.floats(0.1, 50), min_size=2, max_size=20),
    more=st.floats(-3, 3),
    n_bytes=st.integers(1, 40),
)
def test_a_change_is_what_is_there_more_after(nats: list[float], more: float, n_bytes: int) -> None:
    sizes = [n_bytes] * len(nats)
    delta, (low, high) = change(nats, [x + more for x in nats], sizes)
    assert delta == pytest.approx(more / math.log(2) / n_bytes, abs=1e-9)
    assert low == pytest.approx(high, abs=1e-9)  # every item changed alike, so nothing is uncertain
    assert bits_per_byte(nats, sizes) == pytest.approx(sum(nats) / math.log(2) / sum(sizes))


def test_noise_comes_of_unlike_items_and_shrinks_with_their_number() -> None:
    random = np.random.default_rng(1)
    assert noise_floor([5.0] * 30, [10] * 30) == 0.0
    few, many = (random.gamma(2, 10, n) for n in (25, 2500))
    floors = [noise_floor(nats, np.full(len(nats), 40.0)) for nats in (few, many)]
    assert floors[0] > 5 * floors[1] > 0
    # twice the variance of a mean, at the 95 % point of a normal distribution
    spread = many.std() / math.sqrt(2500) / math.log(2) / 40
    assert floors[1] == pytest.approx(1.96 * math.sqrt(2) * spread, rel=0.15)


def test_more_than_the_noise_is_lost() -> None:
    assert not Forgetting().lost
    assert not Forgetting(delta=0.1, noise=0.2).lost
    assert Forgetting(delta=0.3, noise=0.2).lost
    assert Forgetting(delta=0.1, noise=0.2, tasks={"x": {"delta": 0.5, "noise": 0.4}}).lost
