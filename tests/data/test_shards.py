from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.data import corpora, readers, shards
from loquela.data.shards import Corpus, build
from loquela.data.special import Special
from loquela.data.vocabulary import train_tokenizer
from loquela.errors import DataError, StorageError, TextDecodingError, UsageError
from loquela.text.tokenizer import Tokenizer

TEXT = "First Citizen:\nBefore we proceed, he's said it's  good. ¡Olé!\n\n\tAll: 1 12 123 speak! 😀\n" * 30
TOKENIZERS = {
    kind: Tokenizer.train(kind, [TEXT], None if kind in ("char", "byte") else 400)
    for kind in ("bpe", "unigram", "char", "byte", "wordpiece")
}


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def ids(corpus: Corpus) -> tuple[list[int], list[int]]:
    return corpus.train.tokens.tolist(), corpus.validation.tokens.tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.999])
def test_tokens_are_those_of_the_two_texts_as_wholes(
    kind: str, fraction: float, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PIECE", 16)
    monkeypatch.setattr(readers, "_PATIENCE", 64)
    tokenizer = TOKENIZERS[kind]
    corpus = build(text_file, tokenizer, text_file.parent / "tokens", validation_fraction=fraction)
    border = int(len(TEXT) * (1 - fraction))
    train, validation = TEXT[:border], TEXT[border:]
    assert ids(corpus) == (tokenizer.encode(train), tokenizer.encode(validation))
    assert (corpus.train.n_bytes, corpus.validation.n_bytes) == (len(train.encode()), len(validation.encode()))
    assert len(corpus.train) == len(corpus.train.tokens)


@given(text=st.text(min_size=1), kind=st.sampled_from(["bpe", "unigram", "byte"]), fraction=st.floats(0, 0.99))
def test_the_bytes_of_any_text_are_counted(scratch: Path, text: str, kind: str, fraction: float) -> None:
    text = text.replace("\0", "") + "x"
    path = scratch / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    corpus = build(path, TOKENIZERS[kind], scratch / "tokens", validation_fraction=fraction)
    read = path.read_text(encoding="utf-8").removeprefix("\ufeff")
    assert corpus.train.n_bytes + corpus.validation.n_bytes == len(read.encode())
    tokens = [TOKENIZERS[kind].decode(part, skip_special_tokens=False) for part in ids(corpus)]
    assert "".join(tokens) == read
    assert corpus.validation.n_bytes == len(tokens[1].encode())


def test_the_files_are_bare_little_endian_integers(text_file: Path) -> None:
    corpus = build(text_file, TOKENIZERS["bpe"], text_file.parent / "tokens")
    raw = np.frombuffer((text_file.parent / "tokens" / "train.bin").read_bytes(), dtype="<u2")
    assert raw.tolist() == corpus.train.tokens.tolist()
    assert isinstance(corpus.train.tokens, np.memmap)


def test_a_large_vocabulary_takes_four_bytes(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train("byte", [])
    monkeypatch.setattr(tokenizer, "vocab_size", 65_537, raising=False)
    corpus = build(text_file, tokenizer, text_file.parent / "tokens")
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.train.tokens.tolist() == tokenizer.encode(TEXT[: int(len(TEXT) * 0.9)])


def test_documents_end_with_the_end_token(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    documents = [f"document {n}, é\n" for n in range(5)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenizer = TOKENIZERS["bpe"]
    corpus = build(path, tokenizer, tmp_path / "tokens", validation_fraction=0.4)
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in documents]
    assert ids(corpus) == ([i for row in rows[:3] for i in row], [i for row in rows[3:] for i in row])
    assert corpus.validation.n_bytes == len("".join(documents[3:]).encode())
    without = Tokenizer.train("byte", [], special_tokens=())
    assert ids(build(path, without, tmp_path / "bare"))[1] == without.encode(documents[4])


def test_where_there_is_no_end_token_the_separator_ends_documents(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a cat", "a dog", "a fox")))
    tokenizer = Tokenizer.train("wordpiece", [TEXT], 300, special_tokens=("[SEP]", "[CLS]", "[MASK]", "[PAD]"))
    assert tokenizer.eos_id is None
    separator = tokenizer.id_of("[SEP]")
    corpus = build(path, tokenizer, tmp_path / "tokens", validation_fraction=0.4)
    assert ids(corpus)[1] == [*tokenizer.encode("a dog"), separator, *tokenizer.encode("a fox"), separator]
    assert Special.of(tokenizer).eos == separator


def test_one_document_is_learnt_from_and_nothing_held_out(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "only one"}')
    corpus = build(path, TOKENIZERS["byte"], tmp_path / "tokens")
    assert (len(corpus.train), len(corpus.validation), corpus.validation.n_bytes) == (9, 0, 0)
    assert corpus.notes == ["nothing is held out for validation"]


def test_one_character_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a")
    corpus = build(path, TOKENIZERS["byte"], tmp_path / "tokens")
    assert (len(corpus.train), len(corpus.validation)) == (1, 0)


def test_what_a_tokenizer_loses_is_said(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("First Citizen: speak!\n" * 20 + "字字字\n", encoding="utf-8")
    lost = {kind: build(path, TOKENIZERS[kind], tmp_path / kind).notes for kind in TOKENIZERS}
    assert lost["bpe"] == lost["unigram"] == lost["byte"] == []
    assert "3 unknown tokens" in lost["char"][0]
    assert "1 unknown tokens, blanks, line ends or case" in lost["wordpiece"][0]


# -- reuse


def test_the_same_is_reused_and_anything_else_made_again(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = text_file.parent / "tokens"
    made: list[Any] = []
    monkeypatch.setattr(shards, "_write", lambda *args, write=shards._write: made.append(args) or write(*args))

    def count(tokenizer: Tokenizer = TOKENIZERS["bpe"], **settings: Any) -> int:
        before = len(made)
        corpus = build(text_file, tokenizer, directory, **settings)
        again = build(text_file, tokenizer, directory, **settings)
        assert ids(again) == ids(corpus)
        assert again.notes == corpus.notes
        return len(made) - before

    assert count() == 1
    assert count() == 0
    assert count(validation_fraction=0.2) == 1
    assert count(TOKENIZERS["unigram"]) == 1
    assert count(encoding="latin-1") == 1
    text_file.write_text(TEXT + "!", encoding="utf-8")
    assert count() == 1
    assert sorted(path.name for path in directory.iterdir()) == ["corpus.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "corpus.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_damaged_tokens_are_made_again(text_file: Path, name: str, damage: str) -> None:
    directory = text_file.parent / "tokens"
    tokens = ids(build(text_file, TOKENIZERS["bpe"], directory))
    file, content = directory / name, (directory / name).read_bytes()
    changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-3], "empty": b""}
    file.unlink() if damage == "remove" else file.write_bytes(changed[damage])
    assert ids(build(text_file, TOKENIZERS["bpe"], directory)) == tokens


# -- failures


class FullDisk:
    """A file whose disk is full after so many writes."""

    def __init__(self, file: BinaryIO, writes: int) -> None:
        self.file, self.writes = file, writes

    def write(self, data: Any) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("writes", range(4))
def test_a_full_disk_leaves_what_was_there(text_file: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = text_file.parent / "tokens"
    tokens = ids(build(text_file, TOKENIZERS["bpe"], directory))
    left = writes
    real = shards._write_tokens

    def limited(file: BinaryIO, rows: Any, dtype: str) -> dict[str, Any]:
        nonlocal left
        full = FullDisk(file, left)
        try:
            return real(full, rows, dtype)  # type: ignore[arg-type]
        finally:
            left = full.writes

    with monkeypatch.context() as patch:
        patch.setattr(readers, "PIECE", 1000)
        patch.setattr(readers, "_PATIENCE", 1200)
        patch.setattr(shards, "_write_tokens", limited)
        with pytest.raises(StorageError, match="No space left on device"):
            build(text_file, TOKENIZERS["byte"], directory)
    assert sorted(path.name for path in directory.iterdir()) == ["corpus.json", "train.bin", "val.bin"]
    assert ids(build(text_file, TOKENIZERS["bpe"], directory)) == tokens


def test_an_error_in_the_text_comes_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a" * 1000 + "ñ".encode("latin-1"))
    with pytest.raises(TextDecodingError, match="byte 1000"):
        build(path, TOKENIZERS["byte"], tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    assert build(path, TOKENIZERS["byte"], tmp_path / "tokens", encoding="latin-1").validation.n_bytes == 102


def test_calls_that_cannot_be_meant(tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "nowhere.txt", TOKENIZERS["byte"], tmp_path / "tokens")
    with pytest.raises(DataError, match="must be a regular file"):
        build("/dev/null", TOKENIZERS["byte"], tmp_path / "tokens")
    for fraction in (-0.1, 1.0, 7):
        with pytest.raises(UsageError, match="validation_fraction must be at least 0 and below 1"):
            build(text_file, TOKENIZERS["byte"], tmp_path / "tokens", validation_fraction=fraction)
    (tmp_path / "in the way").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        build(text_file, TOKENIZERS["byte"], tmp_path / "in the way")


def test_progress_reaches_the_end(text_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(text_file, TOKENIZERS["byte"], text_file.parent / "tokens", progress=lambda *state: seen.append(state))
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert seen == sorted(seen)


# -- the texts of the package, and vocabularies


def test_the_texts_of_the_package() -> None:
    assert corpora.names() == ("quijote", "shakespeare")
    sources = (corpora.path("quijote").parent / "SOURCES.md").read_text(encoding="utf-8")
    for name in corpora.names():
        text = "".join(piece.text for piece in readers.read_pieces(corpora.path(name)))
        assert f"`{name}.txt.gz`" in sources
        assert len(text) > 1_000_000
        assert text.endswith("\n")
        for word in ("gutenberg", "copyright", "license", "http"):
            assert word not in text.lower()
    with pytest.raises(DataError, match="must be one of quijote, shakespeare, but is 'shakspeare'; did you mean"):
        corpora.path("shakspeare")


def test_a_file_wins_over_a_text_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpora.resolve("quijote") == corpora.path("quijote")
    (tmp_path / "quijote").mkdir()
    assert corpora.resolve("quijote") == corpora.path("quijote")
    (tmp_path / "shakespeare").write_text("mine")
    assert corpora.resolve("shakespeare") == Path("shakespeare")
    with pytest.raises(DataError, match="but 'quijot' does not exist; did you mean 'quijote'"):
        corpora.resolve("quijot")
    with pytest.raises(DataError, match="is a directory"):
        corpora.resolve(tmp_path)


def test_the_held_out_end_of_shakespeare_is_everyones(tmp_path: Path) -> None:
    corpus = build("shakespeare", TOKENIZERS["byte"], tmp_path)
    assert (len(corpus.train), corpus.validation.n_bytes) == (1_003_854, 111_540)  # nanoGPT's split
    assert len(TOKENIZERS["byte"].decode(corpus.validation.tokens.tolist())) == 111_540


def test_a_vocabulary_does_not_see_the_held_out_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("seen seen seen\n" * 90 + "hidden hidden 7\n" * 10)
    bpe = train_tokenizer(path, "bpe", 300, validation_fraction=0.15)
    assert bpe.id_of("seen") is not None
    assert bpe.id_of("Ġhidden") is None
    assert train_tokenizer(path, "bpe", 300).id_of("Ġhidden") is not None
    assert train_tokenizer(path, "char", validation_fraction=0.15).id_of("7") is not None  # the alphabet is all of it


def test_a_vocabulary_of_a_large_text_is_learnt_from_an_even_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PIECE", 100)
    monkeypatch.setattr(readers, "_PATIENCE", 200)
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n:06}\n" for n in range(10_000)))
    seen: list[str] = []
    monkeypatch.setattr(
        Tokenizer,
        "train",
        classmethod(lambda cls, kind, texts, *_, **__: seen.extend(texts) or Tokenizer(BYTE.backend)),
    )
    tokenizer = train_tokenizer(path, "bpe", 300, sample=30_000)
    assert tokenizer.note == "the vocabulary is learnt from an evenly spread sample of 30,000 of 120,000 characters"
    assert 29_000 < len("".join(seen)) <= 30_000
    numbers = np.array([int(line.split()[1]) for line in "".join(seen).split("\n") if line])
    counts, _ = np.histogram(numbers, bins=10, range=(0, 10_000))
    assert counts.min() > 200
    assert counts.max() < 300


BYTE = Tokenizer.train("byte", [])


def test_several_files_make_one_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha " * 50)
    (tmp_path / "b.jsonl").write_text('{"text": "%s"}' % ("omega " * 50))
    tokenizer = train_tokenizer([tmp_path / "a.txt", tmp_path / "b.jsonl"], "bpe", 4096)
    assert tokenizer.id_of("Ġalpha") is not None
    assert tokenizer.id_of("Ġomega") is not None
    assert tokenizer.note is not None
    assert "not the 4,096 asked for" in tokenizer.note
