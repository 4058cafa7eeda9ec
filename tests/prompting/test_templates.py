"""Templates: look-ups and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import DataError, UsageError
from loquela.prompting.templates import FILTERS, fill, look_up

ROW = {"a": "x", "n": 3, "choices": {"text": ["red", "blue"]}, "list": ["u", "v"], "s": "The end is near. "}


def test_fields_inner_fields_and_filters() -> None:
    assert fill("{a}{n} {choices.text.1} {list.0} {{a}}", ROW) == "x3 blue u {a}"
    assert fill("{s|no_period|lower}|{s|last_word}|{s|but_last_word}", ROW) == "the end is near|near.|The end is"
    assert fill("{t|before_blank}+{t|after_blank|strip}", {"t": "so _ won it"}) == "so +won it"
    assert fill("{t|uncapital}", {"t": "The cat"}) == "the cat"
    assert fill("{t|uncapital}", {"t": "I'm"}) == "I'm"
    assert fill("{t|one_line}", {"t": " a\n b "}) == "a b"


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(DataError, match="must have the field 'b' that the task names, but has a, n"):
        fill("{b}", ROW)
    with pytest.raises(DataError):
        fill("{choices.text.7}", ROW)
    with pytest.raises(DataError):
        fill("{a.b}", ROW)
    with pytest.raises(UsageError, match="did you mean 'lower'"):
        fill("{a|lowre}", ROW)


@pytest.mark.parametrize("path", ["a.__class__", "__class__", "choices.__len__", "a.upper"])
def test_no_attribute_is_ever_read(path: str) -> None:
    with pytest.raises(DataError):
        look_up(ROW, path)


@given(st.text(), st.sampled_from(sorted(FILTERS)))
def test_any_text_survives_any_filter(text: str, name: str) -> None:
    assert isinstance(fill(f"{{t|{name}}}", {"t": text}), str)


@given(st.text(alphabet=st.characters(exclude_characters="{}")))
def test_a_template_without_fields_is_itself(text: str) -> None:
    assert fill(text, {}) == text
