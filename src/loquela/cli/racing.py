"""Measuring rivals in turn: each waits in its own process while another works."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loquela.errors import LoquelaError

__all__ = ["Racer", "median", "race"]


@dataclass
class Racer:
    """A rival's process. `started` says how long it took from nothing to its first token, in seconds."""

    name: str
    kind: str
    model: str
    options: dict[str, Any]
    started: float = field(init=False, default=0.0)
    figures: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "loquela.cli.rivals", self.kind, self.model, json.dumps(self.options)]
        threads = {name: str(self.options["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"},
        )
        self._answer()
        self.started = time.perf_counter() - begin

    def ask(self, what: str, **arguments: Any) -> float:
        """Let it do something; returns the seconds that it took, or for `memory` the most bytes that it has had."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return float(answer["bytes"] if what == "memory" else answer["seconds"])

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines()
            raise LoquelaError(f"{self.name} could not be measured: {said[-1] if said else 'it ended without a word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(racers: Iterable[Racer], rounds: int, tasks: Mapping[str, tuple[str, dict[str, Any], int]]) -> None:
    """Let all do each task once per round, in turn; a figure is tokens per second.

    A task is what is asked, with which arguments, and how many tokens that are. The first round warms up.
    """
    racers = list(racers)
    for name, (what, arguments, tokens) in tasks.items():
        for number in range(rounds + 1):
            for racer in racers:
                seconds = racer.ask(what, **arguments)
                if number:
                    racer.figures.setdefault(name, []).append(tokens / seconds)


def median(values: list[float]) -> float:
    """The median of repeated measurements."""
    return statistics.median(values)
