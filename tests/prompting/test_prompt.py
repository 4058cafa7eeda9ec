"""A prompt is as large as the window takes it, and never cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import ContextWindowError
from loquela.prompting.prompt import Form, build
from loquela.prompting.shots import Example

SHOTS = [Example(f"q{i}", f"a{i}") for i in range(5)]


def count(text: str) -> int:
    return len(text)


def test_the_parts_and_what_stands_between_them() -> None:
    prompt = build("Q?", SHOTS[:2], form=Form("Answer.", "\n--\n", ": "), count=count)
    assert prompt.text == "Answer.\n--\nq0: a0\n--\nq1: a1\n--\nQ?"
    assert prompt.prefix == prompt.text.removesuffix("Q?")
    assert (prompt.shots, prompt.dropped, prompt.tokens) == (2, 0, len(prompt.text))
    assert build("Q?").text == "Q?"


@given(st.integers(0, 80), st.integers(0, 10))
def test_whole_shots_are_dropped_the_farthest_first(window: int, room: int) -> None:
    def whole(kept: int) -> str:
        return build("Q?", SHOTS[5 - kept :]).text

    fitting = [kept for kept in range(6) if len(whole(kept)) + room <= window]
    if not fitting:
        with pytest.raises(ContextWindowError, match=f"window of {window} tokens, but have {2 + room}"):
            build("Q?", SHOTS, count=count, window=window, answer_tokens=room)
        return
    prompt = build("Q?", SHOTS, count=count, window=window, answer_tokens=room)
    assert prompt.text == whole(max(fitting))
    assert (prompt.shots, prompt.dropped) == (max(fitting), 5 - max(fitting))
