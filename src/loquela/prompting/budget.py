"""The context window is a budget that prompt and completion share."""

from __future__ import annotations

from collections.abc import Sequence

from loquela.errors import ContextWindowError

__all__ = ["fit"]


def fit(prompt: Sequence[int], window: int, max_new_tokens: int, *, truncate: bool = False) -> list[int]:
    """Return the `prompt`'s token ids, or with `truncate` their last ones, so that a completion has room.

    Without `truncate` the prompt must leave room for one new token in the `window`. With it, a prompt is cut at its
    start until `max_new_tokens` fit as well, but never below half the window; the caller compares lengths and says so.
    Raises `ContextWindowError` that says both numbers.
    """
    if truncate:
        return list(prompt[-max(window - max(1, max_new_tokens), window // 2) :])
    if len(prompt) >= window:
        raise ContextWindowError(
            f"the prompt must leave room for a new token in the context window of {window} tokens, but has "
            f"{len(prompt)}: shorten it, or truncate it to its last tokens (--truncate, or truncate=True)"
        )
    return list(prompt)
