from __future__ import annotations

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models

from loquela.text.tokenizer import Tokenizer

TEXT = "to be, or not to be: ¡qué día!  你好 😀\n\tit's the question\n" * 30
SPECIAL = ("<|endoftext|>", "<unk>")


def other(decoder: decoders.Decoder | None, *pieces: str) -> Tokenizer:
    """A tokenizer of the byte tokens, these pieces and an end token, with a decoder of another library."""
    vocab = ["</s>", *pieces, *(f"<0x{b:02X}>" for b in range(256))]
    backend = tokenizers.Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(vocab)}, merges=[], byte_fallback=True))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend)


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
PIECES = ("▁", "▁▁", "▁to", "be", "é", "\N{REPLACEMENT CHARACTER}", "##ing", ",")
TOKENIZERS = {
    kind: Tokenizer.train(kind, [TEXT], None if kind in ("char", "byte") else 320, special_tokens=SPECIAL)
    for kind in ("bpe", "unigram", "byte", "char", "wordpiece")
} | {
    "llama": other(LLAMA, *PIECES),
    "metaspace": other(decoders.Metaspace(), *PIECES),
    "wordpiece, cleaning": other(decoders.WordPiece(cleanup=True), *PIECES),
    "words": other(None, *PIECES),
    "word ends": other(decoders.BPEDecoder(), "to</w>", "be", "</w>", ","),
}
each = pytest.mark.parametrize("name", TOKENIZERS)
ids = st.lists(st.integers(0, 10**6), max_size=40)


@each
@pytest.mark.parametrize("skip", [True, False])
@given(numbers=ids)
def test_the_pieces_joined_are_the_text(name: str, skip: bool, numbers: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = [n % (tokenizer.vocab_size + 1) for n in numbers]  # one more: ids of a padded embedding
    stream = tokenizer.stream(skip_special_tokens=skip)
    pieces = [stream.push(token) for token in tokens]
    whole = tokenizer.decode(tokens, skip_special_tokens=skip)
    assert whole.startswith("".join(pieces))
    assert "".join([*pieces, stream.finish()]) == whole
    assert stream.finish() == ""


@each
@given(text=st.text(alphabet=st.characters(exclude_characters="\N{REPLACEMENT CHARACTER}", exclude_categories=["Cs"])))
@example("😀🏳️‍🌈 e\u0301 你好\n\n  x")
def test_half_a_character_is_never_shown(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(tokens):
        return
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join([*pieces, stream.finish()])


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokenizer = TOKENIZERS["byte"]
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode("aé😀b")]
    assert pieces == ["a", "", "é", "", "", "", "😀", "b"]


def test_an_end_in_the_middle_of_a_character_is_shown_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte"]
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("é")[:1]] == [""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_run_of_byte_tokens_decodes_as_a_whole_or_not_at_all() -> None:
    tokenizer = TOKENIZERS["llama"]
    tokens = [tokenizer.id_of(p) or 0 for p in ("▁to", "<0xC3>", "<0xA9>", "<0xFF>", "be")]
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokens] == ["to", "", "", "", "\N{REPLACEMENT CHARACTER}" * 3 + "be"]
    assert "".join(["to", "\N{REPLACEMENT CHARACTER}" * 3, "be"]) == tokenizer.decode(tokens)
