"""The `tokenizers` library behind one small class: train, load, save, encode, decode, stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

from loquela.errors import StorageError, TokenizerError
from loquela.text import kinds
from loquela.text.kinds import KINDS
from loquela.text.streaming import StreamDecoder

__all__ = ["KINDS", "StreamDecoder", "Tokenizer"]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_CONVENTIONAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "mask": ("<mask>", "[MASK]"),
}
"""Role → the names under which a special token has it, when a tokenizer is trained."""


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
        supports fewer gives fewer, and `note` says so. Raises `TokenizerError`.
        """
        with _library_errors(f"a {kind} tokenizer cannot be trained on this text"):
            backend, note = kinds.train(kind, texts, vocab_size, special_tokens)
            source = backend.to_str(pretty=True)
            backend = tokenizers.Tokenizer.from_str(source)  # a score may differ in its last bit once it was written
        present = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        roles = {role: name for role, names in _CONVENTIONAL.items() for name in names[::-1] if name in present}
        return cls(backend, roles=roles, note=note, source=source)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a directory with tokenizer.json (and the files beside it), or a tokenizer.json by itself.

        Raises `TokenizerError` when it is missing or cannot be read.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise TokenizerError(f"a tokenizer must have a tokenizer.json, but {file} does not exist")
        with _library_errors(f"{file} must be a tokenizer.json, but cannot be read"):
            source = file.read_text(encoding="utf-8")
            backend = tokenizers.Tokenizer.from_str(source)
        backend.no_truncation()  # nothing is cut or filled up behind the caller's back
        backend.no_padding()
        config = _read_json(file.parent / "tokenizer_config.json")
        special = _read_json(file.parent / "special_tokens_map.json")
        roles = {}
        for role in ROLES:
            name = _content(config.pop(f"{role}_token", None)) or _content(special.get(f"{role}_token"))
            if name is not None:
                roles[role] = name
        template = _default_template(config.pop("chat_template", None))
        jinja = file.parent / "chat_template.jinja"
        if jinja.is_file():
            template = jinja.read_text(encoding="utf-8")
        return cls(backend, roles=roles, config=config, chat_template=template, source=source)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and the files beside it, which transformers opens; raises `StorageError`."""
        directory = Path(directory)
        named = {f"{role}_token": name for role, name in self.roles.items()}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "tokenizer.json").write_text(self.json, encoding="utf-8")
            _write_json(directory / "tokenizer_config.json", {**config, **self.config, **named})
            _write_json(directory / "special_tokens_map.json", named)
            if self.chat_template is not None:
                (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"the tokenizer could not be written to {directory}: {error.strerror}") from error

    # -- text and ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special_tokens` adds what the tokenizer puts around a text, if any."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text; uses all cores."""
        with _library_errors("text must be whole Unicode characters"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

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
            raw = bytes(_BYTE_OF.get(c, 0x3F) for c in piece)
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

    @property
    def kind(self) -> str:
        """One of `KINDS`, told from what the tokenizer does; other libraries' are named after their model."""
        model = json.loads(self.json)["model"]
        if model["type"] != "BPE" or model["merges"]:
            return str(model["type"]).lower()
        return "byte" if self._is_byte_level else "char"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content of tokenizer.json."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(i for i, t in self.backend.get_added_tokens_decoder().items() if t.special)

    @cached_property
    def _is_byte_level(self) -> bool:
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    def _role(self, role: str) -> int | None:
        name = self.roles.get(role)
        return None if name is None else self.id_of(name)


def _byte_of() -> dict[str, int]:
    """Return GPT-2's table: the printable character that stands for a byte → the byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_of()
assert set(_BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Turn whatever the Rust library raises, its panics included, into a `TokenizerError`."""
    try:
        yield
    except TokenizerError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    with _library_errors(f"{file} must be a JSON object, but cannot be read"):
        value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} must be a JSON object, but is a {type(value).__name__}")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _content(token: Any) -> str | None:
    """A special token is written as its text, or as an object that says more about it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _default_template(template: Any) -> str | None:
    """A chat template is written as itself, or as a list of named ones, of which `default` is ours."""
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None
