"""The laws of each objective: nothing is lost, shares are what they say, what is written rebuilds the text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.data.batch import IGNORED, Sample
from loquela.data.objectives import OBJECTIVES, Pair
from loquela.data.samples import Task
from loquela.data.special import FIM, SENTINEL, Special
from loquela.errors import RecipeError, UsageError
from loquela.text.tokenizer import Tokenizer

TEXT = "The quick brown fox, isn't it?  He said: no! It jumped over 12 dogs.\nUnbelievable things happened.\n" * 9
BPE = Tokenizer.train(
    "bpe",
    [TEXT],
    480,
    special_tokens=("<|endoftext|>", "<pad>", "<mask>", *FIM[0], *map(SENTINEL.format, range(30))),
)
SPECIAL = Special.of(BPE)
EOS = SPECIAL.eos
seeds = st.integers(0, 2**63 - 1)
rows = st.lists(st.integers(36, 300) | st.just(EOS), min_size=3, max_size=120).map(
    lambda ids: np.array(ids, dtype=np.int64)
)
"""Rows of ordinary tokens, with ends of documents between."""


def reader(kind: Any, **others: Any) -> Special:
    return Special(
        **{**vars_of(SPECIAL), "reader": kind, "start": EOS if kind == "encoder-decoder" else None, **others}
    )


def vars_of(special: Special) -> dict[str, Any]:
    return {name: getattr(special, name) for name in special.__dataclass_fields__}


def made(name: str, tokens: Any, seed: int, kind: Any = "decoder", number: int = 0, **options: Any) -> Sample:
    objective = OBJECTIVES[name]
    return Task(objective, reader(kind), seed, objective.options(options)).sample(tokens, number)


def test_special_tokens_are_found_by_their_names() -> None:
    assert SPECIAL.sentinels == tuple(BPE.id_of(f"<extra_id_{i}>") for i in range(30))
    assert SPECIAL.fim == tuple(BPE.id_of(f"<fim_{part}>") for part in ("prefix", "middle", "suffix"))
    assert {SPECIAL.mask, SPECIAL.pad, EOS} <= SPECIAL.marks
    assert len(SPECIAL.ordinary) == BPE.vocab_size - len(SPECIAL.marks)
    assert (SPECIAL.before, SPECIAL.after) == ((), ())


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "byte", "char"])
def test_words_are_what_stands_between_blanks_and_punctuation(kind: str) -> None:
    tokenizer = Tokenizer.train(kind, [TEXT], None if kind in ("byte", "char") else 330)
    ids = np.array(tokenizer.encode("It jumped: unbelievable things, isn't it? 12dogs"))
    words = Special.of(tokenizer).words(ids)
    parts = [
        "".join(tokenizer.token(i).strip().removeprefix("##") for i in ids[words == n]) for n in range(words[-1] + 1)
    ]
    letters = ["".join(filter(str.isalnum, part)) for part in parts]  # a BPE may have 't as one token
    assert [word for word in letters if word] == "It jumped unbelievable things isn t it 12dogs".split()


# -- causal and prefix_lm


@given(tokens=rows, seed=seeds)
def test_a_prefix_carries_no_loss_and_all_that_follows_does(tokens: np.ndarray, seed: int) -> None:
    plain = made("causal", tokens, seed)
    assert (plain.inputs.tolist(), plain.labels.tolist()) == (tokens[:-1].tolist(), tokens[1:].tolist())
    sample = made("prefix_lm", tokens, seed)
    asked = sample.labels != IGNORED
    first = int(np.argmax(asked))
    assert asked[first:].all()
    assert not asked[:first].any()
    assert sample.labels[asked].tolist() == tokens[1:][first:].tolist()
    both = made("prefix_lm", tokens, seed, "encoder-decoder")
    assert both.source is not None
    assert [*both.source, *both.labels] == tokens.tolist()
    assert both.inputs.tolist() == [EOS, *both.labels[:-1]]


# -- masked


@given(tokens=rows, seed=seeds, ratio=st.floats(0.01, 0.9), whole=st.booleans())
def test_a_mask_hides_its_share_and_nothing_else_changes(
    tokens: np.ndarray, seed: int, ratio: float, whole: bool
) -> None:
    sample = made("masked", tokens, seed, "encoder", ratio=ratio, whole_words=whole)
    text = tokens[:-1]
    asked = sample.labels != IGNORED
    assert (sample.labels[asked] == text[asked]).all()
    assert (sample.inputs[~asked] == text[~asked]).all()
    assert not SPECIAL.is_mark[text[asked]].any()
    assert not SPECIAL.is_mark[np.setdiff1d(sample.inputs[asked], [SPECIAL.mask])].any()
    may = int((text != EOS).sum())
    if not whole:
        assert asked.sum() == (max(1, round(ratio * may)) if may else 0)
    elif may:
        words = SPECIAL.words(text)
        for word in set(words[asked]):
            inside = (words == word) & (text != EOS)
            assert asked[inside].all(), "a word is hidden whole or not at all"
        most = Counter(words[text != EOS].tolist()).most_common(1)[0][1]
        assert asked.sum() <= max(round(ratio * may), most)


def test_of_what_is_predicted_eight_in_ten_are_hidden_one_is_another_and_one_stays() -> None:
    tokens = np.tile(np.arange(40, 240), 100)
    sample = made("masked", np.append(tokens, 40), 7, "encoder")
    asked = sample.labels != IGNORED
    n = int(asked.sum())
    assert n == round(0.15 * len(tokens))
    hidden = (sample.inputs[asked] == SPECIAL.mask).mean()
    stays = (sample.inputs[asked] == tokens[asked]).mean()
    bound = 4 * (0.8 * 0.2 / n) ** 0.5  # four standard deviations
    assert abs(hidden - 0.8) < bound
    assert abs(stays - 0.1) < bound
    assert abs(1 - hidden - stays - 0.1) < bound


def test_what_the_tokenizer_puts_around_a_text_stands_around_the_row() -> None:
    special = reader("encoder", before=(300,), after=(301,), marks=SPECIAL.marks | {300, 301})
    sample = Task(OBJECTIVES["masked"], special, 0, {"ratio": 0.99}).sample(np.arange(40, 61), 0)
    assert len(sample.inputs) == 20
    assert (sample.inputs[0], sample.inputs[-1]) == (300, 301)
    assert (sample.labels[0], sample.labels[-1]) == (IGNORED, IGNORED)


# -- spans


def rebuilt(source: list[int], target: list[int]) -> list[int]:
    """Put each span where its sentinel stands."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SPECIAL.sentinels:
            last = token
            spans[last] = []
        else:
            spans[last].append(token)
    return [i for token in source for i in (spans.pop(token) if token in spans else [token])]


@given(tokens=rows, seed=seeds, ratio=st.floats(0.05, 0.5), mean=st.floats(3, 8))
def test_sentinels_rebuild_the_text(tokens: np.ndarray, seed: int, ratio: float, mean: float) -> None:
    for kind in ("encoder-decoder", "decoder"):
        if len(tokens) < 9:
            continue
        sample = made("span_corruption", tokens, seed, kind, ratio=ratio, mean_span=mean)
        if sample.source is None:
            whole = [*sample.inputs, sample.labels[-1]]
            border = int(np.argmax(sample.labels != IGNORED)) + 1
            source, target = whole[:border], whole[border:]
            assert (sample.labels[border - 1 :] == [*sample.inputs.tolist()[border:], target[-1]]).all()
        else:
            source, target = sample.source.tolist(), sample.labels.tolist()
            assert sample.inputs.tolist() == [EOS, *target[:-1]]
        assert max(len(source), len(sample.inputs)) < len(tokens)
        assert target[-1] == EOS
        assert source[-1] in SPECIAL.sentinels
        n = len(rebuilt(source, target[:-1]))
        assert rebuilt(source, target[:-1]) == tokens[:n].tolist()
        gone = sum(token not in SPECIAL.sentinels for token in target[:-1])
        assert gone == min(max(1, round(n * ratio)), n - 1)
        used = [token for token in target if token in SPECIAL.sentinels]
        assert used == list(SPECIAL.sentinels[: len(used)])
        assert [token for token in source if token in SPECIAL.sentinels] == used[:-1]


def test_a_block_without_room_for_spans_is_refused() -> None:
    with pytest.raises(RecipeError, match="block_size must leave room for two tokens and two sentinels"):
        made("span_corruption", np.arange(40, 44), 0, "decoder")


def test_too_few_sentinels_are_said() -> None:
    with pytest.raises(UsageError, match=r"must have a tokenizer with 68 sentinels .*, but this one has 30"):
        made("span_corruption", np.arange(40, 300).repeat(2)[:500], 0, "encoder-decoder", ratio=0.4)


# -- denoising


@given(tokens=rows, seed=seeds, ratio=st.floats(0.05, 0.6), mean=st.floats(0.5, 6), permute=st.booleans())
def test_a_noisy_text_is_the_text_with_gaps(
    tokens: np.ndarray, seed: int, ratio: float, mean: float, permute: bool
) -> None:
    sample = made("denoising", tokens, seed, "encoder-decoder", ratio=ratio, mean_span=mean, permute_sentences=permute)
    text, source = sample.labels.tolist(), sample.source
    assert source is not None
    assert text == [*tokens[: len(text) - 1], EOS]
    assert len(source) < len(tokens)
    kept = [token for token in source.tolist() if token != SPECIAL.mask]
    n = len(text) - 1
    assert len(kept) == n - min(max(1, round(ratio * n)), n)
    assert not Counter(kept) - Counter(text[:-1])
    if not permute:
        rest = iter(text)
        assert all(token in rest for token in kept), "in their order"


def test_sentences_are_shuffled_whole() -> None:
    ids = np.array(BPE.encode("One fox. Two dogs! Three things? Four.\nFive fox."))
    parts = [BPE.decode(part.tolist()) for part in SPECIAL.sentences(ids)]
    assert "".join(parts) == "One fox. Two dogs! Three things? Four.\nFive fox."
    assert len(parts) >= 5
    orders = {
        tuple(made("denoising", np.append(ids, [40, 41]), 3, "encoder-decoder", n, ratio=0.01).source)  # type: ignore[arg-type]
        for n in range(20)
    }
    assert len(orders) > 10


# -- fill in the middle


@given(tokens=rows, seed=seeds, rate=st.sampled_from([0.0, 0.5, 1.0]), spm=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_parts_of_a_document_put_back_are_the_document(
    tokens: np.ndarray, seed: int, rate: float, spm: float
) -> None:
    assert SPECIAL.fim is not None
    prefix, middle, suffix = SPECIAL.fim
    sample = made("fim", tokens, seed, rate=rate, spm_rate=spm)
    row = [*sample.inputs, sample.labels[-1]]
    assert row[1:] == sample.labels.tolist()
    assert len(row) == len(tokens)
    back: list[int] = []
    for document in np.split(row, np.flatnonzero(np.array(row) == EOS) + 1):
        ids = document.tolist()
        if prefix not in ids:
            back += ids
            continue
        end = [EOS] if ids[-1] == EOS else []
        ids = ids[: len(ids) - len(end)]
        a, b, c = ids.index(prefix), ids.index(suffix), ids.index(middle)
        assert a == 0
        if spm == 0:
            assert a < b < c
            back += [*ids[1:b], *ids[c + 1 :], *ids[b + 1 : c], *end]
        else:  # suffix first: prefix and middle stand together; or the other form, told by what stands between
            psm = b != 1
            back += [*ids[1:b], *ids[c + 1 :], *ids[b + 1 : c], *end] if psm else [*ids[c + 1 :], *ids[b + 1 : c], *end]
    if spm in (0.0, 1.0):
        assert back == tokens[: len(back)].tolist()
    assert len(back) >= len(tokens) - 3 * (row.count(prefix))
    if rate == 0:
        assert row == tokens.tolist()


# -- pairs, and what all share


def test_pairs_are_read_and_written() -> None:
    pair = Pair(np.array([50, 51, 52]), np.array([60, 61]))
    sample = made("pairs", pair, 0, "encoder-decoder")
    assert sample.source is not None
    assert (sample.source.tolist(), sample.inputs.tolist(), sample.labels.tolist()) == (
        [50, 51, 52],
        [EOS, 60, 61],
        [60, 61, EOS],
    )
    longer = Pair(np.arange(40, 49), np.array([70]))
    batch = Task(OBJECTIVES["pairs"], reader("encoder-decoder"), 0).batch([pair, longer], 0)
    assert batch.source is not None
    assert batch.source_padding is not None
    assert batch.source[0].tolist() == [50, 51, 52, *[SPECIAL.pad] * 6]
    assert batch.source_padding.tolist() == [[True] * 3 + [False] * 6, [True] * 9]
    assert batch.labels.tolist() == [[60, 61, EOS], [70, EOS, IGNORED]]


READERS = [(name, kind) for name, made_ in OBJECTIVES.items() if not made_.takes_pairs for kind in made_.readers]


@pytest.mark.parametrize(("name", "kind"), READERS)
def test_a_sample_depends_on_seed_and_number_alone(name: str, kind: Any) -> None:
    tokens = [np.random.default_rng(n).integers(36, 300, size=65) for n in range(6)]
    task = Task(OBJECTIVES[name], reader(kind), 5, OBJECTIVES[name].options({}))
    whole = task.batch(tokens, 40)
    parts = [task.batch(tokens[i : i + 2], 40 + i) for i in (0, 2, 4)]
    if (name, kind) not in (("denoising", "encoder-decoder"), ("prefix_lm", "encoder-decoder")):  # filled up otherwise
        assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
    again = task.sample(tokens[3], 43)
    assert again.inputs.tolist() == task.sample(tokens[3], 43).inputs.tolist()
    if name != "causal":
        others = [task.sample(tokens[3], n) for n in range(50)]
        assert len({(*s.inputs, *s.labels, *([] if s.source is None else s.source)) for s in others}) > 20


@pytest.mark.parametrize("name", ["masked", "denoising", "fim", "span_corruption"])
def test_a_tokenizer_without_the_tokens_is_refused_with_the_way_out(name: str) -> None:
    task = Task(OBJECTIVES[name], Special(400, reader=OBJECTIVES[name].readers[0], start=0, eos=0), 0)
    with pytest.raises(UsageError, match=r"must have a tokenizer with .*: train one"):
        task.sample(np.arange(64), 0)


def test_options_are_checked_by_name_and_range() -> None:
    assert OBJECTIVES["masked"].options({"ratio": 0.3})["ratio"] == 0.3
    with pytest.raises(RecipeError, match="one is 'ratoi'; did you mean 'ratio'"):
        OBJECTIVES["masked"].options({"ratoi": 0.3})
    with pytest.raises(RecipeError, match=r"objective_options.ratio: input should be less than 1, but is 1.5"):
        OBJECTIVES["masked"].options({"ratio": 1.5})
    with pytest.raises(RecipeError, match="must be of none"):
        OBJECTIVES["causal"].options({"ratio": 0.5})


@given(tokens=rows)
def test_documents_are_numbered_by_their_ends(tokens: np.ndarray) -> None:
    task = Task(OBJECTIVES["causal"], SPECIAL, 0, {}, crosses_documents=False)
    sample = task.sample(tokens, 0)
    assert sample.segments is not None
    number, expected = 0, []
    for token in sample.inputs:
        expected.append(number)
        number += token == EOS
    assert sample.segments.tolist() == expected
