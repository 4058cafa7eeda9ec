"""Many items computed together: the same bits as each alone, whatever stands beside it and in whatever order."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TEXT, make
from test_local import CHOICES, CONTEXT, plain

from loquela.engine.choosing import Engine
from loquela.errors import ContextWindowError, UsageError
from loquela.evaluation import local
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate
from loquela.evaluation.subject import Answer, Question
from loquela.text.tokenizer import Tokenizer

PREFIX = TEXT[:300] + "\n\n"


@pytest.fixture(scope="module", params=["gpt2", "llama", "t5"])
def fast(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LocalSubject:
    subject = LocalSubject(make(request.param, tokenizer), request.param, engine="auto")
    assert subject.computes_together
    return subject


def asked(questions: list[dict[str, Any]]) -> list[Question]:
    """Questions with and without prefix, with one continuation and with several; two contexts are asked twice."""
    found = [
        Question(
            ("" if i % 2 else PREFIX) + row["question"],
            tuple(f" {choice}" for choice in row["choices"][: 1 if i % 5 == 0 else None]),
            "" if i % 2 else PREFIX,
        )
        for i, row in enumerate(questions[:24])
    ]
    return [*found, found[3], found[4], Question("", (" the cat", " no"))]


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT + " ", "the", ""])
def test_equal_to_a_plain_computation(fast: LocalSubject, context: str) -> None:
    if context == "" and fast.kind == "encoder-decoder":
        pytest.skip("a source must have a token")
    for found, choice in zip(fast.likelihoods(context, CHOICES), CHOICES, strict=True):
        log_prob, tokens, greedy = plain(fast, context, choice)
        assert (found.tokens, found.greedy) == (tokens, greedy)
        assert found.log_prob == pytest.approx(log_prob, abs=2e-5)


@pytest.fixture(scope="module")
def alone(fast: LocalSubject, questions: list[dict[str, Any]]) -> list[Answer]:
    """Each question by itself, with nothing kept from the one before."""
    found: list[Answer] = []
    for question in asked(questions):
        fast.forget()
        found.append(fast.likelihoods(question.context, question.continuations, prefix=question.prefix))
    return found


@settings(max_examples=12)
@given(order=st.randoms(use_true_random=False), together=st.integers(1, 3000), kept=st.booleans())
def test_no_batch_size_and_no_order_changes_a_bit(
    fast: LocalSubject,
    alone: list[Answer],
    questions: list[dict[str, Any]],
    order: random.Random,
    together: int,
    kept: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "TOKENS", together)
        numbers = list(range(len(alone)))
        order.shuffle(numbers)
        if not kept:
            fast.forget()
        everything = asked(questions)
        found = list(fast.several(everything[i] for i in numbers))
    assert found == [alone[i] for i in numbers]


def test_items_that_are_computed_alone_answer_the_same(writer: LocalSubject, questions: list[dict[str, Any]]) -> None:
    assert not writer.computes_together
    some = asked(questions)[:8]
    expected = [writer.likelihoods(q.context, q.continuations, prefix=q.prefix) for q in some]
    assert list(writer.several(some[::-1])) == expected[::-1]


def test_one_that_does_not_fit_leaves_its_neighbours_alone(fast: LocalSubject) -> None:
    if fast.kind == "encoder-decoder":
        pytest.skip("T5 reads sources of any length")
    fits = Question(CONTEXT, tuple(CHOICES))
    first, long, last = fast.several([fits, Question(TEXT, (" x",)), fits])
    assert isinstance(long, ContextWindowError)
    assert first == last == fast.likelihoods(CONTEXT, CHOICES)
    with pytest.raises(ContextWindowError, match="context window of 256 tokens, but have"):
        fast.likelihoods(TEXT, [" x"])


def test_no_more_questions_are_taken_than_are_computed(fast: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TOKENS", 64)
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield Question(CONTEXT, tuple(CHOICES))

    next(fast.several(endless()))
    assert taken < 10


def test_records_do_not_depend_on_what_else_is_asked(
    fast: LocalSubject, questions: list[dict[str, Any]], rows_file: Callable[..., Path]
) -> None:
    path = rows_file(questions)
    few, many = (evaluate(fast, path, limit=limit, corrected=True).results["set"].records for limit in (5, 40))
    by_number = {record["item"]: record for record in many}
    assert all(by_number[record["item"]] == record for record in few)


def test_which_engine_computes(tokenizer: Tokenizer) -> None:
    model = make("llama", tokenizer)
    assert not LocalSubject(model).computes_together  # as it says nothing of an engine
    model.engine = Engine()  # type: ignore[attr-defined]
    assert LocalSubject(model).computes_together
    assert not LocalSubject(model, engine="torch").computes_together
    wide = make("llama", tokenizer)
    wide.network = copy.deepcopy(wide.network).double()
    assert not LocalSubject(wide, engine="auto").computes_together
    assert not LocalSubject(make("lstm", tokenizer), engine="auto").computes_together
    with pytest.raises(UsageError, match="compiled"):
        LocalSubject(make("lstm", tokenizer), engine="compiled").likelihoods("the", [" cat"])
    with pytest.raises(UsageError, match="engine must be one of"):
        evaluate(LocalSubject(model), "sst2", engine="fast")
