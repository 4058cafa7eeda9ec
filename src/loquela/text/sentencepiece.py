"""SentencePiece models (Kudo and Richardson, arXiv:1808.06226) as tokenizers of the `tokenizers` library.

A model file is a protocol buffer (sentencepiece_model.proto), of which a dozen fields matter; they are read here, so
that nothing but this library is needed. GGUF files carry the same pieces under other names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from loquela.errors import TokenizerError

__all__ = [
    "BLANK",
    "BYTE",
    "CONTROL",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Piece",
    "Pieces",
    "build",
    "parse",
]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BLANK = "\u2581"
"""How a blank is written inside a piece."""
_UNIGRAM, _BPE = 1, 2
_ROLES = {40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}
"""Field of the trainer's settings → the role whose id it holds, and the id when it is left out."""


class Piece(NamedTuple):
    """One token: its text with `BLANK` for blanks, its score (higher is better), its type."""

    text: str
    score: float
    type: int = NORMAL


@dataclass
class Pieces:
    """A SentencePiece model; ids are places in `pieces`. `charsmap` is its compiled Unicode normalisation."""

    pieces: Sequence[Piece]
    unigram: bool
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_blanks: bool = False
    roles: dict[str, int] = field(default_factory=dict)
    """unk, bos, eos, pad → id, where there is one."""


def parse(data: bytes) -> Pieces:
    """Read the content of a `.model` file; raises `TokenizerError`."""
    try:
        return _parse(data)
    except (ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"a SentencePiece model must be a ModelProto, but is not: {error}") from error


def build(model: Pieces, *, add_bos: bool, add_eos: bool) -> tokenizers.Tokenizer:
    """Return the tokenizer that cuts a text as `model` does; raises `TokenizerError` where none can.

    As in llama.cpp, the blank before a text also stands before what follows a special token in the text.
    """
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    if len(vocabulary) < len(model.pieces):
        raise TokenizerError("the pieces of a vocabulary must differ from each other, but do not")
    unknown = model.roles.get("unk")
    if model.byte_fallback and not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        raise TokenizerError("a vocabulary with byte fallback must have the pieces <0x00> to <0xFF>, but lacks some")
    if model.unigram:
        scores = [(piece.text, piece.score if piece.type == NORMAL else _never(piece)) for piece in model.pieces]
        core: models.Model = models.Unigram(vocab=scores, unk_id=unknown, byte_fallback=model.byte_fallback)
    else:
        core = models.BPE(
            vocab=vocabulary,
            merges=merges(model.pieces),
            unk_token=None if unknown is None else model.pieces[unknown].text,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    backend = tokenizers.Tokenizer(core)
    backend.normalizer = normalizers.Sequence(list(_normalisers(model)))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []),
        ]
    )
    whole = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    backend.add_tokens([AddedToken(text.replace(BLANK, " "), normalized=False) for text in whole if BLANK not in text])
    special = [piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    around(backend, model.roles["bos"] if add_bos else None, model.roles["eos"] if add_eos else None)
    return backend


def around(backend: tokenizers.Tokenizer, bos: int | None, eos: int | None) -> None:
    """Let `backend` put the tokens `bos` and `eos`, where given, around every text."""
    start = [] if bos is None else [backend.id_to_token(bos)]
    end = [] if eos is None else [backend.id_to_token(eos)]
    if start or end:
        template = processors.TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *end, *(f"{name}:1" for name in start), "$B:1", *(f"{name}:1" for name in end)],
            special_tokens=[(name, index) for name, index in zip([*start, *end], _ids(bos, eos), strict=True)],
        )
        # What a byte-level tokenizer does to offsets goes on.
        old = backend.post_processor
        backend.post_processor = template if old is None else processors.Sequence([old, template])


def merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return the pairs that join to a piece, best score first: SentencePiece always joins to the best piece."""
    joined = {piece.text for piece in pieces if piece.type in (NORMAL, USER_DEFINED, UNUSED)}
    by_score = sorted(
        (p for p in pieces if p.text in joined), key=lambda piece: -piece.score
    )  # stable: lowest id first
    return [
        (text[:cut], text[cut:])
        for text, _, _ in by_score
        for cut in range(1, len(text))
        if text[:cut] in joined and text[cut:] in joined
    ]


def _ids(*given: int | None) -> list[int]:
    return [index for index in given if index is not None]


def _never(piece: Piece) -> float:
    """A score that no text's best cut reaches; a byte's piece is chosen by the fallback alone."""
    return piece.score if piece.type == USER_DEFINED else -1e9


def _normalisers(model: Pieces) -> Iterator[normalizers.Normalizer]:
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.remove_extra_blanks:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.dummy_prefix:
        yield normalizers.Prepend(BLANK)
    yield normalizers.Replace(" ", BLANK)


def _parse(data: bytes) -> Pieces:
    pieces: list[Piece] = []
    trainer: Mapping[int, Any] = {}
    normaliser: Mapping[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            found = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", found.get(2, bytes(4)))[0]
            if not math.isfinite(score):
                raise ValueError(f"the score of piece {len(pieces)} is not finite")
            pieces.append(Piece(_bytes(found[1]).decode() if 1 in found else "", score, _whole(found.get(3, NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normaliser = dict(_fields(_bytes(value)))
    kind = trainer.get(3, _UNIGRAM)
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise ValueError("it must have pieces, of type unigram or bpe")
    if trainer.get(24):
        raise ValueError("treat_whitespace_as_suffix is not supported")
    ids = {role: _signed(trainer.get(number, default)) for number, (role, default) in _ROLES.items()}
    return Pieces(
        pieces,
        unigram=kind == _UNIGRAM,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_bytes(normaliser.get(2, b"")),
        dummy_prefix=bool(normaliser.get(3, 1)),
        remove_extra_blanks=bool(normaliser.get(4, 1)),
        roles={role: index for role, index in ids.items() if 0 <= index < len(pieces)},
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: their numbers, and an int (varint) or bytes (all else)."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"{wire} is no wire type")
        if position + length > len(data):
            raise ValueError("it ends early")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number in it has no end")


def _signed(value: Any) -> int:
    number = _whole(value)
    return number - (1 << 64) if number >= 1 << 63 else number


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("a field that must be a number is none")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field that must be text is a number")
    return value
