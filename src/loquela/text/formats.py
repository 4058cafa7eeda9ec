"""The vocabulary files of the ecosystem, each read into what tokenizer.json would say.

| files | what they are |
|---|---|
| tokenizer.json, tokenizer.json.gz | the `tokenizers` library's own |
| *vocab.json + *merges.txt, *encoder.json + *vocab.bpe | GPT-2's byte-level BPE |
| *.model, *.spm | SentencePiece, BPE or unigram |
| *.gguf | the vocabulary of llama.cpp's files |
| *vocab.txt | BERT's WordPiece |
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from loquela.errors import CheckpointError, TokenizerError
from loquela.text import byte_level, directory, gguf_vocab, sentencepiece, wordpiece
from loquela.text.directory import LIMIT, TokenizerFiles
from loquela.text.gguf_file import read_head
from loquela.text.library import library_errors

__all__ = ["read"]

_PAIRS = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
_IN_DIRECTORY = ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model", "spiece.model", *_PAIRS, "vocab.txt")
"""What is looked for in a directory, the best first."""
_BYTE_LEVEL_SPECIAL = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}


def read(path: Path) -> TokenizerFiles:
    """Read a vocabulary file, or the best one of a directory; raises `TokenizerError`."""
    if path.is_dir():
        path = next((path / name for name in _IN_DIRECTORY if (path / name).is_file()), path / "tokenizer.json")
    for ending, reader in _READERS.items():
        if path.name.endswith(ending) and path.is_file():
            with library_errors(f"{path} must be a vocabulary, but cannot be read"):
                return reader(path)
    return directory.read(path)


def _gzipped(path: Path) -> TokenizerFiles:
    try:
        with gzip.open(path) as file:
            data = file.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerError(f"{path} must be gzipped text, but cannot be read: {error}") from error
    if len(data) > LIMIT:
        raise TokenizerError(f"{path} must unpack to at most {LIMIT:,} bytes, but is larger")
    return directory.beside(path, data.decode())


def _byte_level(path: Path) -> TokenizerFiles:
    ending = next(ending for ending in _PAIRS if path.name.endswith(ending))
    second = path.with_name(path.name.removesuffix(ending) + _PAIRS[ending])
    if not second.is_file():
        raise TokenizerError(f"{path} must have its merges beside it, but {second} does not exist")
    vocabulary = json.loads(directory.text(path))
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise TokenizerError(f"{path} must map pieces to ids, but does not")
    lines = directory.text(second).split("\n")  # nothing else divides lines: U+0085 may be part of a piece
    merges = []
    for line in lines[1:] if lines[0].startswith("#version") else lines:
        if line:
            left, _, right = line.partition(" ")
            merges.append((left, right))
    files = directory.beside(path, "")
    default = {role: name for role, name in _BYTE_LEVEL_SPECIAL.items() if name in vocabulary}
    files.roles = default | files.roles
    files.json = _json(byte_level.build(vocabulary, merges, added=_added(files, vocabulary)))
    return files


def _added(files: TokenizerFiles, vocabulary: Mapping[str, int]) -> list[AddedToken]:
    """The tokens that are found in a text before anything else, by id; those without one must come next."""
    described = files.config.get("added_tokens_decoder")
    entries: dict[int, AddedToken] = {}
    for key, entry in (described if isinstance(described, dict) else {}).items():
        flags = {flag: entry[flag] for flag in ("lstrip", "normalized", "rstrip", "single_word", "special")}
        entries[int(key)] = AddedToken(entry["content"], **flags)
    known = {token.content for token in entries.values()}
    for name in dict.fromkeys(files.roles.values()):
        if name in vocabulary and name not in known:
            entries[vocabulary[name]] = AddedToken(name, special=True, normalized=False)
    ordered = [entries[index] for index in sorted(entries)]
    end = max(vocabulary.values(), default=-1) + 1
    fresh = [index for index in sorted(entries) if entries[index].content not in vocabulary]
    if fresh != list(range(end, end + len(fresh))):
        raise TokenizerError(f"added tokens must have the ids from {end} on, but have {fresh[:5]}")
    return ordered


def _sentencepiece(path: Path) -> TokenizerFiles:
    with library_errors(f"{path} cannot be read"):
        if (size := path.stat().st_size) > LIMIT:
            raise TokenizerError(f"{path} must have at most {LIMIT:,} bytes, but has {size:,}")
        model = sentencepiece.parse(path.read_bytes())
    files = directory.beside(path, "")
    # LLaMA's kind begins a text with bos, T5's ends it with eos, unless the config beside says otherwise.
    add_bos = bool(files.config.get("add_bos_token", not model.unigram)) and "bos" in model.roles
    add_eos = bool(files.config.get("add_eos_token", model.unigram)) and "eos" in model.roles
    files.json = _json(sentencepiece.build(model, add_bos=add_bos, add_eos=add_eos))
    files.roles = {role: model.pieces[index].text for role, index in model.roles.items()} | files.roles
    return files


def _wordpiece(path: Path) -> TokenizerFiles:
    lines = directory.text(path).split("\n")
    pieces = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    files = directory.beside(path, "")
    lowercase = files.config.get("do_lower_case")
    files.json = _json(wordpiece.build(pieces, lowercase=lowercase if isinstance(lowercase, bool) else None))
    files.roles = {role: name for role, name in wordpiece.ROLES.items() if name in pieces} | files.roles
    return files


def _gguf(path: Path) -> TokenizerFiles:
    try:
        metadata = read_head(path).metadata
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    files = gguf_vocab.read(metadata)
    if files is None:
        raise TokenizerError(f"{path} must have a tokenizer, but has none")
    return files


def _json(backend: tokenizers.Tokenizer) -> str:
    text: str = backend.to_str(pretty=True)
    return text


_READERS: Mapping[str, Callable[[Path], TokenizerFiles]] = {
    ".json.gz": _gzipped,
    **dict.fromkeys(_PAIRS, _byte_level),
    ".model": _sentencepiece,
    ".spm": _sentencepiece,
    ".gguf": _gguf,
    "vocab.txt": _wordpiece,
}
"""The end of a file's name → its reader."""
