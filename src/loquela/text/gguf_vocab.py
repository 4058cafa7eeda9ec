"""The tokenizer inside a GGUF file (`tokenizer.ggml.*`), in and out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken

from loquela.errors import TokenizerError
from loquela.text import byte_level, sentencepiece, wordpiece
from loquela.text.directory import TokenizerFiles
from loquela.text.sentencepiece import BLANK, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, Pieces

if TYPE_CHECKING:
    from loquela.text.tokenizer import Tokenizer

__all__ = ["read", "write"]

_IDS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so spelt in the format
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_ARRAYS: Mapping[str, Any] = {"tokens": str, "scores": (int, float), "token_type": int, "merges": str}


def read(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """Return the tokenizer that the `metadata` of a GGUF file describe, None when they describe none.

    Raises `TokenizerError` for one that cannot be rebuilt so that it cuts every text as llama.cpp does.
    """
    values = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    kind = values.get("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    for key, types in _ARRAYS.items():
        if key in values and not (isinstance(values[key], list) and all(isinstance(v, types) for v in values[key])):
            raise TokenizerError(f"{_PREFIX}{key} must be a list of {key}, but is not")
    tokens = _without_padding(values)
    roles = {role: values[key] for role, key in _IDS.items() if type(values.get(key)) is int}
    if wrong := [role for role, index in roles.items() if not 0 <= index < len(tokens)]:
        raise TokenizerError(f"the ids of {', '.join(wrong)} must be below the {len(tokens):,} tokens, but are not")
    types = [*values.get("token_type", []), *[NORMAL] * len(tokens)][: len(tokens)]
    if kind == "gpt2":
        backend = _byte_level(values, tokens, types, roles)
    elif kind in ("llama", "t5"):
        backend = _pieces(values, tokens, types, roles, unigram=kind == "t5")
    elif kind == "bert":
        backend = wordpiece.build([_word_piece(token) for token in tokens])
    else:
        raise TokenizerError(f"{_PREFIX}model must be gpt2, llama, t5 or bert, but is {kind!r:.40}")
    template = metadata.get(_TEMPLATE)
    return TokenizerFiles(
        backend.to_str(pretty=True),
        {role: str(backend.id_to_token(index)) for role, index in roles.items()},
        chat_template=template if isinstance(template, str) else None,
    )


def write(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """Return the metadata of a GGUF file that make llama.cpp cut texts as `tokenizer` does.

    `size` is the number of rows of the embedding: ids that no token has become unused ones. Raises `TokenizerError`
    for a tokenizer that llama.cpp has no way to follow.
    """
    if tokenizer.vocab_size > size:
        raise TokenizerError(
            f"the tokenizer must have at most the model's {size:,} tokens, but has {tokenizer.vocab_size:,}"
        )
    description = json.loads(tokenizer.json)
    cut = byte_level.cut_of(description)
    if cut is not None:
        values: dict[str, Any] = {"model": "gpt2", "pre": cut}
        pieces = _listed(tokenizer, description, size)
        values["merges"] = [" ".join(pair) for pair in _merges(description)]
    elif _is_sentencepiece(description):
        values = {"model": "llama", "pre": "default", "add_space_prefix": _adds_blank(description)}
        pieces = _scored(_listed(tokenizer, description, size), _merges(description))
        values["scores"] = [piece.score for piece in pieces]
    else:
        raise TokenizerError(
            "llama.cpp can follow byte-level BPE that cuts words as "
            f"{', '.join(byte_level.CUTS)} do, and BPE with byte fallback, but this tokenizer ({tokenizer.kind}) is "
            "neither: write a model directory instead"
        )
    values["tokens"] = [piece.text for piece in pieces]
    values["token_type"] = [piece.type for piece in pieces]
    for role, key in _IDS.items():
        if role in tokenizer.roles and (index := tokenizer.id_of(tokenizer.roles[role])) is not None:
            values[key] = index
    values["add_bos_token"], values["add_eos_token"] = _around(tokenizer)
    result = {_PREFIX + key: value for key, value in values.items()}
    return result if tokenizer.chat_template is None else result | {_TEMPLATE: tokenizer.chat_template}


def _byte_level(
    values: Mapping[str, Any], tokens: list[str], types: list[int], roles: Mapping[str, int]
) -> tokenizers.Tokenizer:
    pre = values.get("pre", "gpt-2")
    if pre not in byte_level.CUTS:
        raise TokenizerError(f"{_PREFIX}pre must be one of {', '.join(byte_level.CUTS)}, but is {pre!r:.40}")
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    pairs = []
    for merge in values.get("merges", []):
        # A blank is never part of a byte-level piece, so the one that is there divides the two.
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = byte_level.build(vocabulary, pairs, cut=byte_level.CUTS[pre], added=added)
    default = pre == "llama-bpe"
    sentencepiece.around(backend, *_ends(values, roles, add_bos=default))
    return backend


def _pieces(
    values: Mapping[str, Any], tokens: list[str], types: list[int], roles: dict[str, int], *, unigram: bool
) -> tokenizers.Tokenizer:
    scores = [float(score) for score in values.get("scores", [])]
    if len(scores) < len(tokens):
        raise TokenizerError(f"every token of a {values['model']} vocabulary must have a score, but {len(scores)} have")
    charsmap = values.get("precompiled_charsmap", [])
    if isinstance(charsmap, str):
        charsmap = base64.b64decode(charsmap)
    model = Pieces(
        [Piece(*piece) for piece in zip(tokens, scores, types, strict=False)],
        unigram=unigram,
        byte_fallback=BYTE in types,
        charsmap=bytes(b & 0xFF for b in charsmap),
        dummy_prefix=values.get("add_space_prefix", True) is True,
        remove_extra_blanks=values.get("remove_extra_whitespaces", False) is True,
        roles=roles,
    )
    bos, eos = _ends(values, roles, add_bos=not unigram, add_eos=unigram)
    return sentencepiece.build(model, add_bos=bos is not None, add_eos=eos is not None)


def _ends(
    values: Mapping[str, Any], roles: Mapping[str, int], *, add_bos: bool = False, add_eos: bool = False
) -> tuple[int | None, int | None]:
    """The tokens to put before and after every text."""
    bos = roles.get("bos") if values.get("add_bos_token", add_bos) is True else None
    eos = roles.get("eos") if values.get("add_eos_token", add_eos) is True else None
    return bos, eos


def _without_padding(values: Mapping[str, Any]) -> list[str]:
    """The tokens, without those at the end that only fill up the rows of the embedding."""
    tokens: list[str] = values.get("tokens", [])
    types = values.get("token_type", [])
    count = len(tokens)
    while count and count <= len(types) and types[count - 1] == UNUSED and tokens[count - 1] == _filler(count - 1):
        count -= 1
    if not count:
        raise TokenizerError(f"{_PREFIX}tokens must have tokens, but has none")
    return tokens[:count]


def _filler(index: int) -> str:
    return f"[PAD{index}]"


def _word_piece(token: str) -> str:
    """llama.cpp marks where a word begins, BERT where it goes on."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[1:] if token.startswith(BLANK) else "##" + token


def _listed(tokenizer: Tokenizer, description: Mapping[str, Any], size: int) -> list[Piece]:
    """Return one piece for each row of the embedding, its score still nought."""
    pieces = [Piece(_filler(index), 0.0, UNUSED) for index in range(size)]
    model = description["model"]
    fallback = {f"<0x{byte:02X}>" for byte in range(256)} if model.get("byte_fallback") else set()
    for token, index in model["vocab"].items():
        kind = UNKNOWN if token == model.get("unk_token") else BYTE if token in fallback else NORMAL
        pieces[index] = Piece(token, 0.0, kind)
    for index, token in tokenizer.backend.get_added_tokens_decoder().items():
        if pieces[index].type != UNKNOWN:
            pieces[index] = Piece(token.content, 0.0, CONTROL if token.special else USER_DEFINED)
    return pieces


def _scored(pieces: list[Piece], merges: list[tuple[str, str]]) -> list[Piece]:
    """Give the pieces scores that put the `merges` in their order, as llama.cpp finds them by itself."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    last = len(merges)
    scored = [
        piece._replace(score=-float(ranks.get(piece.text, last) + 1)) if piece.type == NORMAL else piece
        for piece in pieces
    ]
    if set(sentencepiece.merges(scored)) != set(merges):
        raise TokenizerError("llama.cpp joins pieces wherever their sum is one, but this tokenizer merges only some")
    return scored


def _merges(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json: pairs, or text with a blank between the two in older ones."""
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in description["model"]["merges"]]
    return [(left, right) for left, right in pairs]


def _is_sentencepiece(description: Mapping[str, Any]) -> bool:
    model, normaliser = description["model"], description["normalizer"] or {}
    parts = [part["type"] for part in normaliser.get("normalizers", [normaliser] if normaliser else [])]
    bpe = model["type"] == "BPE" and model.get("byte_fallback")
    return bool(bpe) and description["pre_tokenizer"] is None and parts in (["Prepend", "Replace"], ["Replace"])


def _adds_blank(description: Mapping[str, Any]) -> bool:
    return any(part["type"] == "Prepend" for part in description["normalizer"].get("normalizers", []))


def _around(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether bos comes before and eos after every text; anything else cannot be said in the format."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    for bos, eos in ((False, False), (True, False), (False, True), (True, True)):
        before, after = [tokenizer.bos_id] if bos else [], [tokenizer.eos_id] if eos else []
        if [*before, *bare, *after] == whole:
            return bos, eos
    raise TokenizerError(f"llama.cpp puts bos and eos around a text, but this tokenizer makes {bare} {whole}")
