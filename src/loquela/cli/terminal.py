"""What verbs that read and write a person's text share."""

from __future__ import annotations

import sys

from loquela.errors import TextDecodingError, UsageError

__all__ = ["decoded", "piped_text", "visible", "write"]

_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
"""Control characters → pictures of them: a model's text must not command the terminal that shows it."""


def piped_text(way_out: str) -> str:
    """Return what stdin holds, as UTF-8; raises `UsageError` with the `way_out` when it is a terminal."""
    if sys.stdin.isatty():
        raise UsageError(f"text must be given or piped in: {way_out}")
    return decoded(sys.stdin.buffer.read())


def decoded(piped: bytes) -> str:
    """Return the UTF-8 text that came through a pipe; raises `TextDecodingError`."""
    try:
        return piped.decode()
    except UnicodeDecodeError as error:
        raise TextDecodingError(
            f"stdin must be UTF-8 text, but its byte {error.start} is not: convert it first, for example with iconv -f "
            "latin1 -t utf-8"
        ) from None


def visible(text: str) -> str:
    """Return `text` as a terminal may show it."""
    return text.translate(_VISIBLE)


def write(text: str) -> None:
    """Write a piece of a result to stdout at once: unchanged to a file or a pipe, made visible to a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
