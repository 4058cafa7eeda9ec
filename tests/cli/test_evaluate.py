"""`loquela evaluate` as a stranger would call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    path = tmp_path / "quiz.jsonl"
    words = ["cat", "dog", "mat", "log"]
    rows = [
        {"question": f"What sat {i}?", "choices": [words[i % 4], words[(i + 1) % 4]], "answer": i % 2}
        for i in range(120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_object_with_the_keys_of_the_conventions(loquela: Run, model_directory: Path, quiz: Path) -> None:
    done = loquela("evaluate", "-m", model_directory, "--task", quiz, "--limit", 20, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {"results", "seconds", "items_per_second"} <= set(found)
    result = found["results"]["quiz"]
    assert result["n"] == 20
    assert result["chance"] == 0.5
    low, high = result["ci95"]
    assert low <= result["accuracy"] <= high
    assert found["items_per_second"] > 0
    again = json.loads(loquela("evaluate", "-m", model_directory, "--task", quiz, "--limit", 20, "--json").out)
    assert again["results"] == found["results"]


def test_a_table_with_chance_beside_the_score(loquela: Run, model_directory: Path, quiz: Path) -> None:
    done = loquela("evaluate", "-m", model_directory, "-t", quiz, "--shots", 1, "--orders", 1, "--limit", 10)
    header, row, *_ = done.out.splitlines()
    assert header.split() == ["task", "metric", "score", "95", "%", "interval", "n", "chance", "majority"]
    assert row.split()[:2] == ["quiz", "accuracy"]
    assert row.split()[-2] == "0.5000"
    assert "answer, choices, question → choice" in done.err


def test_comparison_contamination_and_orders(loquela: Run, model_directory: Path, quiz: Path, tmp_path: Path) -> None:
    training = tmp_path / "train.txt"
    training.write_text("nothing of it")
    done = loquela(
        *("evaluate", "-m", model_directory, "-t", quiz, "--shots", 2, "--limit", 10, "--json"),
        *("--versus", model_directory, "--contamination", training, "--orders", 3, "--log", tmp_path / "l.jsonl"),
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)["results"]["quiz"]
    assert result["versus"]["differences"]["accuracy"]["p"] == 1
    assert len(result["orders"]["scores"]) == 3
    assert result["orders"]["min"] <= result["orders"]["mean"] <= result["orders"]["max"]
    assert result["contamination"]["items"] == 0
    assert result["contamination"]["unchecked"] == 10
    assert len((tmp_path / "l.jsonl").read_text().splitlines()) == 11
    assert len((tmp_path / "l-versus.jsonl").read_text().splitlines()) == 11


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A task of which no item fits the window of a tiny model."""
    path = tmp_path / "long.jsonl"
    rows = [{"text": "what sat there " * 100, "label": label} for label in ("good", "bad")] * 10
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_task_that_fails_costs_no_other_its_result(
    loquela: Run, model_directory: Path, quiz: Path, long: Path
) -> None:
    command = ("evaluate", "-m", model_directory, "-t", long, "-t", quiz, "--limit", 8)
    done = loquela(*command, "--json")
    found = json.loads(done.out)
    assert done.code == 1
    assert list(found["results"]) == ["quiz"]
    assert list(found["failed"]) == ["long"]
    assert "no item of task long fits" in found["failed"]["long"]
    assert "there is no result of long: no item of task long fits" in done.err.strip().splitlines()[-1]
    shown = loquela(*command, "--versus", model_directory)
    assert shown.code == 1
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["long", "failed", "–"] in rows
    assert any(row[:2] == ["quiz", "accuracy"] for row in rows)
    (at,) = (i for i, row in enumerate(rows) if row[0] == "versus")
    assert " ".join(rows[at]).endswith("on the same 8 items; the difference is ours less theirs")
    assert [row[0] for row in rows[at + 1 : at + 4]] == ["accuracy", "accuracy_per_token", "accuracy_per_byte"]
    assert " ".join(rows[at + 1][2:]) == "+0.0000 to +0.0000 difference +0.0000, p 1.0000"
    curve = loquela(*command, "--shots", "0,1", "--json")
    assert curve.code == 1
    assert [point["task"] for point in json.loads(curve.out)["curve"]] == ["quiz", "quiz"]


def test_what_fails_after_the_asking_costs_no_result(
    loquela: Run, model_directory: Path, quiz: Path, tmp_path: Path
) -> None:
    command = ("evaluate", "-m", model_directory, "-t", quiz, "--limit", 8, "--json")
    compared = loquela(*command, "--versus", tmp_path / "nowhere")
    assert compared.code == 1
    assert json.loads(compared.out)["results"]["quiz"]["n"] == 8
    assert list(json.loads(compared.out)["failed"]) == [f"--versus {tmp_path / 'nowhere'}"]
    drawn = loquela(*command, "--shots", "0,1", "--chart", tmp_path / "no" / "chart.html")
    assert drawn.code == 1
    assert len(json.loads(drawn.out)["curve"]) == 2
    models = loquela(*command, "-m", tmp_path / "nowhere")
    assert models.code == 1
    assert len(json.loads(models.out)["curve"]) == 1
    searched = loquela(*command, "--contamination", tmp_path / "nothing.txt")
    assert (searched.code, searched.out) == (1, ""), "this is known before a model is asked"


def test_a_curve_and_its_chart(loquela: Run, model_directory: Path, quiz: Path, tmp_path: Path) -> None:
    chart = tmp_path / "curve.html"
    done = loquela(
        *("evaluate", "-m", model_directory, "-m", model_directory, "-t", quiz, "--shots", "0,1", "--limit", 8),
        *("--chart", chart, "--json"),
    )
    assert done.code == 0, done.err
    curve = json.loads(done.out)["curve"]
    assert [point["shots"] for point in curve] == [0, 1, 0, 1]
    assert "Plotly.newPlot" in chart.read_text()
    shown = loquela("evaluate", "-m", model_directory, "-t", quiz, "--shots", "0,9", "--limit", 8)
    assert [line.split()[2] for line in shown.out.splitlines()[1:]] == ["0", "9"]
    assert [line.split()[-1] for line in shown.out.splitlines()] == ["n", "8", "8"]
    assert "quiz, 9 shots:" in shown.err
    assert "were dropped: the context window was full" in shown.err


def test_the_list_of_tasks(loquela: Run) -> None:
    names = [line.split()[0] for line in loquela("evaluate", "--list").out.splitlines()]
    assert {"lambada", "sst2", "mmlu", "humaneval", "wikitext2", "search_en"} <= set(names)
    assert len(json.loads(loquela("evaluate", "--list", "--json").out)["tasks"]) == len(names)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task", "sst3"], 2, "did you mean 'sst2'"),
        (["--task", "no/such.jsonl"], 1, "is no file"),
        ([], 2, "needs a task"),
        (["--task", "QUIZ", "--shots", "many"], 2, "must be a number or several"),
        (["--task", "QUIZ", "--shots", "1,1"], 2, "different numbers"),
        (["--task", "QUIZ", "--orders", "2"], 2, "from 2 on"),
        (["--task", "QUIZ", "--shots", "0,1", "--log", "x"], 2, "a curve has no"),
        (["--task", "QUIZ", "--by", "vote"], 2, "likelihood or generation"),
        (["--task", "QUIZ", "--chat"], 2, "chat template"),
        (["--task", "humaneval"], 1, "LOQUELA_DATA"),
    ],
)
def test_what_is_wrong_is_one_line(
    loquela: Run,
    model_directory: Path,
    quiz: Path,
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOQUELA_DATA", raising=False)
    done = loquela("evaluate", "-m", model_directory, *(quiz if a == "QUIZ" else a for a in arguments))
    assert done.code == code
    assert message in done.err
    assert done.out == ""
    assert len(done.err.strip().splitlines()) == 1


def test_a_model_or_a_url(loquela: Run, quiz: Path) -> None:
    assert "needs a model" in loquela("evaluate", "-t", quiz).err
    done = loquela("evaluate", "-t", quiz, "--url", "ftp://x", "-m", "name")
    assert (done.code, "must begin with http" in done.err) == (2, True)
