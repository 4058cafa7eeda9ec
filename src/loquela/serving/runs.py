"""Runs of training on this machine, for the page that watches them: what their own logs say, nothing else."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from loquela.serving.state import Served

__all__ = ["Runs", "runs"]

_DEPTHS = ("loss.csv", "*/loss.csv", "*/*/loss.csv")
_MOST_RUNS = 20
_MOST_ROWS = 2000
_MOST_BYTES = 8 * 2**20
_MOST_SAMPLES = 20
_LIVE_SECONDS = 120
_COLUMNS = ("step", "tokens", "train_loss", "val_loss", "learning_rate", "grad_norm")


class RunCard(BaseModel):
    """One run: `columns` of its loss.csv, newest last; `live` when its log grew in the last two minutes."""

    name: str
    live: bool
    finished: bool
    age_seconds: float
    columns: dict[str, list[float | None]]
    samples: list[dict[str, Any]]


class Runs(BaseModel):
    """Every run under the directories that the server watches, newest first."""

    runs: list[RunCard]


async def runs(served: Served, http: HttpRequest) -> Runs:
    """Read the logs."""
    return Runs(runs=await run_in_threadpool(_found, served.options.runs))


def _found(roots: tuple[Path, ...]) -> list[RunCard]:
    logs = [
        log for root in roots for pattern in ("loss.csv", "*/loss.csv", "*/*/loss.csv") for log in root.glob(pattern)
    ]
    dated = sorted(((log.stat().st_mtime, log) for log in set(logs)), reverse=True)
    return [_card(log, time.time() - written) for written, log in dated[:_MOST_RUNS]]


def _card(log: Path, age: float) -> RunCard:
    directory = log.parent
    finished = (directory / "train_results.json").is_file()
    return RunCard(
        name=str(directory),
        live=not finished and age < _LIVE_SECONDS,
        finished=finished,
        age_seconds=round(age, 1),
        columns=_columns(log),
        samples=_samples(directory),
    )


def _columns(log: Path) -> dict[str, list[float | None]]:
    if log.stat().st_size > _MOST_BYTES:
        return {}
    rows = list(csv.DictReader(log.read_text(errors="replace").splitlines()))
    every = max(1, len(rows) // _MOST_ROWS)
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1 or row.get("val_loss")]
    return {name: [_number(row.get(name)) for row in kept] for name in _COLUMNS}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # a row that is being written this very moment
        return None


def _samples(directory: Path) -> list[dict[str, Any]]:
    """What the model wrote as it learnt, as the newest checkpoint has it."""
    states = sorted(directory.glob("checkpoint-*/trainer_state.json"), key=lambda file: file.stat().st_mtime)
    if not states or states[-1].stat().st_size > _MOST_BYTES:
        return []
    try:
        written = json.loads(states[-1].read_text()).get("samples", [])
        return [{key: sample[key] for key in ("step", "prompt", "text")} for sample in written][-_MOST_SAMPLES:]
    except (ValueError, AttributeError, KeyError, TypeError):  # another program's file
        return []
