"""The tasks that come with the package, each over its real rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loquela.errors import DataError, RecipeError, UsageError
from loquela.evaluation import task as tasks
from loquela.evaluation.detect import detect
from loquela.evaluation.items import example, item, lettered_question
from loquela.evaluation.metrics import TEXT_METRICS
from loquela.evaluation.rows import find, read_rows, sample, task_rows
from loquela.evaluation.run import prepare_task
from loquela.evaluation.task import Data, Task

CLASSIFICATION = {"macro_f1", "matthews", "accuracy", "accuracy_per_byte", "accuracy_per_token"}


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_rows_questions_and_answers(name: str, shared_data: Path) -> None:
    prepared = prepare_task(name, data_dir=shared_data)
    task = prepared.task
    assert task.name == name
    assert re.match(r".*\S.*[.?)]$", task.about), "a sentence says what it is"
    if task.kind == "perplexity":
        assert prepared.file.stat().st_size > 100_000
        return
    assert len(prepared.rows) >= 50
    known = set(TEXT_METRICS) | CLASSIFICATION | {"ndcg@10", "target_perplexity"}
    assert set(task.metrics) <= known
    asked = [item(task, prepared.rows[i], i) for i in sample(prepared.rows, 200)]
    for one in asked:
        assert all(question.strip() for question in one.questions)
        assert "{" not in task.about
        if task.kind == "choice":
            assert one.gold is not None
            assert one.choices[one.gold]
            assert lettered_question(one).count("\nA. ") >= 1
        elif task.kind != "code":
            assert all(reference.strip() for reference in one.references)
    if task.kind == "choice":
        golds = Counter(one.gold for one in asked)
        assert len(golds) > 1, "not always the same answer"
    pool = [example(task, item(task, row, i)) for i, row in enumerate(prepared.pool[:50])]
    assert all(shot.answer for shot in pool)


def test_held_out_rows_are_not_asked(shared_data: Path) -> None:
    prepared = prepare_task("arc_easy", data_dir=shared_data)
    ids = {row["id"] for row in prepared.rows}
    assert len(ids) == 541
    assert len(prepared.pool) == 29
    assert not ids & {row["id"] for row in prepared.pool}
    everything = read_rows(shared_data / "eval" / "arc_easy_val.jsonl")
    assert len(everything) == 570


def test_a_sample_is_from_all_over_and_grows() -> None:
    rows = list(range(1000))
    few, more = sample(rows, 50), sample(rows, 200)
    assert set(few) <= set(more)
    assert few == sorted(few)
    assert len(few) == 50
    assert {number // 250 for number in few} == {0, 1, 2, 3}
    assert sample(rows, 5000) == sample(rows, None) == rows


def test_a_missing_file_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOQUELA_DATA", raising=False)
    with pytest.raises(DataError, match=r"nothing says where it is: name .* --data-dir or LOQUELA_DATA"):
        prepare_task("sst2")
    with pytest.raises(DataError, match=f"but {tmp_path} has none"):
        prepare_task("sst2", data_dir=tmp_path)
    monkeypatch.setenv("LOQUELA_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"but {tmp_path} has none"):
        prepare_task("wikitext2")
    with pytest.raises(DataError, match="leave --hub out"):
        prepare_task("hellaswag", hub=True)


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(UsageError, match="did you mean 'lambada'"):
        prepare_task("lambda")
    with pytest.raises(DataError, match="is no file"):
        prepare_task("missing.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: choice\ndata: {test: a.jsonl}\nprompts: x\n", "unknown key 'prompts'; did you mean 'prompt'"),
        ("kind: choice\ndata: {test: a.jsonl}\n", "must have choices and answer"),
        ("kind: wish\ndata: {test: a.jsonl}\n", "kind: Input should be"),
        ("- a\n", "must be keys and values"),
        ("a: [", "must be YAML"),
        (
            "kind: choice\ndata: {test: a}\nchoices: [a, b]\nanswer: x\nprompt: [x, y, z]\n",
            "one template, or a list with one for each of the choices",
        ),
        ("[" * 2000, "must be YAML"),
    ],
)
def test_a_wrong_task_is_one_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        tasks.read(tmp_path / "own.yaml")
    assert "\n" not in str(error.value)


def test_a_task_of_ones_own_finds_its_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "kind: choice\ndata: {test: own.csv}\nprompt: '{q}'\nchoices: ['{a}', '{b}']\nanswer: right\nanswers: [a, b]\n"
    )
    (tmp_path / "own.csv").write_text('q,a,b,right\n"one, two",x,y,b\nthree,u,v,a\n')
    prepared = prepare_task(tmp_path / "own.yaml")
    first = item(prepared.task, prepared.rows[0], 0)
    assert (first.questions, first.choices, first.gold) == (("one, two",), ("x", "y"), 1)
    changed = Task(**{**prepared.task.model_dump(), "prompt": "{q}?"})
    assert prepared.fingerprint != prepare_task(changed, data_dir=tmp_path).fingerprint


def rows(**fields: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def test_plain_files_say_by_their_fields_what_they_are(rows_file: Any, tmp_path: Path) -> None:
    labelled = rows(text=[f"t{i}" for i in range(120)], label=["b", "a", "a"] * 40)
    task, note = detect(rows_file(labelled))
    assert (task.kind, task.choices, task.data.shots) == ("choice", ["a", "b"], 20)
    assert note == "set.jsonl: label, text → choice"
    assert item(task, labelled[0], 0).gold == 1
    numbered = rows(text=["t", "u"], label=[1, 0])
    assert item(detect(rows_file(numbered))[0], numbered[0], 0).gold == 1
    for choices, answer, gold in ((["x", "y"], 1, 1), (["x", "y"], "B", 1), (["xx", "yy"], "xx", 0)):
        asked = rows(question=["q"], choices=[choices], answer=[answer])
        task, _ = detect(rows_file(asked))
        assert item(task, asked[0], 0).gold == gold
    hub = rows(question=["q"], choices=[{"text": ["x", "y"], "label": ["1", "2"]}], answer=["2"])
    assert item(detect(rows_file(hub))[0], hub[0], 0).gold == 1
    task, _ = detect(rows_file(rows(prompt=["a "], completion=["b"])))
    assert (task.kind, task.delimiter) == ("next_word", "")
    assert detect(rows_file(rows(text=["a"])))[0].kind == "perplexity"
    (tmp_path / "novel.txt").write_text("Once.")
    assert detect(tmp_path / "novel.txt")[0].kind == "perplexity"
    (tmp_path / "bare.tsv").write_text("good\t1\nbad\t0\n")
    task, note = detect(tmp_path / "bare.tsv")
    assert (task.kind, task.choices, task.data.columns) == ("choice", ["0", "1"], ["text", "label"])
    with pytest.raises(DataError, match="write a task for it"):
        detect(rows_file(rows(a=["x"])))
    (tmp_path / "wide.tsv").write_text("a\tb\tc\n1\t2\t3\n")
    with pytest.raises(DataError, match="but has 3"):
        detect(tmp_path / "wide.tsv")


def test_rows_that_cannot_be_read_name_file_and_row(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.jsonl", '{"a": 1}\n[2]\n', "row 2 must be an object"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "row 2 must be JSON"),
        ("a.json", '{"a": 1}', "must be a JSON array of objects"),
        ("a.tsv", "a\tb\n1\n", "row 2 must have 2 cells, but has 1"),
        ("a.txt", "x", "must be named .jsonl"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            read_rows(tmp_path / name)
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(DataError, match="lacks 'data'"):
        read_rows(tmp_path / "s.json", layout="squad")


def test_parallel_files_must_have_as_many_lines(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    data = Data(test={"source": "a.en", "target": "a.de"})
    assert task_rows(data, [tmp_path])[0][1] == {"source": "two", "target": "zwei"}
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(DataError, match=r"a\.en has 2, a\.de has 1"):
        task_rows(data, [tmp_path])


def test_translations_of_one_sentence_are_references_of_one_item(shared_data: Path) -> None:
    prepared = prepare_task("tatoeba_en_es", data_dir=shared_data)
    go = next(row for row in prepared.rows if row["en"] == "Go.")
    assert item(prepared.task, go, 0).references == ("Ve.", "Vete.", "Vaya.", "Váyase.")
    assert len({row["en"] for row in prepared.rows}) == len(prepared.rows)


def test_find_takes_the_first(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("x")
    assert find("x.txt", [tmp_path, tmp_path / "b"]) == tmp_path / "b" / "x.txt"
