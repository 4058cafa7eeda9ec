"""Entities out of tags, against another reading of the same definition."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.evaluation.spans import entities, entity_f1, has_entities

TAGS = ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"]
sentence = st.lists(st.sampled_from(TAGS), max_size=12)
LETTERS = dict(zip(TAGS, "OBIESbies", strict=True))  # one letter a tag, so that a pattern can say what an entity is
PATTERN = re.compile("S|BI*E?|I+E?|E|s|bi*e?|i+e?|e")


@given(sentence)
def test_equal_to_a_pattern_over_the_tags(tags: list[str]) -> None:
    text = "".join(LETTERS[tag] for tag in tags)
    expected = {("X" if m[0].isupper() else "Y", m.start(), m.end()) for m in PATTERN.finditer(text)}
    assert entities(tags) == expected


@given(st.lists(st.tuples(sentence, st.randoms(use_true_random=False)), max_size=4))
def test_f1_is_that_of_precision_and_recall(pairs: list[tuple[list[str], object]]) -> None:
    gold = [tags for tags, _ in pairs]
    said = [[random.choice([tag, "O", "B-X"]) for tag in tags] for tags, random in pairs]  # type: ignore[attr-defined]
    found = [(i, *span) for i, tags in enumerate(said) for span in entities(tags)]
    wanted = [(i, *span) for i, tags in enumerate(gold) for span in entities(tags)]
    right = len([span for span in found if span in wanted])
    precision, recall = right / len(found) if found else 0, right / len(wanted) if wanted else 0
    expected = 2 * precision * recall / (precision + recall) if right else 0.0
    assert entity_f1(gold, said) == pytest.approx(expected)


def test_by_hand() -> None:
    tags = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-ORG"]
    assert entities(tags) == {("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5), ("ORG", 5, 6)}
    assert entity_f1([tags], [["B-PER", "O", "O", "I-LOC", "I-LOC", "I-ORG"]]) == pytest.approx(2 * 1 / (4 + 3))
    assert has_entities(tags)
    assert not has_entities(["NOUN", "O"])
    assert not has_entities(["O"])
