"""Forgetting at every tune: probes of every kind, a budget that holds, a verdict with its evidence."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loquela.errors import DataError, UsageError
from loquela.training.events import Note
from loquela.tuning.run import TuneResult, tune

Write = Callable[..., Path]
KNOWN = "cat red dog blue bird green one yes two no three good\n" * 40
HARSH: dict[str, Any] = {"method": "full", "learning_rate": 0.02, "max_steps": 24, "eval_steps": 3}


@pytest.fixture(scope="module")
def knowing(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder after it has learnt a text, so that there is something to forget."""
    place = tmp_path_factory.mktemp("knowing")
    (place / "known.jsonl").write_text(json.dumps({"text": KNOWN}) + "\n" + json.dumps({"text": KNOWN}) + "\n")
    result = tune(
        {
            "model": str(decoder),
            "data": str(place / "known.jsonl"),
            "output_dir": str(place / "model"),
            "method": "full",
            "learning_rate": 0.01,
            "max_steps": 60,
            "max_seq_length": 64,
            "probe_tokens": 1,
        }
    )
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 0.5
    return Path(result.model)


def run(model: Path, data: Path, output: Path, **more: Any) -> tuple[TuneResult, list[str]]:
    notes: list[str] = []
    result = tune(
        {"model": str(model), "data": str(data), "output_dir": str(output), "probe_tokens": 120, **HARSH, **more},
        on_event=lambda event: notes.append(event.message) if isinstance(event, Note) else None,
    )
    return result, notes


def other_rows(rows: Write) -> Path:
    return rows([{"prompt": "cat", "completion": "three two one bird dog"}] * 20)


def test_a_harsh_tuning_forgets_and_the_verdict_says_so(knowing: Path, rows: Write, tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text(KNOWN)
    tasks = rows([{"prompt": "dog blue", "completion": " bird green"}] * 5, "facts.jsonl")
    probes = [str(tmp_path / "known.txt"), str(tasks)]
    result, _ = run(knowing, other_rows(rows), tmp_path / "out", probe=probes)
    assert result.forgetting["probe"] == "known"
    assert result.forgetting["delta"] > 3 * result.forgetting["noise"]
    assert result.forgetting["tasks"]["facts"]["delta"] > 0
    assert result.verdict["better"]
    assert result.verdict["lost"]
    assert not result.good
    assert result.verdict["sentence"].startswith("Better")
    assert "Lost: known" in result.verdict["sentence"]
    stages = result.forgetting["stages"]
    assert [stage["step"] for stage in stages[:3]] == [0, 3, 6]
    assert stages[0]["known"] == pytest.approx(result.forgetting["before"])

    evidence = tmp_path / "out" / "evidence"
    rows_kept = list(csv.DictReader((evidence / "probe.csv").open(newline="")))
    own = [row for row in rows_kept if row["probe"] == "known"]
    gaps = sum(float(row["after"]) - float(row["before"]) for row in own)
    size = sum(int(row["bytes"]) for row in own)
    assert gaps / math.log(2) / size == pytest.approx(result.forgetting["delta"])  # the verdict can be made again
    heat = json.loads((evidence / "probe_tokens.json").read_text())
    assert all(len(text["tokens"]) == len(text["before"]) == len(text["after"]) for text in heat)
    assert "What was forgotten" in (evidence / "forgetting.html").read_text()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_budget_of_forgetting_holds(knowing: Path, rows: Write, tmp_path: Path, method: str) -> None:
    data = other_rows(rows)
    free, _ = run(knowing, data, tmp_path / "free", method=method)
    kept, notes = run(knowing, data, tmp_path / "kept", method=method, max_forget=0.1)
    assert free.forgetting["delta"] > 0.1
    assert kept.forgetting["delta"] <= 0.1
    assert any("are forgotten, more than 0.1" in note for note in notes)
    assert kept.verdict["gain"] > 0


def test_what_is_measured_is_not_what_is_anchored_on(knowing: Path, rows: Write, tmp_path: Path) -> None:
    from loquela.tuning.recipe import TuneRecipe
    from loquela.tuning.run import _assembled, read_tasks

    (tmp_path / "known.txt").write_text(KNOWN)
    recipe = TuneRecipe.load(
        {
            "model": str(knowing),
            "data": str(other_rows(rows)),
            "output_dir": str(tmp_path),
            "probe": [str(tmp_path / "known.txt")],
            "max_forget": 0.1,
        }
    )
    made = _assembled(recipe, read_tasks(recipe, print), tmp_path, lambda event: None, lambda: False)
    measured = made.probes.texts["known"]
    assert len(measured) >= 2
    assert len(made.probes.anchors) >= 2
    assert not any(anchor is text for anchor in made.probes.anchors for text in measured)


def test_probes_that_cannot_be_used_are_refused(decoder: Path, encoder: Path, rows: Write, tmp_path: Path) -> None:
    data = other_rows(rows)
    (tmp_path / "short.txt").write_text("cat")
    with pytest.raises(DataError, match="at least two stretches"):
        run(decoder, data, tmp_path / "a", probe=[str(tmp_path / "short.txt")])
    with pytest.raises(UsageError, match="given twice"):
        run(decoder, data, tmp_path / "b", probe=[str(data), str(data)])
    labels = rows([{"text": text, "label": text} for text in ("cat", "dog")] * 4, "labels.jsonl")
    with pytest.raises(UsageError, match="compared by its states"):
        run(encoder, labels, tmp_path / "c", probe=[str(data)])
