from __future__ import annotations

import errno
import json
from itertools import chain
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loquela.errors import StorageError, TokenizerError, UsageError
from loquela.text.tokenizer import KINDS, Tokenizer

TEXT = (
    """First Citizen:
Before we proceed any further, hear me speak. Antes que sigáis adelante, oídme hablar.

\tAll: Speak, speak! ¡Hablad, hablad!  We are accounted poor citizens, the patricians good.
"""
    * 20
)
TOKENIZERS = {kind: Tokenizer.train(kind, [TEXT], None if kind in ("char", "byte") else 400) for kind in KINDS}
LOSSLESS = ("bpe", "unigram", "byte")
AWKWARD = "Hello wörld 😀🏳️‍🌈\n\n  x\t1 <|endoftext|> don't , . you 've \x00 \u3000 e\u0301 \U0010fffd"

anything = st.text()
"""Any Unicode but halves of surrogate pairs, which no text has."""


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=anything)
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10_000)
@given(text=anything)
def test_any_text_in_every_kind_in_full(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    if kind in LOSSLESS or (kind == "char" and tokenizer.unk_id not in ids):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


@given(text=st.text(alphabet=sorted(set(TEXT))))
def test_characters_that_were_seen_come_back(text: str) -> None:
    tokenizer = TOKENIZERS["char"]
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(text=anything)
def test_each_character_that_was_not_seen_is_one_unknown(text: str) -> None:
    tokenizer = TOKENIZERS["char"]
    ids = tokenizer.encode(text)
    assert [i == tokenizer.unk_id for i in ids] == [c not in TEXT for c in text]
    assert tokenizer.decode(ids) == "".join(c for c in text if c in TEXT)


@given(text=st.text(alphabet="abc,.! \t\n", max_size=80))
def test_wordpiece_keeps_words_and_forgets_white_space(text: str) -> None:
    tokenizer = WORDS
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id not in ids
    decoded = tokenizer.decode(ids)
    assert "".join(decoded.split()) == "".join(text.split())
    assert tokenizer.encode(decoded) == ids


WORDS = Tokenizer.train("wordpiece", ["abc bca cab aabbcc ccbbaa , . ! " * 5], 40)


@pytest.mark.parametrize("kind", KINDS)
@given(text=anything)
def test_offsets_walk_through_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    offsets = tokenizer.offsets(text)
    assert len(offsets) == len(tokenizer.encode(text))
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert offsets == sorted(offsets)
    if kind in LOSSLESS or kind == "char":
        assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.save(tmp_path / "new" / "one")
    for path in (tmp_path / "new" / "one", tmp_path / "new" / "one" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(AWKWARD) == tokenizer.encode(AWKWARD)
        assert (again.kind, again.vocab_size) == (kind, tokenizer.vocab_size)
        assert (again.eos_id, again.unk_id, again.bos_id) == (tokenizer.eos_id, tokenizer.unk_id, None)
    again.save(tmp_path / "two")
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "new" / "one" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_is_saved(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = "{{ messages[0].content }}"
    try:
        tokenizer.save(tmp_path)
    finally:
        tokenizer.chat_template = None
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        theirs = loader.from_pretrained(tmp_path)
        assert len(theirs) == tokenizer.vocab_size
        assert theirs.eos_token_id == tokenizer.eos_id == 0
        assert theirs.unk_token_id == tokenizer.unk_id
        assert theirs.chat_template == "{{ messages[0].content }}"
        for text in (AWKWARD, TEXT, ""):
            ids = tokenizer.encode(text)
            assert theirs(text)["input_ids"] == ids
            assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    theirs.save_pretrained(tmp_path / "back")
    back = Tokenizer.load(tmp_path / "back")
    assert back.encode(AWKWARD) == tokenizer.encode(AWKWARD)
    assert (back.eos_id, back.unk_id) == (tokenizer.eos_id, tokenizer.unk_id)
    assert back.chat_template == "{{ messages[0].content }}"


def test_settings_of_a_foreign_tokenizer_stay(tmp_path: Path) -> None:
    TOKENIZERS["bpe"].save(tmp_path)
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "eos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.load(tmp_path).save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "GPT2Tokenizer"
    assert saved["model_max_length"] == 1024
    assert saved["eos_token"] == "<|endoftext|>"


def test_the_chat_template_file_wins(tmp_path: Path) -> None:
    TOKENIZERS["byte"].save(tmp_path)
    config = {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(tmp_path).chat_template == "file"
    TOKENIZERS["byte"].save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template is None


def test_a_stored_truncation_or_padding_cuts_and_fills_nothing(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS["byte"].json)
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode("abcdefghijkl")) == 12
    assert len(Tokenizer.load(tmp_path).encode("ab")) == 2


def test_special_tokens_around_a_text_are_a_choice() -> None:
    tokenizer = llama_like()
    assert tokenizer.encode("ab")[0] == tokenizer.bos_id
    assert tokenizer.encode("ab", add_special_tokens=False) == tokenizer.encode("ab")[1:]
    assert tokenizer.decode(tokenizer.encode("ab cd")) == "ab cd"


def llama_like() -> Tokenizer:
    """A blank before the first word, no words before merging, bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdé", "ab", "cd", "▁ab", "abcd"]
    merges = [("a", "b"), ("c", "d"), ("▁", "ab"), ("ab", "cd")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(pieces[:3])
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend, roles={"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS.values(), llama_like()], ids=[*KINDS, "llama"])
@given(lines=st.lists(st.text(alphabet="abcd é,\t😀").map(lambda s: f"x{s}x"), min_size=2, max_size=5))
def test_continuations_are_the_rest_of_a_text(tokenizer: Tokenizer, lines: list[str]) -> None:
    first, *rest = [line + "\n" for line in lines]
    parts = [tokenizer.encode(first, add_special_tokens=False), *tokenizer.encode_continuations(rest)]
    assert list(chain(*parts)) == tokenizer.encode("".join([first, *rest]), add_special_tokens=False)


def test_tokens_read_as_a_person_reads_them() -> None:
    tokenizer = TOKENIZERS["byte"]
    assert [tokenizer.token(i) for i in tokenizer.encode("a é\n")] == ["a", " ", "<0xC3>", "<0xA9>", "\n"]
    assert tokenizer.token(0) == "<|endoftext|>"
    assert tokenizer.special_tokens == {"<|endoftext|>": 0}
    assert tokenizer.id_of("a") == tokenizer.encode("a")[0]
    assert tokenizer.id_of("nothing like it") is None
    with pytest.raises(TokenizerError, match="must be below 257, but is 999"):
        tokenizer.token(999)


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(TokenizerError, match=r"whole Unicode characters, but character 1 is '\\ud83d'"):
        TOKENIZERS["bpe"].encode("a\ud83d")


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_of_one_character(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "a" * 1_000_000
    ids = tokenizer.encode(text)
    if kind == "wordpiece":
        assert ids == [tokenizer.unk_id]  # no word has more than a hundred characters
    else:
        assert tokenizer.decode(ids) == text


# -- training


@pytest.mark.parametrize("kind", KINDS)
def test_roles_and_special_tokens(kind: str) -> None:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer.train(kind, [TEXT], None if kind in ("char", "byte") else 400, special_tokens=special)
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 4)
    assert tokenizer.encode("<s>Speak</s>")[0] == 1
    assert tokenizer.decode(tokenizer.encode("<s>Speak</s>")) == "Speak"


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind: str) -> None:
    size = None if kind in ("char", "byte") else 350
    trained = [Tokenizer.train(kind, TEXT.split("\n"), size) for _ in range(3)]
    assert len({tokenizer.fingerprint for tokenizer in trained}) == 1


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_vocabulary_larger_than_the_text_supports(kind: str) -> None:
    tokenizer = Tokenizer.train(kind, ["hello hello hello world world\n"], 50_000)
    assert tokenizer.vocab_size < 400
    assert tokenizer.note is not None
    assert f"{tokenizer.vocab_size:,} {kind} tokens, not the 50,000" in tokenizer.note
    assert tokenizer.encode("hello") != []


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("size", [300, 350])
def test_a_vocabulary_that_fits_is_exactly_as_large_as_asked_for(kind: str, size: int) -> None:
    tokenizer = Tokenizer.train(kind, [TEXT * 3], size)
    assert tokenizer.vocab_size == size or tokenizer.note


@pytest.mark.parametrize("text", ["a", "\n", " ", "ab", "a b", "é", "😀", "\0", "aaaaaaaa"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_shortest_texts_are_enough(kind: str, text: str) -> None:
    tokenizer = Tokenizer.train(kind, [text], None)
    if kind != "wordpiece":
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_an_error(kind: str) -> None:
    for nothing in ([], ["", ""]):
        if kind == "byte":
            assert Tokenizer.train(kind, nothing).vocab_size == 257  # bytes need no text
        else:
            with pytest.raises(TokenizerError, match="must have text to learn from"):
                Tokenizer.train(kind, nothing)


@pytest.mark.parametrize(("kind", "least"), [("bpe", 257), ("unigram", 257), ("byte", 257), ("char", 3)])
def test_a_vocabulary_too_small_names_the_least(kind: str, least: int) -> None:
    with pytest.raises(UsageError, match=rf"vocab_size must be at least {least} .* but is {least - 1}"):
        Tokenizer.train(kind, [TEXT], least - 1)
    assert Tokenizer.train(kind, [TEXT], least).vocab_size == least


def test_a_small_alphabet_keeps_the_most_frequent_characters() -> None:
    tokenizer = Tokenizer.train("char", ["aaabbc"], 4)
    assert tokenizer.decode(tokenizer.encode("abcab")) == "abab"


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"bpe, wordpiece, unigram, char, byte, but is 'wordpeice'; did you mean"):
        Tokenizer.train("wordpeice", [TEXT])


# -- files that are not what they should be


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        b'{"version": "1.0", "model": {"type": "Unigram", "vocab": [], "unk_id": 7}}',
        b'{"version": "1.0", "model": {"type": "None of them"}}',
    ],
)
def test_a_damaged_tokenizer_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_damage_beside_the_tokenizer(name: str, content: str, tmp_path: Path) -> None:
    TOKENIZERS["byte"].save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match="must be a JSON object"):
        Tokenizer.load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.json"):
        with pytest.raises(TokenizerError, match="does not exist"):
            Tokenizer.load(path)


def test_a_full_disk_leaves_the_tokenizer_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TOKENIZERS["byte"].save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.write_text

    def full(self: Path, data: str, **options: str) -> int:
        if self.name.startswith("tokenizer.json"):
            real(self, data[:100], encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data, encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StorageError, match="No space left on device"):
            TOKENIZERS["byte"].save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        TOKENIZERS["byte"].save(tmp_path / "file")
