"""Whether a stranger's regular expression fits a name, in a time that no pattern can blow up.

An adapter's config may choose layers by a pattern, and Python's matcher tries ways one after the other: `(a+)+b` takes
years. Here a pattern maps the positions where it may begin to those where it may end, all at once, each part of it once
per position. Groups that refer back to what another matched are refused, as are patterns over 1,000 characters.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from loquela.errors import ConfigError

__all__ = ["fits"]

MAX_LENGTH, MAX_STEPS = 1_000, 50_000
_PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
}


def fits(pattern: str, text: str) -> bool:
    """Whether `pattern` fits the whole `text`, as `re.fullmatch` says; raises `ConfigError` for one not supported."""
    if len(pattern) > MAX_LENGTH:
        raise ConfigError(f"a pattern of an adapter must have at most {MAX_LENGTH:,} characters, not {len(pattern):,}")
    try:
        parsed = _PARSER.parse(pattern)
        if parsed.state.flags & ~re.UNICODE:
            raise ConfigError(f"a pattern of an adapter must be without flags, but is {pattern!r:.100}")
        return len(text) in _Text(text).ends(parsed, 0)
    except (re.error, OverflowError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"a pattern of an adapter must be a regular expression, but {pattern!r:.100}: {reason}"
        ) from None


class _Text:
    """One text, and where each part of a pattern ends in it, by where it begins."""

    def __init__(self, text: str) -> None:
        self.text, self.steps = text, 0
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, parts: Any, start: int) -> frozenset[int]:
        """Return where the sequence `parts` can end when it begins at `start`."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ConfigError("a pattern of an adapter must be plain, but takes too long: name the layers in a list")
        key = id(parts), start
        if key not in self._known:
            places = frozenset({start})
            for operation, argument in parts:
                places = frozenset(end for place in places for end in self._step(str(operation), argument, place))
                if not places:
                    break
            self._known[key] = places
        return self._known[key]

    def _step(self, operation: str, argument: Any, start: int) -> Iterable[int]:
        match operation:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                inside = start < len(self.text) and _is_one(operation, argument, self.text[start])
                return (start + 1,) if inside else ()
            case "SUBPATTERN":
                _, on, off, parts = argument
                if on or off:
                    _refuse(operation)
                return self.ends(parts, start)
            case "BRANCH":
                return {end for parts in argument[1] for end in self.ends(parts, start)}
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, repeated = argument
                return self._repeated(int(least), int(most), repeated, start)
            case "AT":
                return (start,) if self._is_at(str(argument), start) else ()
            case "ASSERT" | "ASSERT_NOT" if argument[0] == 1:
                return (start,) if bool(self.ends(argument[1], start)) == (operation == "ASSERT") else ()
        return _refuse(operation)

    def _repeated(self, least: int, most: int, parts: Any, start: int) -> set[int]:
        places = {start}
        for _ in range(least):
            after = {end for place in places for end in self.ends(parts, place)}
            if after == places:  # more of it changes nothing
                break
            places = after
        found, new = set(places), places
        for _ in range(least, most):
            new = {end for place in new for end in self.ends(parts, place)} - found
            if not new:
                break
            found |= new
        return found

    def _is_at(self, where: str, place: int) -> bool:
        match where:
            case "AT_BEGINNING" | "AT_BEGINNING_STRING":
                return place == 0
            case "AT_END" | "AT_END_STRING":
                return place == len(self.text)
            case "AT_BOUNDARY" | "AT_NON_BOUNDARY":
                word = _CATEGORIES["CATEGORY_WORD"]
                before = place > 0 and word(self.text[place - 1])
                after = place < len(self.text) and word(self.text[place])
                return (before != after) == (where == "AT_BOUNDARY")
        return bool(_refuse(where))


def _is_one(operation: str, argument: Any, character: str) -> bool:
    """Whether one character is what a part of a pattern says."""
    match operation:
        case "ANY":
            return character != "\n"
        case "LITERAL" | "NOT_LITERAL":
            return bool(ord(character) == argument) == (operation == "LITERAL")
        case "RANGE":
            return bool(argument[0] <= ord(character) <= argument[1])
        case "CATEGORY":
            name = str(argument)
            return _CATEGORIES[name.replace("_NOT_", "_")](character) != ("_NOT_" in name)
    negated = bool(str(argument[0][0]) == "NEGATE")
    return any(_is_one(str(op), value, character) for op, value in argument[negated:]) != negated


def _refuse(operation: str) -> tuple[int, ...]:
    """Refuse what cannot be matched in this way."""
    raise ConfigError(f"a pattern of an adapter must do without {operation.lower()}: name the layers in a list instead")
