"""Entities out of the tags of words, and how many of them are right (CoNLL-2003's score; doi:10.3115/1119176.1119195).

Tags are B-, I-, E- or S- and a kind, or O. An entity is found leniently, as CoNLL's own script does: it goes on as long
as I- or E- of its kind follows, and I- or E- begins one where none of its kind is open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["Span", "entities", "entity_f1", "has_entities"]

Span = tuple[str, int, int]
"""An entity: its kind, its first word, and the word after its last one."""
_TAG = re.compile(r"O|[BIES]-.+")


def has_entities(tags: Iterable[str]) -> bool:
    """Whether tags mark entities: each is O or a beginning (or going on) of a kind, and one is not O."""
    found = set(tags)
    return all(_TAG.fullmatch(tag) for tag in found) and bool(found - {"O"})


def entities(tags: Sequence[str]) -> set[Span]:
    """Return the entities of a sentence."""
    found: set[Span] = set()
    kind, start = "", 0  # of the one that is open, if any
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and not (prefix in ("I", "E") and own == kind):
            found.add((kind, start, place))
            kind = ""
        if own and not kind:
            kind, start = own, place
        if kind and prefix in ("E", "S"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return F1 of the entities of all sentences together; 0 where there is none in either."""
    right = asked = answered = 0
    for tags, said in zip(gold, predicted, strict=True):
        own, theirs = entities(tags), entities(said)
        right, asked, answered = right + len(own & theirs), asked + len(own), answered + len(theirs)
    return 2 * right / (asked + answered) if asked + answered else 0.0
