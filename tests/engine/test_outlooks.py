"""What the crew finds of a row of logits is what NumPy finds of it, and the same tokens are drawn from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compiled import TINY, make, tokens

from loquela.engine.cached import jit
from loquela.engine.decoder import compiled
from loquela.engine.glancing import MOST, PART, WORDS, glance, join
from loquela.engine.memory import address, aligned
from loquela.engine.seen import Seen
from loquela.errors import LoquelaError, UsageError
from loquela.generation.decode import generate_ids
from loquela.generation.outlook import Outlook
from loquela.generation.settings import GenerationSettings
from loquela.generation.writer import Writer

EXAMPLES = settings(max_examples=60, deadline=None)


@jit
def _known(glances, joins, parts):  # type: ignore[no-untyped-def]
    for part in range(parts):
        glance(glances, 0, part)
    join(joins, 0)


def seen(row: np.ndarray) -> Seen:
    """An outlook of the kernels on one row of float32."""
    given, parts = aligned(4 * len(row)).view(np.float32), -(-len(row) // PART)
    given[:] = row
    each, known = aligned(8 * WORDS * parts), aligned(8 * WORDS).view(np.float64)
    glances, joins = np.zeros((2, 16), dtype=np.int64)
    glances[1:7] = address(given), 0, len(row), address(each), 0, parts
    joins[1:6] = address(each), 0, parts, address(known), 0
    _known(glances, joins, parts)
    return Seen(given, known)


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Logits of which some are equal and some impossible, the largest anywhere."""
    size = draw(st.sampled_from([1, 15, 16, 17, 31, 100, 2048, 2049, 5000]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    steps = draw(st.sampled_from([2, 1000]))
    row = np.round(random.standard_normal(size) * draw(st.sampled_from([0.01, 3, 40])) * steps) / steps
    row[random.random(size) < draw(st.sampled_from([0, 0.1, 0.99]))] = -np.inf
    row[random.integers(size)] = draw(st.sampled_from([-50.0, 0.0, 2.5, 1e30]))
    return row.astype(np.float32)


@EXAMPLES
@given(rows(), st.sampled_from([1, 2, 25, MOST, MOST + 1, 10**9]))
def test_what_is_known_of_a_row(row: np.ndarray, count: int) -> None:
    found, expected = seen(row), Outlook(row)
    assert (found.largest, found.best) == (expected.largest, expected.best)
    assert found.spread == pytest.approx(expected.spread, rel=1e-13, abs=1e-13)
    ids = found.most_probable(count)
    assert ids.tolist() == expected.most_probable(count).tolist()
    assert np.array_equal(found.at(ids), expected.at(ids))
    assert np.array_equal(found.values, expected.values)
    for token in ids[:3].tolist():
        assert found.log_probability(token) == pytest.approx(expected.log_probability(token), rel=1e-13, abs=1e-13)


@EXAMPLES
@given(rows(), st.sampled_from([np.nan, np.inf]), st.integers(0, 2**16))
def test_a_damaged_row_is_refused_wherever_it_is(row: np.ndarray, wrong: float, place: int) -> None:
    row[place % len(row)] = wrong
    for outlook in (seen(row), Outlook(row)):
        with pytest.raises(LoquelaError, match=f"maximum is {wrong}"):
            outlook.check()
    for outlook in (seen(np.full_like(row, -np.inf)), Outlook(np.full_like(row, -np.inf))):
        with pytest.raises(LoquelaError, match="maximum is -inf"):
            outlook.check()


@EXAMPLES
@given(
    row=rows(),
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([0, 1e-6, 0.7, 1, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 25, 400, 10**9]),
    top_p=st.sampled_from([0, 0.3, 1]),
    min_p=st.sampled_from([0, 0.05, 1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([{}, {0: -100.0}]),
    sampler_order=st.sampled_from([(), ("top_k", "temperature"), ("top_p", "top_k"), ("top_k", "repetition_penalty")]),
)
def test_a_writer_takes_the_same_token(row: np.ndarray, **rules: Any) -> None:
    writers = [Writer([0], GenerationSettings(max_new_tokens=3, **rules), 99) for _ in range(2)]
    for _ in range(3):
        steps = [w.take(o) for w, o in zip(writers, (seen(row), Outlook(row)), strict=True)]
        assert steps[0].id == steps[1].id
        assert steps[0].log_prob == pytest.approx(steps[1].log_prob, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_a_step_gives_what_the_network_and_its_head_give(name: str, quantize: Any) -> None:
    engines = [compiled(make(name), quantize=quantize, threads=threads) for threads in (1, 2)]
    texts = [tokens(length, seed=length).tolist() for length in range(3, 21)]
    for engine, several in zip(engines, (1, 16), strict=True):
        caches = [engine.new_cache() for _ in texts[:several]]
        engine.hidden_rows([text[:-1] for text in texts[:several]], caches)
        others = copy.deepcopy(caches)
        last = [text[-1:] for text in texts[:several]]
        found = engine.outlooks(last, caches)
        states = torch.cat(engine.hidden_rows(last, others))
        expected, again = engine.logits_rows(states), engine.outlook_rows(states)
        for (outlook,), row, other in zip(found, expected, again, strict=True):
            assert np.array_equal(outlook.values, row)  # and it has kept them while others came into their place
            assert (outlook.largest, outlook.spread, outlook.best) == (other.largest, other.spread, other.best)


def test_outlooks_of_pieces_and_of_more_rows_than_the_head_takes() -> None:
    engine = compiled(make("llama"), threads=2)
    texts = [tokens(1 + length % 5, seed=length).tolist() for length in range(19)]
    found = engine.outlooks(texts, [engine.new_cache() for _ in texts])
    for text, outlooks in zip(texts, found, strict=True):
        cache = engine.new_cache()
        alone = [engine.outlooks([[token]], [cache])[0][0] for token in text]
        assert [np.array_equal(a.values, b.values) for a, b in zip(alone, outlooks, strict=True)] == [True] * len(text)
        assert [a.spread for a in alone] == [b.spread for b in outlooks]
    assert engine.outlooks([[1]], [engine.new_cache()], wanted=[0]) == [[]]


def test_steps_keep_their_logits_when_the_next_come() -> None:
    engine = compiled(make("llama"))
    one = generate_ids(engine, [1, 2, 3], GenerationSettings(max_new_tokens=6))
    other = generate_ids(engine, [4, 5], GenerationSettings(max_new_tokens=6))
    steps = [(next(one), next(other)) for _ in range(6)]
    for prompt, of in (([1, 2, 3], 0), ([4, 5], 1)):
        text = [*prompt, *(pair[of].id for pair in steps)]
        with torch.no_grad():
            expected = engine(torch.tensor([text]))[0, len(prompt) - 1 : -1].double().numpy()
        assert all(np.array_equal(pair[of].logits, row) for pair, row in zip(steps, expected, strict=True))


ODD: list[dict[str, Any]] = [
    {"do_sample": False},
    {"top_k": 1, "temperature": 1.7},
    {"temperature": 1e-6},
    {"top_k": 139},
    {"top_k": 10**6, "temperature": 1.3},
    {"top_k": 0, "top_p": 0.4},
    {"top_k": 0, "min_p": 1.0},
    {"min_p": 0.2, "top_k": 128},
    {"repetition_penalty": 1.8, "presence_penalty": 1.5, "frequency_penalty": -0.5},
    {"logit_bias": {7: 100.0}},
    {"bad_words_ids": [[i] for i in range(1, 138)]},
    {"no_repeat_ngram_size": 1, "max_new_tokens": 30},
    {"n": 3, "temperature": 1.5},
    {"sampler_order": ("top_k", "temperature"), "temperature": 1.5},
]


@pytest.mark.parametrize("given", ODD, ids=lambda given: ",".join(given))
@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_odd_settings_give_the_same_tokens_everywhere(given: dict[str, Any], cache_dtype: Any) -> None:
    network = make("mistral")
    kinds: list[Any] = [compiled(network, threads=threads, cache_dtype=cache_dtype) for threads in (1, 2)]
    kinds += [network] if cache_dtype == "float32" else []
    texts = [written(kind, given) for kind in kinds]
    assert all(text == texts[0] for text in texts)


def written(network: Any, given: dict[str, Any]) -> list[list[int]]:
    chosen = GenerationSettings(**{"max_new_tokens": 25, "seed": 3, **given})
    prompt = tokens(40, seed=5).tolist()
    return [[step.id for step in generate_ids(network, prompt, chosen, choice=i)] for i in range(chosen.n)]


def test_settings_that_leave_no_token_are_refused_by_both() -> None:
    network = make("llama")
    for kind in (network, compiled(network)):
        with pytest.raises(UsageError, match="must leave a token to choose from"):
            written(kind, {"bad_words_ids": [[i] for i in range(139)]})
