"""What the scheduler works on: prompts that are being read, texts that are being written, jobs in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from loquela.engine.prefixes import bytes_held
from loquela.engine.requests import Scored, Ticket
from loquela.engine.rows import Rows
from loquela.generation.completion import PieceMaker
from loquela.generation.decode import Writer
from loquela.layers.cache import Cache

__all__ = ["Reading", "Writing", "bytes_per_position", "do"]


@dataclass(eq=False)
class Reading:
    """A prompt that is being read."""

    ticket: Ticket
    cost: int
    prefix: list[int]
    cache: Cache
    held: int
    scores: list[Scored] = field(default_factory=list)


@dataclass(eq=False)
class Writing:
    """A text that is being written: one choice of a request."""

    ticket: Ticket
    cost: int
    cache: Cache
    writer: Writer
    maker: PieceMaker

    @property
    def going(self) -> bool:
        """Whether another token is to come."""
        return self.writer.going and not self.maker.ended


def do(job: Callable[[], Any], future: Future[Any]) -> None:
    """Run a job and hand over what comes of it, unless nobody wants it any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:  # it belongs to the one who asked
        future.set_exception(error)


def bytes_per_position(rows: Rows) -> int:
    """Measure what one position costs in a cache, the spare room of its buffers included."""
    cache, first = rows.start([0] * 16, None)
    with torch.no_grad():
        rows.hidden([(first * 16)[:16]], [cache], [None])
    return -(-bytes_held(cache) // 16)
