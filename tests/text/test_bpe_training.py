"""Byte-level BPE against its definition, and against the reference vocabulary of Stanford's CS336."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

from loquela.text.tokenizer import Tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.json)["model"]["merges"]]


def pair_counts(words: dict[tuple[str, ...], int]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    return counts


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def assert_each_merge_is_a_most_frequent_pair(text: str, merges: list[tuple[str, str]]) -> None:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    words: dict[tuple[str, ...], int] = dict(Counter(tuple(word) for word, _ in cut))
    for pair in merges:
        counts = pair_counts(words)
        assert counts[pair] == max(counts.values()) > 1
        words = {merged(word, pair): count for word, count in words.items()}


def test_each_merge_is_a_most_frequent_pair() -> None:
    text = "low lower lowest, new newer newest; wide wider widest. ¡más, más! \n\n 1234 1234 the then them don't" * 3
    tokenizer = Tokenizer.train("bpe", [text], 320)
    assert len(merges_of(tokenizer)) > 30
    assert_each_merge_is_a_most_frequent_pair(text, merges_of(tokenizer))


def test_special_tokens_in_a_text_are_not_learnt_from() -> None:
    text = "abc<|endoftext|>" * 50
    merges = merges_of(Tokenizer.train("bpe", [text], 400))
    assert merges == merges_of(Tokenizer.train("bpe", ["abc"] * 50, 400)) == [("a", "b"), ("ab", "c")]


def test_the_reference_vocabulary_but_for_ties(shared_data: Path) -> None:
    """Of pairs equally frequent the reference takes the greatest by bytes, the library the earliest by ids.

    So the merges differ in order where counts tie, and in three of 500 tokens where the last tie is cut by the size.
    """
    folder = shared_data / "models" / "bpe_reference"
    text = (folder / "corpus.en").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train("bpe", [text], 500)
    ours = set(json.loads(tokenizer.json)["model"]["vocab"])
    theirs = set(json.loads((folder / "train_bpe_reference_vocab.json").read_text(encoding="utf-8")))
    assert len(ours) == len(theirs) == 500
    assert len(ours & theirs) == 497
    assert_each_merge_is_a_most_frequent_pair(
        text[:40_000], merges_of(Tokenizer.train("bpe", [text[:40_000]], 500))[:80]
    )
    lines = (folder / "train_bpe_reference_merges.txt").read_text(encoding="utf-8").splitlines()
    reference = [(line.split(" ")[0], line.split(" ")[1]) for line in lines]
    assert merges_of(tokenizer)[:31] == reference[:31]  # the first tie
