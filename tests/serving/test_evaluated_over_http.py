"""`loquela evaluate --url` asks a real server and gets the scores that it gets in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import loquela
from loquela.evaluation.remote import RemoteSubject

Running = Any  # conftest.Running


def test_the_same_records(server: Running, model_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    words = ["cat", "dog", "mat", "log"]
    choices = [[words[i % 4], f"the {words[i % 3]} sat"] for i in range(12)]
    rows = [{"question": f"what sat {i}?", "choices": c, "answer": i % 2} for i, c in enumerate(choices)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    subject = RemoteSubject(f"{server.url}/v1")
    assert subject.name == f"{server.url}/v1#tiny"
    model = loquela.load(model_directory, engine="torch")
    ours = loquela.evaluate(model, path).results["quiz"]
    theirs = loquela.evaluate(subject, path).results["quiz"]
    for mine, other in zip(ours.records, theirs.records, strict=True):
        assert other["log_probs"] == pytest.approx(mine["log_probs"], abs=1e-4)
        assert other["tokens"] == mine["tokens"]
    assert ours.scores == theirs.scores
    ours, theirs = (loquela.evaluate(m, path, by="generation", limit=4).results["quiz"] for m in (model, subject))
    assert [r["output"] for r in ours.records] == [r["output"] for r in theirs.records]
    gap = abs(subject.embed(["the cat", "a dog sat"]) - model.embed(["the cat", "a dog sat"]).numpy()).max()
    assert gap < 1e-4


def test_what_is_too_long_is_left_out_and_said(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    rows = [{"question": "what? " * (1 if i else 2000), "choices": ["cat", "dog"], "answer": i % 2} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = loquela.evaluate(RemoteSubject(f"{server.url}/v1"), path).results["quiz"]
    assert found.n == 4
    assert any("1 of 5 items were left out" in note for note in found.notes)
