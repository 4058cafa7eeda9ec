"""A prompt from a row of data: `"Question: {question}\\nAnswer:"` and the row's fields.

Nothing but look-ups: a template that comes with someone's task can run nothing and see nothing but its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from loquela.errors import DataError, UsageError, nearest

__all__ = ["FILTERS", "fill", "look_up"]

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_BLANK = re.compile(r"\s+")


def _last_word(text: str) -> str:
    return text.rstrip().rpartition(" ")[2]


def _but_last_word(text: str) -> str:
    return text.rstrip().rpartition(" ")[0]


def _uncapital(text: str) -> str:
    return text if re.match(r"I\b", text) else text[:1].lower() + text[1:]


FILTERS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "uncapital": _uncapital,
    "no_period": lambda text: text.rstrip().removesuffix("."),
    "one_line": lambda text: _BLANK.sub(" ", text).strip(),
    "last_word": _last_word,
    "but_last_word": _but_last_word,
    "before_blank": lambda text: text.partition("_")[0],
    "after_blank": lambda text: text.partition("_")[2],
}
"""What may follow a field: `{premise|no_period}`. `before_blank` and `after_blank` are the text around a `_`."""


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Return `template` with each `{field}`, `{field.inner}`, `{field.0}` or `{field|filter}` of `row` in its place.

    `{{` and `}}` stand for braces. Raises `DataError` for a field that the row lacks, `UsageError` for a filter that
    does not exist.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        path, *filters = match[1].split("|")
        text = str(look_up(row, path))
        for name in filters:
            if name not in FILTERS:
                raise UsageError(
                    f"a filter of a template must be one of {', '.join(FILTERS)}, but is {name!r}"
                    f"{nearest(name, FILTERS)}"
                )
            text = FILTERS[name](text)
        return text

    return _FIELD.sub(value, template)


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at `path` (`answers.text.0`) of a row; raises `DataError` when there is none."""
    value: Any = row
    for name in path.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError, ValueError):
            known = ", ".join(map(str, row))
            raise DataError(f"a row must have the field {path!r} that the task names, but has {known[:200]}") from None
    return value
