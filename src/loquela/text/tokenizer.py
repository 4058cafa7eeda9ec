"""The `tokenizers` library behind one small class: train, load, save, encode, decode, stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from loquela.errors import TokenizerError
from loquela.text import directory as files
from loquela.text import formats, kinds
from loquela.text.kinds import KINDS
from loquela.text.library import BYTE_OF, library_errors
from loquela.text.streaming import StreamDecoder

__all__ = ["KINDS", "StreamDecoder", "Tokenizer"]

_CONVENTIONAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "mask": ("<mask>", "[MASK]"),
}
"""Role → the names under which a special token has it, when a tokenizer is trained; the first that is there."""


class Tokenizer:
    """Text to token ids and back. `note`, if any, is what its training has to say aloud.

    `roles` maps bos, eos, unk, pad, mask … to the special token that has the role. `config` holds what
    tokenizer_config.json says beside them, `json` (from `source`) the content of tokenizer.json: both are written back
    unchanged.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        roles: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        chat_template: str | None = None,
        note: str | None = None,
        source: str | None = None,
    ) -> None:
        self.backend = backend
        self.json: str = backend.to_str(pretty=True) if source is None else source
        self.roles = dict(roles or {})
        self.config = dict(config or {})
        self.chat_template = chat_template
        self.note = note

    # -- making, reading, writing

    @classmethod
    def train(
        cls,
        kind: str,
        texts: Iterable[str],
        vocab_size: int | None = None,
        *,
        special_tokens: Sequence[str] = ("<|endoftext|>",),
    ) -> Tokenizer:
        """Train a tokenizer of a kind in `KINDS` on texts (see `loquela.text.kinds`).

        `vocab_size` counts the special tokens. None is 4096 pieces, or all characters, or all bytes. A text that
        supports fewer gives fewer, and `note` says so. Raises `UsageError` and `TokenizerError`.
        """
        with library_errors(f"a {kind} tokenizer cannot be trained on this text"):
            backend, note = kinds.train(kind, texts, vocab_size, special_tokens)
            source = backend.to_str(pretty=True)
            backend = tokenizers.Tokenizer.from_str(source)  # a score may differ in its last bit once it was written
        present = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        roles = {role: name for role, names in _CONVENTIONAL.items() for name in names[::-1] if name in present}
        return cls(backend, roles=roles, note=note, source=source)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a directory with tokenizer.json (and the files beside it), or a vocabulary file by itself.

        Other libraries' vocabularies will do too, see `loquela.text.formats`. Raises `TokenizerError` when it is
        missing or cannot be read.
        """
        found = formats.read(Path(path))
        with library_errors(f"{path} must hold a tokenizer.json of the tokenizers library, but it cannot be read"):
            backend = tokenizers.Tokenizer.from_str(found.json)
        backend.no_truncation()  # nothing is cut or filled up behind the caller's back
        backend.no_padding()
        return cls(
            backend, roles=found.roles, config=found.config, chat_template=found.chat_template, source=found.json
        )

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and the files beside it, which transformers opens; raises `StorageError`."""
        files.write(Path(directory), files.TokenizerFiles(self.json, self.roles, self.config, self.chat_template))

    # -- text and ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special_tokens` adds what the tokenizer puts around a text, if any."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text; uses all cores. Raises `TokenizerError` for what is no Unicode text."""
        with library_errors("text cannot be cut into tokens"):
            try:
                encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            except TypeError:
                for text in texts:
                    _check_characters(text)
                raise
        return [encoding.ids for encoding in encodings]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that each follow a line end of a longer text, without any special token around.

        Some tokenizers put a blank before the first word of a text (LLaMA's, T5's); here no text is the first.
        """
        if self._stands_alone:
            return self.encode_batch(texts, add_special_tokens=False)
        lead = self.encode("\n", add_special_tokens=False)
        rows = self.encode_batch(["\n" + text for text in texts], add_special_tokens=False)
        return [row[len(lead) :] for row in rows]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are no text show as U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that takes one token at a time."""
        return StreamDecoder(
            lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens),
            self.backend.id_to_token,
            self._special_ids if skip_special_tokens else frozenset(),
        )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return for each token of `encode(text)` the characters [start, end) of `text` that it came from."""
        offsets: list[tuple[int, int]] = self.backend.encode(text).offsets
        return offsets

    # -- single tokens

    def token(self, token_id: int) -> str:
        """Return a token as a person reads it: blanks as blanks, part of a character as `<0xE2>`."""
        piece = self.backend.id_to_token(token_id)
        if piece is None:
            raise TokenizerError(f"a token id must be below {self.vocab_size}, but is {token_id}")
        if token_id in self._special_ids:
            return str(piece)
        if self._is_byte_level:
            raw = bytes(BYTE_OF.get(c, 0x3F) for c in piece)
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return "".join(f"<0x{b:02X}>" for b in raw)
        return str(piece).replace("\u2581", " ")

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as it stands in the vocabulary, or None."""
        found: int | None = self.backend.token_to_id(token)
        return found

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included: the rows that an embedding needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that mark rather than say something, and their ids."""
        return {t.content: i for i, t in sorted(self.backend.get_added_tokens_decoder().items()) if t.special}

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self._role("bos")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""
        return self._role("eos")

    @property
    def pad_id(self) -> int | None:
        """The token that fills short rows."""
        return self._role("pad")

    @property
    def unk_id(self) -> int | None:
        """The token that stands for what the vocabulary lacks."""
        return self._role("unk")

    @property
    def mask_id(self) -> int | None:
        """The token that hides another in masked language modelling."""
        return self._role("mask")

    @cached_property
    def kind(self) -> str:
        """One of `KINDS`, told from what the tokenizer does; other libraries' are named after their model."""
        model = json.loads(self.json)["model"]
        if model["type"] != "BPE" or model["merges"]:
            return str(model["type"]).lower()
        return "byte" if self._is_byte_level else "char"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of tokenizer.json."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @cached_property
    def _stands_alone(self) -> bool:
        whole, *parts = self.encode_batch(["a\nb", "a\n", "b"], add_special_tokens=False)
        return whole == parts[0] + parts[1]

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _is_byte_level(self) -> bool:
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    def _role(self, role: str) -> int | None:
        name = self.roles.get(role)
        return None if name is None else self.id_of(name)


def _check_characters(text: str) -> None:
    """Raise `TokenizerError` for half a character, which a Python string may hold and no UTF-8 text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text must be whole Unicode characters, but character {error.start} is {text[error.start]!a}, half of one "
            "or a byte that is no UTF-8: encode the text as UTF-8"
        ) from None
