"""Which examples are shown, and in which order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import DataError, UsageError
from loquela.prompting.shots import Example, Nearest, allowed, balanced, by_hand, permuted, random_order

examples = st.lists(
    st.builds(Example, st.text(min_size=1, max_size=6), st.text(max_size=3), st.sampled_from("abc")),
    max_size=12,
    unique_by=lambda e: (e.question, e.answer),
)
POOL = [Example(f"question {i}", f"answer {i}", "ab"[i % 3 == 0]) for i in range(30)]


@given(examples, st.integers(0, 5))
def test_an_order_is_the_whole_pool_and_does_not_depend_on_the_files(pool: list[Example], seed: int) -> None:
    for way in (random_order, balanced):
        found = way(pool, seed)
        assert Counter(found) == Counter(pool)
        assert way(pool[::-1], seed) == found


def test_seeds_draw_differently() -> None:
    assert random_order(POOL, 0) != random_order(POOL, 1)


@given(st.integers(0, 20))
def test_labels_take_turns(seed: int) -> None:
    found = balanced(POOL, seed)
    for n in range(2, 20, 2):
        assert Counter(e.label for e in found[:n]) == {"a": n // 2, "b": n // 2}


def test_by_hand() -> None:
    assert by_hand(POOL, [3, 1]) == [POOL[2], POOL[0]]
    with pytest.raises(UsageError, match="from 1 to the 30 examples there are, but is 31"):
        by_hand(POOL, [31])


def test_never_the_question_itself_and_none_twice() -> None:
    pool = [Example("The Cat?", "x"), Example("the  cat?", "y"), Example("The dog?", "z"), Example("the dog? ", "z")]
    assert allowed(pool, Example("THE CAT?", ""), 9) == [pool[2]]
    assert allowed(pool, Example("?", ""), 9) == [pool[0], pool[2]]
    assert allowed(pool, Example("?", ""), 1) == [pool[0]]


def test_nearest_first() -> None:
    vectors = {f"question {i}": [np.cos(i / 10), np.sin(i / 10)] for i in range(30)}
    vectors["asked"] = [np.cos(0.71), np.sin(0.71)]
    nearest = Nearest(POOL, lambda texts: np.array([vectors[t] for t in texts]))
    assert [e.question for e in nearest("asked")[:3]] == ["question 7", "question 8", "question 6"]
    with pytest.raises(DataError):
        Nearest([], lambda texts: np.empty((0, 2)))


@given(examples, st.integers(0, 6))
def test_an_order_shows_the_same_shots(pool: list[Example], order: int) -> None:
    assert Counter(permuted(pool, order)) == Counter(pool)
    assert permuted(pool, order) == permuted(pool, order)
    assert permuted(pool, 0) == pool
