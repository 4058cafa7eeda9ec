"""Test items found again in a training text, however it is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.data.readers import Piece
from loquela.errors import UsageError
from loquela.evaluation.contamination import item_texts, overlap, report, training_pieces, words
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate, prepare_task
from loquela.evaluation.task import Data, Task

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
