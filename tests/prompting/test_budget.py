"""The context window as a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import ContextWindowError
from loquela.prompting.budget import fit


@given(st.integers(0, 100), st.integers(2, 60), st.integers(0, 100), st.booleans())
def test_a_prompt_is_whole_or_an_error_or_its_last_tokens(length: int, window: int, new: int, truncate: bool) -> None:
    prompt = list(range(length))
    if not truncate and length >= window:
        with pytest.raises(ContextWindowError) as error:
            fit(prompt, window, new)
        assert f"{window} tokens, but has {length}" in str(error.value)
        return
    kept = fit(prompt, window, new, truncate=truncate)
    assert kept == prompt[length - len(kept) :]
    assert len(kept) < window
    if truncate:
        assert len(kept) == length or len(kept) == max(window - max(1, new), window // 2)
    else:
        assert len(kept) == length
