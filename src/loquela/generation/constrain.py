"""Text that must fit a JSON schema or a regular expression, through the llguidance library.

A constraint removes, before any sampling rule, the tokens after which the text could no longer become what is asked
for; what is left keeps the model's own proportions. It ends the text when nothing may follow.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from loquela.errors import LoquelaError, UsageError
from loquela.generation.rules import Logits
from loquela.text.tokenizer import Tokenizer

__all__ = ["Constraint", "constraint", "json_constraint", "regex_constraint", "token_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_COMPACT: Any = {"whitespace_pattern": r" ?"}  # a model that may write blanks without end sometimes does


class Constraint:
    """A compiled JSON schema or regular expression; `start` gives the guide of one text."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int]) -> None:
        self._matcher, self._end_ids = matcher, end_ids

    def start(self) -> MatcherGuide:
        """Return the guide of a text that has not begun."""
        return MatcherGuide(self._matcher.deep_copy(), self._end_ids)


class MatcherGuide:
    """Follows one text; see `loquela.generation.decode.Guide`."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int]) -> None:
        self._matcher, self._end_ids = matcher, end_ids

    def fork(self) -> MatcherGuide:
        """Return a guide that goes on from here by itself."""
        return MatcherGuide(self._matcher.deep_copy(), self._end_ids)

    def allow(self, logits: Logits) -> Logits:
        """Return `logits` (vocab,) with -inf for every token that cannot come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if len(allowed) < len(logits):  # rows of the model beyond the tokenizer's tokens
            allowed = np.pad(allowed, (0, len(logits) - len(allowed)))
        if self._matcher.is_error() or not allowed.any():
            raise LoquelaError(f"the constraint cannot go on: {_first_line(self._matcher.get_error())}")
        return np.where(allowed, logits, -np.inf)

    def take(self, token: int) -> bool:
        """Go on by `token`; return whether the text is whole and nothing may follow."""
        if token in self._end_ids:
            return True
        if not self._matcher.consume_token(token):
            why = _first_line(self._matcher.get_error())
            raise UsageError(f"the settings must leave a token that fits the constraint, but leave {token}: {why}")
        return bool(self._matcher.is_stopped())


def json_constraint(
    tokenizer: Tokenizer, schema: str | Mapping[str, Any] | bool, end_ids: frozenset[int] | None = None
) -> Constraint:
    """Return the constraint of a JSON schema (a mapping, or its JSON); raises `UsageError` for one that is none.

    `{"type": "object"}` asks for any JSON object.
    """
    try:
        table = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(table, Mapping | bool):
            raise ValueError("it is neither an object nor true or false")
        if table is False:
            raise ValueError("nothing fits `false`")
        table = {} if table is True else table  # the same, and what the library takes
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(table), overrides=_COMPACT)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema must be valid, but is not: {_first_line(str(error))}") from None
    return _compiled(tokenizer, grammar, end_ids, "the JSON schema must be one that can be followed, but")


def regex_constraint(tokenizer: Tokenizer, pattern: str, end_ids: frozenset[int] | None = None) -> Constraint:
    """Return the constraint of a regular expression (Rust's syntax) that the whole text must match."""
    grammar = LLMatcher.grammar_from_regex(pattern)
    return _compiled(tokenizer, grammar, end_ids, "the regular expression must be one that can be followed, but")


def constraint(
    tokenizer: Tokenizer,
    *,
    json_schema: str | Mapping[str, Any] | bool | None = None,
    regex: str | None = None,
    end_ids: frozenset[int] | None = None,
) -> Constraint | None:
    """Return the constraint that is asked for, if any; raises `UsageError` for two at once."""
    if json_schema is not None and regex is not None:
        raise UsageError("a text must follow one constraint, but both json_schema and regex are given")
    if json_schema is not None:
        return json_constraint(tokenizer, json_schema, end_ids)
    return None if regex is None else regex_constraint(tokenizer, regex, end_ids)


def _compiled(tokenizer: Tokenizer, grammar: str, end_ids: frozenset[int] | None, wrong: str) -> Constraint:
    if end_ids is None:
        end_ids = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    matcher = LLMatcher(_vocabulary(tokenizer, end_ids), grammar, log_level=0)
    if matcher.is_error():
        raise UsageError(f"{wrong} {_first_line(matcher.get_error())}")
    return Constraint(matcher, end_ids)


@dataclass(frozen=True)
class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    tokenizer: Tokenizer
    bos_token_id: int | None = None

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode(errors="replace")
        return self.tokenizer.encode(text, add_special_tokens=False)


_known: weakref.WeakKeyDictionary[Tokenizer, dict[frozenset[int], LLTokenizer]] = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer, end_ids: frozenset[int]) -> LLTokenizer:
    """The library's view of `tokenizer`, made once: it is a tree of all tokens' bytes."""
    views = _known.setdefault(tokenizer, {})
    ends = frozenset(end for end in end_ids if end < tokenizer.vocab_size)
    if ends not in views:
        tokens = [token_bytes(tokenizer, token) for token in range(tokenizer.vocab_size)]
        specials = set(tokenizer.special_tokens.values()) | ends
        nothing = len(tokens)  # a model without an end token: one that its logits do not have
        if not ends:
            tokens.append(b"<end>")
            specials.add(nothing)
        special_ids = sorted(specials | {i for i, token in enumerate(tokens) if not token})
        wrapper = TokenizerWrapper(_Vocabulary(tokens, special_ids, min(ends, default=nothing), tokenizer))
        views[ends] = LLTokenizer(wrapper, eos_token=sorted(ends) or [nothing])
    return views[ends]


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """Return the bytes by which `token` makes a text longer, which is not at its beginning; none for no token."""
    try:
        text = tokenizer.token(token)
    except LoquelaError:
        return b""
    if token in tokenizer.special_tokens.values():
        return text.encode()
    if found := re.fullmatch(r"(?:<0x[0-9A-F]{2}>)+", text):
        return bytes(int(byte, 16) for byte in _BYTE_TOKEN.findall(found[0]))
    if tokenizer.kind == "wordpiece":
        return text[2:].encode() if text.startswith("##") else b" " + text.encode()
    return text.encode()


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:200]
