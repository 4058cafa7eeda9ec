"""Pieces of text to token ids that are the ids of the whole documents, in bounded memory and on all cores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from loquela.data.readers import Piece
from loquela.text.tokenizer import Tokenizer

__all__ = ["encode_pieces", "end_of"]

_BATCH = 32  # pieces that are tokenised together: about a megabyte of text


def end_of(tokenizer: Tokenizer) -> list[int]:
    """Return the token that ends a document, if there is one: the end token, else the separator ([SEP])."""
    separator = tokenizer.roles.get("sep")
    end = tokenizer.eos_id if tokenizer.eos_id is not None or separator is None else tokenizer.id_of(separator)
    return [] if end is None else [end]


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[Piece], *, end: Sequence[int] = ()
) -> Iterator[tuple[list[int], Piece]]:
    """Yield each piece with its ids; `end` is put after each document, no other special token around anything.

    The ids of a document's pieces, one after the other, are those of the document encoded at once, because
    `read_pieces` cuts where no token reaches across.
    """
    begins = True  # whether the next piece is the first of its document
    pieces = iter(pieces)
    while batch := list(itertools.islice(pieces, _BATCH)):
        *first, begins = [begins, *(piece.ends_document for piece in batch)]
        heads = iter(tokenizer.encode_batch(_texts(batch, first, True), add_special_tokens=False))
        tails = iter(tokenizer.encode_continuations(_texts(batch, first, False)))
        for piece, is_first in zip(batch, first, strict=True):
            ids = next(heads if is_first else tails)
            yield ids + list(end) if piece.ends_document else ids, piece


def _texts(batch: list[Piece], first: list[bool], wanted: bool) -> list[str]:
    return [piece.text for piece, is_first in zip(batch, first, strict=True) if is_first is wanted]
