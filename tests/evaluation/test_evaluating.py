"""Whole evaluations: scores by hand, interruptions, comparisons, and that no order changes one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import TEXT, make

import loquela
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.evaluation.compare import compare
from loquela.evaluation.items import item
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.plan import Prompter, Settings
from loquela.evaluation.rows import Row
from loquela.evaluation.run import evaluate, prepare_task
from loquela.evaluation.task import Data, Task
from loquela.text.tokenizer import Tokenizer

Write = Callable[..., Path]


def task_of(path: Path, **keys: Any) -> Task:
    base: dict[str, Any] = {
        "name": "quiz",
        "kind": "choice",
        "data": Data(test=path.name, shots=10),
        "prompt": "Q: {question}\nA:",
        "choices": "choices",
        "answer": "answer",
    }
    return Task(**(base | keys)).check()


def by_question(rows: list[Row], result: Any) -> dict[str, Any]:
    kept = {"task", "item"}
    return {rows[r["item"]]["question"]: {k: v for k, v in r.items() if k not in kept} for r in result.records}


def test_accuracies_by_hand(writer: LocalSubject, rows_file: Write, questions: list[Row]) -> None:
    path = rows_file(questions)
    task = task_of(path)
    found = evaluate(writer, task, data_dir=path.parent, corrected=writer.kind == "decoder").results["quiz"]
    prepared = prepare_task(task, data_dir=path.parent)
    raw, per_token, per_byte, corrected = [], [], [], []
    for row in prepared.rows:
        scored = writer.likelihoods(f"Q: {row['question']}\nA:", [f" {choice}" for choice in row["choices"]])
        values = np.array([one.log_prob for one in scored])
        raw.append(values.argmax() == row["answer"])
        per_token.append((values / [one.tokens for one in scored]).argmax() == row["answer"])
        per_byte.append((values / [len(choice.encode()) for choice in row["choices"]]).argmax() == row["answer"])
        if writer.kind == "decoder":
            alone = [writer.likelihoods("", [f" {choice}"])[0].log_prob for choice in row["choices"]]
            corrected.append((values - alone).argmax() == row["answer"])
    assert found.n == 50
    assert found.scores["accuracy"] == np.mean(raw)
    assert found.scores["accuracy_per_token"] == np.mean(per_token)
    assert found.scores["accuracy_per_byte"] == np.mean(per_byte)
    assert found.scores.get("accuracy_corrected") == (np.mean(corrected) if corrected else None)
    assert found.chance == pytest.approx(np.mean([1 / len(row["choices"]) for row in prepared.rows]))
    assert found.majority == max(np.bincount([row["answer"] for row in prepared.rows])) / 50
    assert found.ci95[0] <= found.score <= found.ci95[1]


@pytest.mark.parametrize("shots", [0, 3])
def test_the_order_of_the_rows_changes_no_bit(
    llama: LocalSubject, rows_file: Write, questions: list[Row], shots: int
) -> None:
    pool = rows_file(questions[:10], "pool.jsonl")
    asked = questions[10:]
    shuffled = random.Random(4).sample(asked, len(asked))
    found = []
    for rows in (asked, shuffled, asked[::3]):
        path = rows_file(rows, "asked.jsonl")
        task = task_of(path, data=Data(test=path.name, shots=pool.name))
        fresh = LocalSubject(llama.model, "llama")
        found.append(by_question(rows, evaluate(fresh, task, data_dir=path.parent, shots=shots).results["quiz"]))
    assert found[0] == found[1]
    assert found[2] == {question: found[0][question] for question in found[2]}


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(
    llama: LocalSubject, rows_file: Write, questions: list[Row], tmp_path: Path
) -> None:
    path = rows_file(questions)
    task, log = task_of(path), tmp_path / "log.jsonl"
    whole = evaluate(llama, task, data_dir=path.parent, shots=2, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 51
    assert json.loads(lines[0])["tasks"] == {"quiz": prepare_task(task, data_dir=path.parent).fingerprint}
    for kept, torn in ((0, b""), (1, b""), (20, b""), (33, b'{"task": "qu'), (51, b"")):
        log.write_bytes(b"".join(lines[:kept]) + torn)
        again = evaluate(LocalSubject(llama.model, "llama"), task, data_dir=path.parent, shots=2, log=log)
        assert again.results["quiz"].records == whole.results["quiz"].records
        assert again.asked == 50 - max(0, kept - 1)
        assert log.read_bytes() == b"".join(lines)
    with pytest.raises(UsageError, match="differs in settings"):
        evaluate(llama, task, data_dir=path.parent, shots=3, log=log)
    log.write_text("{}\n")
    with pytest.raises(DataError, match="must be a log of this command"):
        evaluate(llama, task, data_dir=path.parent, shots=2, log=log)


def test_limit_asks_a_part(llama: LocalSubject, rows_file: Write, questions: list[Row]) -> None:
    path = rows_file(questions)
    everything = evaluate(llama, task_of(path), data_dir=path.parent).results["quiz"]
    some = evaluate(llama, task_of(path), data_dir=path.parent, limit=7).results["quiz"]
    assert some.n == 7
    assert set(map(str, some.records)) <= set(map(str, everything.records))


def test_shots_stand_in_the_prompt_and_are_never_the_item(
    llama: LocalSubject, rows_file: Write, questions: list[Row]
) -> None:
    path = rows_file(questions)
    prepared = prepare_task(task_of(path), data_dir=path.parent)
    for select in ("random", "balanced", "nearest", "4,2,9"):
        prompter = Prompter(prepared.task, prepared.pool, llama, Settings(shots=3, select=select), llama.embed)
        for row in prepared.rows[:5] + prepared.pool[:3]:
            if select == "4,2,9" and row in [prepared.pool[i - 1] for i in (4, 2, 9)]:
                continue  # then there are not three left
            (prompt,) = prompter(item(prepared.task, row, 0))
            assert prompt.shots == 3
            assert prompt.text.endswith(f"Q: {row['question']}\nA:")
            assert prompt.text.count("Q: ") == 4
            assert f"Q: {row['question']}\nA: " not in prompt.prefix
            assert all(r["question"] not in prompt.prefix for r in prepared.rows)
    by_hand = Prompter(prepared.task, prepared.pool, llama, Settings(shots=3, select="4,2,9"))
    (prompt,) = by_hand(item(prepared.task, prepared.rows[0], 0))
    places = [prompt.prefix.index(prepared.pool[i - 1]["question"]) for i in (4, 2, 9)]
    assert places == sorted(places)


def test_more_shots_are_the_fewer_and_one_before_them(
    llama: LocalSubject, rows_file: Write, questions: list[Row]
) -> None:
    path = rows_file(questions)
    prepared = prepare_task(task_of(path), data_dir=path.parent)
    asked = item(prepared.task, prepared.rows[0], 0)
    texts = [Prompter(prepared.task, prepared.pool, llama, Settings(shots=n))(asked)[0].text for n in range(4)]
    assert all(longer.endswith(shorter) for shorter, longer in pairwise(texts))


def test_what_does_not_fit_is_dropped_or_left_out_and_said(
    tokenizer: Tokenizer, rows_file: Write, questions: list[Row]
) -> None:
    narrow = LocalSubject(make("llama", tokenizer, max_position_embeddings=110), "narrow")
    long = [{**questions[0], "question": "what " * 80}, *questions[1:]]
    path = rows_file(long)
    task = task_of(path, data=Data(test=path.name, shots=10))
    found = evaluate(narrow, task, data_dir=path.parent, shots=4).results["quiz"]
    said = " ".join(found.notes)
    assert "shots of" in said
    assert "were dropped: the context window was full" in said
    assert 0 < found.details["shots"] < 4
    assert all(record["prompt_tokens"] <= 110 for record in found.records)
    if found.n == 49:
        assert "1 of 50 items were left out" in said
    tiny = LocalSubject(make("llama", tokenizer, max_position_embeddings=4), "tiny")
    with pytest.raises(ContextWindowError, match="no item of task quiz fits the context window of 4 tokens"):
        evaluate(tiny, task, data_dir=path.parent)


def test_a_task_of_which_no_item_fits_costs_no_other_its_result(
    tokenizer: Tokenizer, rows_file: Write, questions: list[Row], tmp_path: Path
) -> None:
    narrow = LocalSubject(make("llama", tokenizer, max_position_embeddings=60), "narrow")
    path = rows_file(questions)
    quiz, long = task_of(path), task_of(path, name="long", description="what " * 80)
    log = tmp_path / "log.jsonl"
    alone = evaluate(narrow, quiz, data_dir=path.parent)
    for asked in 50, 0:  # the second goes on from the log
        found = evaluate(narrow, [long, quiz], data_dir=path.parent, log=log)
        assert found.results["quiz"].as_dict() == alone.results["quiz"].as_dict()
        assert list(found.results) == ["quiz"]
        assert list(found.failed) == ["long"]
        assert found.asked == asked
        said = found.as_dict()["failed"]["long"]
        assert "no item of task long fits the context window of 60 tokens" in said
    with pytest.raises(UsageError, match="needs a task"):
        evaluate(narrow, [])
    other = task_of(path, name="other", description="what " * 80)
    with pytest.raises(ContextWindowError, match="no item of task long"):
        evaluate(narrow, [long, other], data_dir=path.parent)


def test_by_generation(llama: LocalSubject, rows_file: Write, questions: list[Row]) -> None:
    class Oracle(LocalSubject):
        def complete(self, prompt: str, *, max_new_tokens: int, stop: Any) -> str:
            assert "\nA. " in prompt
            assert prompt.endswith("\nA:")
            return " B" if "and sat" in prompt else " (A) the cat"

    path = rows_file(questions)
    prepared = prepare_task(task_of(path), data_dir=path.parent)
    found = evaluate(Oracle(llama.model, "oracle"), task_of(path), data_dir=path.parent, by="generation")
    expected = [int("and sat" in row["question"]) == row["answer"] for row in prepared.rows]
    assert found.results["quiz"].score == np.mean(expected)


def test_two_models_item_by_item(
    llama: LocalSubject, tokenizer: Tokenizer, rows_file: Write, questions: list[Row]
) -> None:
    path = rows_file(questions)
    other = LocalSubject(make("gpt2", tokenizer), "gpt2")
    ours, theirs = (evaluate(s, task_of(path), data_dir=path.parent).results["quiz"] for s in (llama, other))
    found = compare(task_of(path), ours, theirs)
    assert found["n"] == 50
    assert found["scores"] == theirs.scores
    assert list(found["differences"]) == list(ours.scores), "in an order that no hash decides"
    gap = found["differences"]["accuracy"]
    assert gap["difference"] == pytest.approx(ours.scores["accuracy"] - theirs.scores["accuracy"])
    assert 0 < gap["p"] <= 1
    assert compare(task_of(path), ours, ours)["differences"]["accuracy"]["p"] == 1


def test_generated_text_is_scored(llama: LocalSubject, rows_file: Write) -> None:
    path = rows_file([{"source": f"the cat {i}", "target": "the dog sat on the log"} for i in range(8)])
    keys = {"prompt": "{source}\n", "target": "{target}", "metrics": ["bleu", "chrf", "rougeL"], "max_new_tokens": 5}
    task = Task(name="t", kind="generate", data=Data(test=path.name), **keys).check()

    class Echo(LocalSubject):
        def complete(self, prompt: str, *, max_new_tokens: int, stop: Any) -> str:
            return "the dog sat on the log"

    found = evaluate(Echo(llama.model, "echo"), task, data_dir=path.parent).results["t"]
    assert found.scores == pytest.approx({"bleu": 100, "chrf": 100, "rougeL": 1})
    real = evaluate(llama, task, data_dir=path.parent).results["t"]
    assert 0 <= real.scores["bleu"] < 100
    assert real.metric == "bleu"


def test_perplexity_by_windows_is_the_score_of_the_text(llama: LocalSubject, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    found = evaluate(llama, tmp_path / "text.txt").results["text"]
    model: Any = llama.model
    expected = loquela.LanguageModel(model.network, model.tokenizer).score(TEXT)
    assert found.scores["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-12)
    assert found.scores["perplexity"] == pytest.approx(expected.perplexity, rel=1e-12)
    assert found.n == expected.tokens
    assert found.chance == 8
    log = tmp_path / "log.jsonl"
    whole = evaluate(llama, tmp_path / "text.txt", log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    again = evaluate(llama, tmp_path / "text.txt", log=log)
    assert again.results["text"].scores == whole.results["text"].scores
    assert again.asked == whole.asked - 2
    part = evaluate(llama, tmp_path / "text.txt", limit=2).results["text"]
    assert part.details["windows"] == 2


def test_a_model_directory_will_do(
    tokenizer: Tokenizer, rows_file: Write, questions: list[Row], tmp_path: Path
) -> None:
    model = loquela.LanguageModel(make("llama", tokenizer).network, tokenizer)
    model.save(tmp_path / "model")
    path = rows_file(questions)
    opened = loquela.evaluate(loquela.load(tmp_path / "model"), str(path), limit=9)
    named = loquela.evaluate(tmp_path / "model", path, limit=9)
    assert opened.results["set"].records == named.results["set"].records
    assert set(named.as_dict()) == {"results", "seconds", "items_per_second", "failed"}
    assert {"accuracy", "ci95", "n", "chance", "majority"} <= set(named.as_dict()["results"]["set"])


def test_settings_are_checked(llama: LocalSubject, rows_file: Write, questions: list[Row]) -> None:
    path = rows_file(questions)
    for settings, message in (
        ({"shot": 1}, "did you mean 'shots'"),
        ({"shots": -1}, "shots must be 0 or more"),
        ({"shots": 11}, "at most the 10 examples"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"select": "best"}, "select must be random, balanced, nearest"),
        ({"by": "vote"}, "likelihood or generation"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(llama, task_of(path), data_dir=path.parent, **settings)
    with pytest.raises(UsageError, match="two are called quiz"):
        evaluate(llama, [task_of(path), task_of(path)], data_dir=path.parent)


def test_perplexity_of_completions_is_per_token(writer: LocalSubject, rows_file: Callable[..., Path]) -> None:
    rows = [{"prompt": f"the cat {i}", "completion": " sat on the mat" * (1 + i % 3)} for i in range(6)]
    result = evaluate(writer, rows_file(rows)).results["set"]
    found = [writer.likelihoods(row["prompt"], [row["completion"]])[0] for row in rows]
    loss, tokens = -sum(one.log_prob for one in found), sum(one.tokens for one in found)
    assert result.scores["perplexity"] == pytest.approx(math.exp(loss / tokens))
    assert result.scores["bits_per_byte"] == pytest.approx(
        loss / math.log(2) / sum(len(row["completion"]) for row in rows)
    )
    low, high = result.intervals["perplexity"]
    assert low <= result.scores["perplexity"] <= high
    assert "target_perplexity" not in result.scores
