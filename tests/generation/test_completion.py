"""Text in, text out: pieces, stop strings, end tokens, usage, and that neighbours change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from loquela.errors import UsageError
from loquela.generation.completion import choices, complete, prompt_ids, stream
from loquela.generation.pieces import StopWatch
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

Scripted = Callable[[Sequence[int]], Network]
TEXT = "The cat 🐈 sat; 猫と犬 were on the mat.\n¿Qué?"


def test_pieces_join_to_the_text_and_hold_back_half_characters(script: Scripted, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    prompt = 3
    wanted = GenerationSettings(max_new_tokens=len(ids) - prompt)
    pieces = list(stream(script(ids), tokenizer, ids[:prompt], wanted))
    assert [piece.id for piece in pieces] == ids[prompt:]
    assert "".join(piece.text for piece in pieces) == TEXT[len(tokenizer.decode(ids[:prompt])) :]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece.text for piece in pieces)
    assert any(piece.text == "" for piece in pieces), "the emoji and the kanji are several tokens each"
    completion = complete(script(ids), tokenizer, ids[:prompt], wanted)
    assert completion.tokens == tuple(pieces)
    assert completion.text == "".join(piece.text for piece in pieces)


def test_half_a_character_at_the_end_shows_as_such(script: Scripted, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🐈")
    completion = complete(script(ids), tokenizer, ids[:1], GenerationSettings(max_new_tokens=1))
    assert len(ids) > 2
    assert completion.text == "\N{REPLACEMENT CHARACTER}"


def test_a_decoder_that_treats_the_first_token_apart(script: Scripted) -> None:
    words = ["▁the", "▁cat", "▁sat", "<0x0A>", "</s>"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="▁the"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend)
    for prompt, rest, text in (([0], [1, 2], " cat sat"), ([0, 3], [1, 3, 2], " cat\n sat"), ([0, 1], [3, 3], "\n\n")):
        wanted = GenerationSettings(max_new_tokens=len(rest))
        assert complete(script([*prompt, *rest]), tokenizer, prompt, wanted).text == text


@settings(max_examples=60)
@given(st.data())
def test_a_stop_string_never_leaks(script: Scripted, tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = tokenizer.encode(TEXT)
    tail = TEXT[len(tokenizer.decode(ids[:2])) :]
    start = data.draw(st.integers(0, len(tail) - 1))
    stop = tail[start : data.draw(st.integers(start + 1, len(tail)))]
    wanted = GenerationSettings(max_new_tokens=len(ids) - 2, stop=("never said", stop))
    pieces = list(stream(script(ids), tokenizer, ids[:2], wanted))
    assert "".join(piece.text for piece in pieces) == tail[: tail.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    said = list(stream(script(ids), tokenizer, ids[:2], wanted.replace(stop=())))
    needed = next(n for n in range(len(said) + 1) if stop in "".join(piece.text for piece in said[:n]))
    assert len(pieces) == needed, "no token more than the stop string needs"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.data())
def test_where_a_text_is_cut_does_not_change_where_it_stops(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [(end, len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    expected = text
    if ends:
        end = min(ends)[0]
        expected = text[: end - max(length for e, length in ends if e == end)]
    watch, shown, rest = StopWatch(tuple(stops)), "", text
    while rest and not watch.stopped:
        size = data.draw(st.integers(1, len(rest)))
        shown += watch.push(rest[:size])
        rest = rest[size:]
        assert expected.startswith(shown)
    assert watch.stopped == bool(ends)
    assert shown + watch.held == expected


def test_what_was_held_back_for_a_stop_string_in_vain_is_said(script: Scripted, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    completion = complete(
        script(ids), tokenizer, ids[:2], GenerationSettings(max_new_tokens=len(ids) - 2, stop="¿Qué?!")
    )
    assert completion.text.endswith("¿Qué?")
    assert completion.finish_reason == "length"


def test_an_end_token_is_counted_but_is_no_text(script: Scripted, tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_id
    assert end is not None
    ids = [*tokenizer.encode("The cat sat"), end, *tokenizer.encode("never")]
    completion = complete(script(ids), tokenizer, ids[:1], GenerationSettings())
    assert completion.text == "The cat sat"[len(tokenizer.decode(ids[:1])) :]
    assert completion.finish_reason == "stop"
    assert completion.tokens[-1].id == end
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, ids.index(end))
    other = complete(script(ids), tokenizer, ids[:1], GenerationSettings(max_new_tokens=5), end_ids=frozenset({ids[2]}))
    assert [piece.id for piece in other.tokens] == ids[1:3]
    assert other.text == tokenizer.decode(ids[1:2])


def test_alternatives_come_with_their_log_probabilities(network: Network, tokenizer: Tokenizer) -> None:
    for piece in stream(network, tokenizer, "The", GenerationSettings(max_new_tokens=10, top_k=1), top=4):
        assert len(piece.top) == 4
        assert piece.top[0].id == piece.id
        assert piece.top[0].log_prob == piece.log_prob
        assert [a.log_prob for a in piece.top] == sorted((a.log_prob for a in piece.top), reverse=True)
        assert piece.top[1].text == tokenizer.token(piece.top[1].id)


def test_n_choices_are_each_what_they_are_alone(network: Network, tokenizer: Tokenizer) -> None:
    wanted = GenerationSettings(n=4, seed=3, temperature=1.2, max_new_tokens=30, stop=("at",))
    several = choices(network, tokenizer, "The cat sat on", wanted)
    assert several[0] == complete(network, tokenizer, "The cat sat on", wanted)
    assert several[:2] == choices(network, tokenizer, "The cat sat on", wanted.replace(n=2))
    assert len({completion.text for completion in several}) > 1
    with pytest.raises(UsageError, match="n is 4"):
        stream(network, tokenizer, "The", wanted)


def test_an_empty_prompt_begins_a_text(network: Network, tokenizer: Tokenizer) -> None:
    assert prompt_ids(tokenizer, "") == [tokenizer.eos_id]
    assert complete(network, tokenizer, "", GenerationSettings()).usage.prompt_tokens == 1
    bare = Tokenizer.train("char", ["abc"], special_tokens=("<bos>",))
    assert prompt_ids(bare, "") == [bare.bos_id]
    with pytest.raises(UsageError, match="no BOS or EOS"):
        prompt_ids(Tokenizer.train("char", ["abc"], special_tokens=()), "")


def test_a_model_may_have_more_rows_than_its_tokenizer_has_tokens(network: Network) -> None:
    small = Tokenizer.train("char", ["The cat"])
    wanted = GenerationSettings(max_new_tokens=40, temperature=3.0, top_k=0)
    completion = complete(network, small, "The", wanted, top=3)
    assert any(piece.id >= small.vocab_size for piece in completion.tokens)
    assert len(completion.tokens) == 40
