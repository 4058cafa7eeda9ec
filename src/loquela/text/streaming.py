"""Text as it comes, token by token, without half a character."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

__all__ = ["StreamDecoder"]

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class StreamDecoder:
    """Decodes one token at a time; the pieces joined are `decode` of all the tokens.

    Text is withheld while a later token can still change it: an incomplete UTF-8 sequence (which would show as
    U+FFFD), and a run of byte tokens such as `<0xE4>`, which decodes as a whole or not at all. What comes is the
    difference between two decodings of a short window that starts where certain text started, so decoders that treat
    the first token apart (Metaspace, WordPiece) see a first token both times.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], piece: Callable[[int], str | None], hidden: frozenset[int]
    ) -> None:
        self._decode, self._piece, self._hidden = decode, piece, hidden
        self._certain: list[int] = []  # the tokens of the last text that was certain: the left context
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token id; return the text that has become certain, often the token's own, sometimes none."""
        piece = self._piece(token)
        if piece is None or token in self._hidden:
            return ""
        self._pending.append(token)
        if _BYTE_TOKEN.fullmatch(piece):
            return ""
        return self._take(final=False)

    def finish(self) -> str:
        """Return what was withheld, now that no token follows."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._decode(self._certain)
        now = self._decode(self._certain + self._pending)
        if len(now) == len(before) or (now.endswith("\N{REPLACEMENT CHARACTER}") and not final):
            return ""
        self._certain, self._pending = self._pending, []
        return now[len(before) :]
