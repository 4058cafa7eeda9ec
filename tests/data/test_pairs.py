"""Rows of tuning data: every format is told from its fields, and no row is lost in silence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loquela.data.pairs import FORMATS, Conversation, Labelled, Pair, Tagged, Text, read_examples
from loquela.errors import DataError, UsageError

ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
ROWS: dict[str, tuple[dict[str, Any], Any]] = {
    "alpaca": (
        ALPACA,
        Conversation(({"role": "user", "content": "Add.\n\n1 + 1"}, {"role": "assistant", "content": "2"})),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        Conversation(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})),
    ),
    "chat": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        Conversation(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})),
    ),
    "prompt-completion": (
        {"prompt": "One, ", "completion": "two."},
        Pair("prompt-completion", {"prompt": "One, "}, "two."),
    ),
    "translation": (
        {"translation": {"en": "Go.", "es": "Ve."}},
        Pair("translation", {"source": "Go."}, "Ve."),
    ),
    "summarisation": (
        {"dialogue": "A: Hi.", "summary": "A greets."},
        Pair("summarisation", {"dialogue": "A: Hi."}, "A greets."),
    ),
    "classification": ({"text": "fine", "label": 1}, Labelled("fine", "1")),
    "tagging": ({"tokens": ["Ana", "sings"], "ner_tags": ["B-PER", "O"]}, Tagged(("Ana", "sings"), ("B-PER", "O"))),
    "text": ({"text": "All of it."}, Text("All of it.")),
    "preference": (
        {"prompt": "Hi", "chosen": "Ho", "rejected": "Go"},
        Conversation(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}), "Go"),
    ),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_every_format_has_a_row_here() -> None:
    assert ROWS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_format_is_detected_and_said(tmp_path: Path, name: str) -> None:
    row, meaning = ROWS[name]
    found = read_examples(write(tmp_path / "a.jsonl", [row, row]))
    assert (found.form, found.bad, [e.meaning for e in found.rows]) == (name, 0, [meaning] * 2)
    assert f"2 rows, format {name}" in found.notes[0]
    assert "detected" in found.notes[0]


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    rows = [ALPACA | {"input": ""}, ALPACA]
    expected = [e.meaning for e in read_examples(write(tmp_path / "a.jsonl", rows)).rows]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    header, *cells = ["\t".join(ALPACA), *("\t".join(row.values()) for row in rows)]
    (tmp_path / "a.tsv").write_text("\n".join([header, *cells]))
    (tmp_path / "a.csv").write_text("\n".join([header, *cells]).replace("\t", ","))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.json", "a.tsv", "a.csv", "a.jsonl.gz", "a.parquet", "a.parquet.gz"):
        assert [e.meaning for e in read_examples(tmp_path / name).rows] == expected, name


@pytest.mark.parametrize("header", ["", "text\tlabel\n", "sentence\tlabel\n"])
def test_texts_with_labels_need_no_header(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.tsv").write_text(header + "good\t1\nbad\t0\nbetter\t1\nworse\t0\n")
    assert [e.meaning for e in read_examples(tmp_path / "a.tsv").rows][:2] == [
        Labelled("good", "1"),
        Labelled("bad", "0"),
    ]


def test_two_columns_that_never_repeat_are_two_languages(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("Go.\tVe.\nHi.\tHola.\nRun!\t¡Corre!\n")
    assert read_examples(tmp_path / "a.tsv").form == "translation"


def test_the_cells_of_a_table_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"3","A title","A text"\n"1","Another","text"\n')
    with pytest.raises(DataError, match="--columns text,label"):
        read_examples(tmp_path / "a.csv")
    found = read_examples(tmp_path / "a.csv", columns=["label", "title", "text"])
    assert found.rows[0].meaning == Labelled("A text", "3")


BAD: list[tuple[Any, str]] = [
    (ALPACA | {"output": ""}, "'output', but it is empty"),
    (ALPACA | {"output": None}, "'output', but has nothing"),
    (ALPACA | {"output": "\ud800"}, "half a surrogate pair"),
    ({"instruction": "x"}, "must have the fields instruction, input, output, but has 'instruction'"),
    ([1], "must be an object"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason[-12:] for _, reason in BAD])
def test_a_wrong_row_is_named_and_counted(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", [ALPACA, row, ALPACA])
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used: row 2 .*--skip-bad-rows") as error:
        read_examples(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    found = read_examples(path, skip_bad_rows=True)
    assert (len(found), found.bad) == (2, 1)
    assert "they are left out" in found.notes[-1]


def test_a_format_that_is_named_must_exist_and_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [ALPACA])
    with pytest.raises(UsageError, match="did you mean 'alpaca'"):
        read_examples(path, form="alpacca")
    with pytest.raises(DataError, match="1 of 1 rows"):
        read_examples(path, form="chat")


def test_turns_of_a_conversation_are_checked(tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    cases = [
        ([question], "turn of the assistant"),
        ([question, {"role": "robot", "content": "Ho"}], "message 2 must have a role"),
        ([question, {"role": "assistant"}], "must have a text under 'content'"),
        ("Hi", "must have a list of turns"),
    ]
    for turns, reason in cases:
        with pytest.raises(DataError, match=reason):
            read_examples(write(tmp_path / "a.jsonl", [{"messages": turns}]))
    found = read_examples(write(tmp_path / "a.jsonl", [{"messages": [question, answer, question]}]))
    assert isinstance(found.rows[0].meaning, Conversation)
    assert found.rows[0].meaning.messages == (question, answer)  # the question without an answer teaches nothing


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def no_row_is_lost(path: Path, mutate: Callable[[str], str], index: int) -> None:
    rows = [row for row, _ in ROWS.values()]
    lines = [mutate(json.dumps(rows[index])), json.dumps(rows[index])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    try:
        found = read_examples(path, skip_bad_rows=True)
    except DataError:
        return
    assert len(found) + found.bad == sum(bool(line.strip()) for line in "\n".join(lines).split("\n"))


@given(
    index=st.integers(0, len(ROWS) - 1),
    at=st.integers(0, 200),
    cut=st.integers(0, 8),
    new=st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=4),
)
def test_a_mutated_row_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, index: int, at: int, cut: int, new: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    no_row_is_lost(path, lambda line: line[: at % len(line)] + new + line[at % len(line) + cut :], index)


@given(index=st.integers(0, len(ROWS) - 1), value=json_values, data=st.data())
def test_a_field_of_any_kind_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, index: int, value: Any, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    row = [row for row, _ in ROWS.values()][index]
    key = data.draw(st.sampled_from(sorted(row)))
    no_row_is_lost(path, lambda line: json.dumps(row | {key: value}), index)


@pytest.mark.soak
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(
    index=st.integers(0, len(ROWS) - 1),
    at=st.integers(0, 200),
    cut=st.integers(0, 30),
    new=st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=9),
)
def test_ten_thousand_mutated_rows(
    tmp_path_factory: pytest.TempPathFactory, index: int, at: int, cut: int, new: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "soaked.jsonl"
    no_row_is_lost(path, lambda line: line[: at % len(line)] + new + line[at % len(line) + cut :], index)


def test_real_files(shared_data: Path) -> None:
    counts = {
        "instruct/rasbt_instruction_1100.json": ("alpaca", 1100),
        "instruct/rasbt_preference_1100.json": ("preference", 1100),
        "instruct/dpo_en_300.json.gz": ("preference", 300),
        "classification/es_hotels_train.tsv": ("classification", 1113),
        "summarisation/dialogsum_dev.jsonl.gz": ("summarisation", 500),
    }
    for name, expected in counts.items():
        found = read_examples(shared_data / name)
        assert (found.form, len(found)) == expected, name
