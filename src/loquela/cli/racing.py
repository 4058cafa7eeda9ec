"""Measuring rivals in turn: each waits in its own process while another works."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loquela.cli.output import note
from loquela.errors import LoquelaError, UsageError

__all__ = ["Racer", "median", "race"]


@dataclass
class Racer:
    """A rival's process. `started` says how long it took from nothing to its first token, in seconds.

    `said` is what it tells of itself then. Raises `LoquelaError` with its own words, or the signal that ended it, where
    it cannot go on.
    """

    name: str
    kind: str
    model: str
    options: dict[str, Any]
    started: float = field(init=False, default=0.0)
    said: dict[str, Any] = field(init=False, default_factory=dict)
    figures: dict[str, list[float]] = field(init=False, default_factory=dict)
    failed: str = field(init=False, default="")
    """Why a peer is out of the race; see `tries`."""

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
        self.said = self._answer()
        self.started = time.perf_counter() - begin

    def ask(self, what: str, **arguments: Any) -> float:
        """Let it do something; returns the seconds that it took, or for `memory` the most bytes that it has had."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a process that is gone, `_answer` tells more
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        return float(answer["bytes"] if what == "memory" else answer["seconds"])

    def tries(self, what: str, **arguments: Any) -> float | None:
        """As `ask`, but a peer that cannot go on is out of the race, aloud: None then, and from then on."""
        if self.failed:
            return None
        try:
            return self.ask(what, **arguments)
        except LoquelaError as error:
            if self.kind == "loquela":
                raise
            self.failed = str(error)
            note(f"{self.name} is measured no further: {error}")
            return None

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
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
            said = [line for line in self._process.stderr.read().splitlines() if line.strip() and "%|" not in line]
            errors = [line for line in said if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
            why = [*said, *errors][-1].strip()[:200] if said else "without a word"
            if (code := self._process.wait()) < 0:
                why = f"by {signal.Signals(-code).name}" + (f", {why}" if said else "")
            raise LoquelaError(f"the process of {self.name} ended: {why}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise (UsageError if answer["usage"] else LoquelaError)(answer["failed"])
        return answer


def race(racers: Iterable[Racer], rounds: int, tasks: Mapping[str, tuple[str, dict[str, Any], int]]) -> None:
    """Let all do each task once per round, in turn; a figure is tokens per second.

    A task is what is asked, with which arguments, and how many tokens that are. The first round warms up. A peer that
    fails leaves the others alone; of the task in which it did it has no figure.
    """
    racers = list(racers)
    for name, (what, arguments, tokens) in tasks.items():
        for number in range(rounds + 1):
            for racer in racers:
                seconds = racer.tries(what, **arguments)
                if seconds is None:
                    racer.figures.pop(name, None)
                elif number:
                    racer.figures.setdefault(name, []).append(tokens / seconds)


def median(values: list[float]) -> float:
    """The median of repeated measurements."""
    return statistics.median(values)
