"""What can be seen from outside: metrics, and a log of one JSON object a line, neither with a word of any prompt."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["LOG", "JsonLines", "Metrics", "forget_worker", "log_bug", "log_to_stderr"]

LOG = logging.getLogger("loquela.serving")
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms of one process; with several workers, those of all (`PROMETHEUS_MULTIPROC_DIR`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("loquela_requests", "Answers.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "loquela_request_seconds", "Time to a whole answer.", ["path"], buckets=_SHORT, registry=self.registry
        )
        self.queue = self._histogram("loquela_queue_seconds", "Time a request waited for a place.")
        self.first = self._histogram("loquela_first_token_seconds", "Time from a request to its first token.")
        self.token = self._histogram("loquela_token_seconds", "Time from one token to the next.")
        self.prompt_tokens = Counter("loquela_prompt_tokens", "Tokens that went in.", registry=self.registry)
        self.tokens = Counter("loquela_completion_tokens", "Tokens that came out.", registry=self.registry)

        self._state: Callable[[], dict[str, int]] = dict
        self._gauges: dict[str, Gauge] = {}

    def _histogram(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, buckets=_SHORT, registry=self.registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def watch(self, state: Callable[[], dict[str, int]]) -> None:
        """Show the scheduler's state as gauges; of several workers the sum, as it was at the last `refresh` of each."""
        self._state = state
        self._gauges = {
            name: Gauge(
                f"loquela_{name}", f"The scheduler's {name}.", multiprocess_mode="livesum", registry=self.registry
            )
            for name in state()
        }

    def refresh(self) -> None:
        """Look at the scheduler's state."""
        for name, value in self._state().items():
            self._gauges[name].set(value)

    def text(self) -> bytes:
        """Return all in Prometheus' text format."""
        self.refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def forget_worker(pid: int | None) -> None:
    """Count what a worker that is no more was doing no longer."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ and pid is not None:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, what happened, and the fields of `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        return json.dumps(line, ensure_ascii=False)


def log_bug(error: BaseException, **fields: Any) -> None:
    """Log the kind of an error and where it came from, not what it says, which may quote a prompt."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-8:]
    LOG.error("bug", extra={"fields": fields | {"error": type(error).__name__, "at": places}})


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is when something is written."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this server's log, and uvicorn's warnings, to stderr in one form."""
    handler = _ToStderr()
    handler.setFormatter(JsonLines())
    for name, least in (("loquela.serving", level), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
