"""Samples of texts, mixtures and pairs: pure functions of (seed, step), the same for any number of ranks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.data.batch import IGNORED, Batch
from loquela.data.bitext import Bitext, Pairs, PairSamples, Side, read_pairs
from loquela.data.mixture import Mixture, MixtureSamples
from loquela.data.objectives import OBJECTIVES
from loquela.data.samples import Blocks, Samples, Task, Text
from loquela.data.shards import Corpus, TokenFile
from loquela.data.special import Special
from loquela.errors import DataError, UsageError
from loquela.text.tokenizer import Tokenizer

BYTE = Tokenizer.train("byte", [], special_tokens=("<|endoftext|>", "<pad>"))
SPECIAL = Special.of(BYTE)


def task(name: str = "causal", seed: int = 1, crosses: bool = True) -> Task:
    kind = OBJECTIVES[name].readers[0]
    special = Special(300, reader=kind, eos=0, start=0, mask=299, pad=1, marks=frozenset({0, 1, 299}))
    return Task(OBJECTIVES[name], special, seed, OBJECTIVES[name].options({}), crosses)


def tokens(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 299, size=n).astype(np.uint16)


def side(lengths: list[int], start: int) -> Side:
    return Side.of([[start + n % 100] * length for n, length in enumerate(lengths)], "<u2")


def pair_samples(n: int = 700, seed: int = 3) -> PairSamples:
    lengths = np.random.default_rng(1).integers(1, 30, size=(2, n)).tolist()
    return PairSamples((side(lengths[0], 50), side(lengths[1], 150)), task("pairs", seed), 8)


SAMPLES: dict[str, Samples] = {
    "blocks": Blocks(tokens(5000), task(), block=16, batch_size=8),
    "masked": Blocks(tokens(5000), task("masked"), block=16, batch_size=8),
    "apart": Blocks(tokens(5000) % 5, task(crosses=False), block=16, batch_size=8),
    "mixture": MixtureSamples([tokens(900), tokens(4000, 1)], [2, 1], task("masked"), block=16, batch_size=8),
    "pairs": pair_samples(),
}


def equal(a: Batch, b: Batch, width: int) -> bool:
    """Whether both hold the same, but for what fills rows up."""
    return torch.equal(a.inputs[:, :width], b.inputs[:, :width]) and torch.equal(
        a.labels[:, :width], b.labels[:, :width]
    )


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("step", [0, 1, 77, 12_345])
def test_one_process_two_four_and_eight_compute_the_same_batch(name: str, step: int) -> None:
    samples = SAMPLES[name]
    whole = samples.batch(step)
    for world in (2, 4, 8):
        place = 0
        for rank in range(world):
            part = samples.batch(step, rank, world)
            rows = whole.rows(slice(place, place + len(part)))
            assert equal(rows, part, part.inputs.shape[1])
            place += len(part)
        assert place == 8


@pytest.mark.parametrize("name", SAMPLES)
def test_a_step_does_not_depend_on_the_steps_before(name: str) -> None:
    samples = SAMPLES[name]
    late = samples.batch(40)
    for step in (3, 900, 40):
        again = samples.batch(step)
    assert torch.equal(late.inputs, again.inputs)
    assert torch.equal(late.labels, again.labels)
    assert samples.place(40).startswith("its samples ")
    assert not torch.equal(samples.batch(41).inputs, late.inputs)


# -- texts


@given(n=st.integers(3, 200), block=st.integers(2, 40), batch_size=st.integers(1, 7))
def test_a_validation_is_the_same_each_time_and_of_what_is_held_out(n: int, block: int, batch_size: int) -> None:
    held = tokens(n)
    for name in ("causal", "masked"):
        text = Text(Corpus(TokenFile(tokens(500), 500), TokenFile(held, n)), task(name))
        one, two = (list(text.held_out(block, batch_size)) for _ in range(2))
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))
        asked = torch.cat([batch.labels[batch.labels != IGNORED] for batch in one]).tolist()
        if name == "causal":
            assert asked == held[1:].tolist()
            assert text.val_bytes == n
        else:
            assert not Counter(asked) - Counter(held.tolist())
            assert text.val_bytes is None


def test_documents_of_a_validation_are_numbered_too() -> None:
    held = np.array([5, 6, 0, 7, 0, 8, 9, 0, 5, 5, 5], dtype=np.uint16)
    text = Text(Corpus(TokenFile(tokens(500), 500), TokenFile(held, 11)), task(crosses=False))
    (batch,) = text.held_out(5, 4)
    assert batch.segments is not None
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


# -- mixtures


def test_texts_come_as_often_as_their_weights_say() -> None:
    texts = [tokens(2000, n) for n in range(3)]
    samples = MixtureSamples(texts, [5, 3, 2], task(), block=16, batch_size=50)
    which, own = samples.sources(np.arange(3000))
    for cycle in range(3):
        assert Counter(which[1000 * cycle : 1000 * (cycle + 1)].tolist()) == {0: 500, 1: 300, 2: 200}
    for source in range(3):
        assert own[which == source].tolist() == list(range(len(own[which == source])))
    assert Counter(which[:100].tolist())[0] < 75, "well mixed"
    assert not (which[:1000] == which[1000:2000]).all()
    late, _ = samples.sources(np.array([2500, 7, 1999]))
    assert late.tolist() == which[[2500, 7, 1999]].tolist()
    with pytest.raises(UsageError, match="each weight must be at least a thousandth of all, but they are 1, 5000"):
        MixtureSamples(texts[:2], [1, 5000], task(), block=16, batch_size=50)


def test_each_text_of_a_mixture_is_seen_in_its_own_order() -> None:
    texts = [np.full(700, 7, np.uint16), np.full(700, 9, np.uint16)]
    batch = MixtureSamples(texts, [1, 1], task(), block=16, batch_size=100).batch(3)
    assert set(batch.inputs[:, 0].tolist()) == {7, 9}
    assert all(len(set(row)) == 1 for row in batch.inputs.tolist())
    parts = [Text(Corpus(TokenFile(t, 700), TokenFile(t[:40], 40)), task()) for t in texts]
    mixture = Mixture(parts, [1, 1])
    assert (mixture.train_tokens, mixture.val_tokens, mixture.val_bytes) == (1400, 78, 80)
    assert sum(int((b.labels != IGNORED).sum()) for b in mixture.held_out(16, 4)) == 78


# -- pairs


def test_every_pair_comes_once_in_an_epoch_and_with_those_of_like_length() -> None:
    samples = pair_samples(n=256 * 3)
    seen = np.concatenate([samples.indices(step) for step in range(96)])
    assert sorted(seen.tolist()) == list(range(768))
    lengths = samples.sides[1].lengths
    spread = np.mean([np.ptp(lengths[samples.indices(step)]) for step in range(96)])
    assert spread < 4, "of 29 that a shuffled batch has"
    first = [int(lengths[samples.indices(step)].max()) for step in range(32)]
    assert first != sorted(first), "short batches do not come first"


def files(directory: Path, one: str, other: str) -> tuple[str, str]:
    for name, content in (("one", one), ("other", other)):
        (directory / name).write_text(content)
    return str(directory / "one"), str(directory / "other")


def test_lines_belong_together_and_empty_ones_are_counted(tmp_path: Path) -> None:
    notes: list[str] = []
    paths = files(tmp_path, "a\n\nc\n d\u2028e", "A\nB\n  \nD\n")
    assert list(read_pairs(*paths, notes=notes)) == [("a", "A"), (" d\u2028e", "D")]
    assert notes == [f"{paths[0]} and {paths[1]}: 2 pairs are left out, one side of which is empty"]
    with pytest.raises(DataError, match=r"must have as many lines, since .* but the first ends after 1"):
        list(read_pairs(*files(tmp_path, "a\n", "A\nB\n")))
    with pytest.raises(DataError, match="must hold a source and its target, but hold none"):
        list(read_pairs(*files(tmp_path, " \n", "A\n")))
    with pytest.raises(DataError, match="must be a file, a text per line, but does not exist"):
        list(read_pairs(str(tmp_path / "nowhere"), str(tmp_path / "one")))


def test_pairs_are_fields_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [{"en": "a", "fr": "A"}, {"translation": {"en": "b", "fr": "B"}}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(read_pairs("en", "fr", str(path))) == [("a", "A"), ("b", "B")]
    path.write_text("\n".join(map(json.dumps, [*rows, {"en": "c"}, 5, {"en": 1, "fr": "x"}])))
    with pytest.raises(DataError, match=r"row 3 must have a text under 'en' and 'fr'; row 4 .*; 2 rows are good"):
        list(read_pairs("en", "fr", str(path)))
    table = tmp_path / "rows.tsv"
    table.write_text("source\ttarget\na\tA\nb\tB\n")
    assert list(read_pairs("source", "target", str(table))) == [("a", "A"), ("b", "B")]
    table.write_text(table.read_text().replace("source", "en").replace("target", "xx"))
    assert list(read_pairs("en", "xx", str(table))) == [("a", "A"), ("b", "B")], "a header of any names"


def test_all_pairs_of_one_source_are_on_one_side_of_the_split() -> None:
    pairs = [(f"source {n % 200}", f"target {n}") for n in range(800)]
    pairs[3] = ("a" * 90, "too long")
    bitext = Bitext.build(lambda notes: iter(pairs), BYTE, longest=40, validation_fraction=0.2)
    assert len(bitext.train[0]) + len(bitext.validation[0]) == 799
    sources = [{tuple(side[i]) for i in range(len(side))} for side in (bitext.train[0], bitext.validation[0])]
    assert not sources[0] & sources[1]
    assert 20 < len(sources[1]) < 65
    assert bitext.notes == ["1 pairs are left out: a side has more than 40 tokens (block_size)"]
    material = Pairs(bitext, task("pairs"))
    held = list(material.held_out(40, 7))
    assert sum(int((batch.labels != IGNORED).sum()) for batch in held) == material.val_tokens
    assert material.val_bytes == sum(
        len(target) for source, target in pairs if tuple(BYTE.encode(source)) in sources[1]
    )
    assert material.opening(BYTE, 6) == "source"
    with pytest.raises(DataError, match="must leave some held out, but leave none of 3"):
        Bitext.build(lambda notes: iter([("a", "b")] * 3), BYTE, longest=40, validation_fraction=1e-9)
