"""Test items found again in a training text, however it is cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.data.builder import build
from loquela.data.gather import Gathering
from loquela.data.readers import Piece
from loquela.errors import DataError, UsageError
from loquela.evaluation import contamination
from loquela.evaluation.contamination import (
    built_pieces,
    item_texts,
    overlap,
    overlap_of,
    report,
    training_pieces,
    words,
)
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate, prepare_task
from loquela.evaluation.task import Data, Task
from loquela.text.tokenizer import Tokenizer

VOCABULARY = [f"w{i}" for i in range(4)]
texts = st.lists(st.sampled_from(VOCABULARY), max_size=20).map(" ".join)


@given(
    st.dictionaries(st.integers(0, 5), st.lists(texts, min_size=1, max_size=2), max_size=4),
    st.lists(st.lists(st.tuples(st.sampled_from(VOCABULARY), st.booleans()), max_size=30), max_size=3),
    st.integers(8, 10),
)
def test_equal_to_a_plain_search(items: dict[int, list[str]], documents: list[list[tuple[str, bool]]], n: int) -> None:
    pieces, plain = [], []
    for document in documents:
        plain.append([word for word, _ in document])
        part: list[str] = []
        for word, cut in document:
            part.append(word)
            if cut:
                pieces.append(Piece(" ".join(part) + " ", ends_document=False))
                part = []
        pieces.append(Piece(" ".join(part), ends_document=True))
    expected = set()
    for number, found in items.items():
        for text in found:
            size = min(n, len(text.split()))
            grams = {tuple(text.split()[i : i + size]) for i in range(len(text.split()) - size + 1)}
            if size >= 8 and any(tuple(d[i : i + size]) in grams for d in plain for i in range(len(d) - size + 1)):
                expected.add(number)
    result = overlap(items, pieces, n=n)
    assert result.contaminated == expected
    assert result.unchecked == {i for i, found in items.items() if all(len(t.split()) < 8 for t in found)}
    assert result.training_words == sum(map(len, plain))


def test_case_and_punctuation_do_not_hide_it() -> None:
    text = "It was the best of times, it was the worst of times."
    hidden = "xx IT WAS... the best -- of Times it was the worst of times yy"
    assert overlap({0: [text]}, [Piece(hidden, True)]).contaminated == {0}
    assert words("¿Qué, niño?") == ["qué", "niño"]
    with pytest.raises(UsageError, match="at least 8 words"):
        overlap({}, [], n=3)


def test_only_what_a_row_says_is_looked_for() -> None:
    task = Task(kind="generate", data=Data(test="x"), prompt="Q: {q}\nA:", target="{a|strip}", metrics=["f1"])
    assert item_texts(task, [{"q": "one", "a": " two", "other": "three"}]) == {0: ["one", " two"]}


def test_the_score_of_what_is_clean(llama: LocalSubject, rows_file: Callable[..., Path], questions: list[Any]) -> None:
    rows = [
        {**row, "question": f"{row['question']} and then again what was it that {i} said"}
        for i, row in enumerate(questions)
    ]
    path = rows_file(rows)
    result = evaluate(llama, path, limit=40).results["set"]
    prepared = prepare_task(path)
    seen = [r["item"] for r in result.records[:15]]
    training = [Piece(f"before {prepared.rows[i]['question']} after", True) for i in seen]
    found = overlap(item_texts(prepared.task, prepared.rows), training)
    assert set(seen) <= found.contaminated
    said = report(prepared.task, result, found)
    asked = {r["item"] for r in result.records}
    clean = [r for r in result.records if r["item"] not in found.contaminated]
    assert said["items"] == len(asked & found.contaminated)
    assert said["share"] == said["items"] / 40
    right = [max(range(len(r["log_probs"])), key=r["log_probs"].__getitem__) == r["gold"] for r in clean]
    assert said["clean"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert said["clean"]["n"] == len(clean)


def test_training_files_of_any_form(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text here")
    (tmp_path / "b.tsv").write_text("good film\t1\nbad film\t0\n")
    (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "hello there"}], "n": 3}\n')
    (tmp_path / "d.jsonl").write_text('{"text": "a document"}\n')
    found = {p.name: [piece.text for piece in training_pieces(p)] for p in sorted(tmp_path.iterdir())}
    assert found == {
        "a.txt": ["plain text here"],
        "b.tsv": ["good film\n1", "bad film\n0"],
        "c.jsonl": ["user\nhello there"],
        "d.jsonl": ["a document"],
    }


SENTENCE = "el viejo zorro cruzó la calle sin mirar y luego volvió a su casa muy tarde"
LEARNT = [f"{SENTENCE} número {i}, über 東京 café don't stop. " * 3 for i in range(30)]


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data build makes of documents, one of which is long, in several shards."""
    directory = tmp_path_factory.mktemp("shards")
    (directory / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in [*LEARNT, " ".join(LEARNT)]),
        encoding="utf-8",
    )
    special = ("[UNK]", "<|endoftext|>") if request.param != "bpe" else ("<|endoftext|>",)
    tokenizer = Tokenizer.train(request.param, LEARNT, 380, special_tokens=special)
    gathering = Gathering([str(directory / "texts.jsonl")])
    build(gathering, tokenizer, directory / "built", near=None, validation_fraction=0, shard=2000, processes=1)
    return directory / "built"


@pytest.mark.parametrize("window", [40, 300, 1 << 16])
def test_words_of_shards_are_those_of_their_documents(
    shards: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of tokens is decoded at once, no word is cut, lost or told twice."""
    monkeypatch.setattr(contamination, "_TOKENS", window)
    pieces, tokenizer = built_pieces(shards)
    found: list[list[str]] = [[]]
    for piece in pieces:
        found[-1] += words(piece.text)
        if piece.ends_document:
            found.append([])
    expected = [words(tokenizer.decode(tokenizer.encode(text))) for text in [*LEARNT, " ".join(LEARNT)]]
    assert found[:-1] == expected
    assert not found[-1]


def test_items_are_found_in_shards(shards: Path, tmp_path: Path) -> None:
    learnt = "CRUZÓ la calle sin mirar, y luego volvió a su casa"
    items = {0: [learnt], 1: [learnt.replace("casa", "calle")], 2: ["sin mirar"], 3: ["x", f"-- {SENTENCE} número 7!"]}
    found = overlap_of(items, [shards])
    assert found.contaminated == {0, 3}
    assert found.unchecked == {2}
    assert found.checked == 3
    (tmp_path / "more.txt").write_text(f"a {items[1][0]} b", encoding="utf-8")
    both = overlap_of(items, [tmp_path / "more.txt", shards])
    assert both.contaminated == {0, 1, 3}
    assert both.training_words == found.training_words + len(words(items[1][0])) + 2


def test_damaged_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    part = next((tmp_path / "copy").glob("train-*.bin"))
    *kept, last = part.read_bytes()
    part.write_bytes(bytes([*kept, last ^ 1]))
    with pytest.raises(DataError, match="data build"):
        overlap_of({0: [SENTENCE]}, [tmp_path / "copy"])
