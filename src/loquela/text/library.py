"""What one must know of the `tokenizers` library: how it fails, and how it writes a byte as a character."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loquela.errors import LoquelaError, TokenizerError

__all__ = ["BYTE_OF", "library_errors"]


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever the library raises, the panics of its Rust included, into a `TokenizerError` that says `what`."""
    try:
        yield
    except LoquelaError:
        raise
    except BaseException as error:
        # A panic is no Exception, so that nothing catches it by accident; its type cannot be imported.
        if type(error).__name__ != "PanicException" and (
            not isinstance(error, Exception) or isinstance(error, MemoryError)
        ):
            raise
        raise TokenizerError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def _byte_of() -> dict[str, int]:
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF = _byte_of()
"""GPT-2's table: the printable character that stands for a byte in a byte-level vocabulary → the byte."""
