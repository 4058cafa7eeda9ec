"""What is asked of the scheduler, and what comes back, piece by piece."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from loquela.errors import LoquelaError
from loquela.generation.completion import Alternative, Completion, Piece, Usage
from loquela.generation.constrain import Constraint
from loquela.generation.settings import GenerationSettings

__all__ = ["Ended", "Event", "Failed", "Request", "Scored", "Scores", "Ticket", "Written"]


@dataclass(frozen=True)
class Request:
    """A prompt to be continued `settings.n` times. `owner` is who asks: owners take turns."""

    prompt: tuple[int, ...]
    settings: GenerationSettings
    end_ids: frozenset[int] = frozenset()
    top: int = 0
    """How many alternatives come with each token."""
    adapter: str | None = None
    constraint: Constraint | None = None
    score_prompt: bool = False
    """Whether the prompt's own tokens are scored too (`Scores`)."""
    owner: str = ""
    seconds: float | None = None
    """How long the whole may take, waiting included."""


@dataclass(frozen=True)
class Scored:
    """A token of the prompt; the first one has nothing before it that could foretell it."""

    id: int
    log_prob: float | None
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Scores:
    """The tokens of the prompt, scored; comes before the first piece."""

    tokens: tuple[Scored, ...]


@dataclass(frozen=True)
class Written:
    """The next piece of one of the choices."""

    choice: int
    piece: Piece
    at: float
    """When it was written, on `time.perf_counter`'s clock."""


@dataclass(frozen=True)
class Ended:
    """All choices are whole; nothing comes after it."""


@dataclass(frozen=True)
class Failed:
    """The request came to no good end; nothing comes after it."""

    error: LoquelaError


Event: TypeAlias = "Scores | Written | Ended | Failed"


@dataclass(eq=False)
class Ticket:
    """A request on its way. `emit` is called with each event, in the scheduler's thread; it must not block."""

    request: Request
    emit: Callable[[Event], None]
    submitted: float = field(default_factory=time.perf_counter)
    started: float | None = None
    """When its prompt was begun to be read."""
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _events: queue.SimpleQueue[Event] | None = None

    @classmethod
    def waiting(cls, request: Request) -> Ticket:
        """Return a ticket whose events are kept until somebody asks for them with `events`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        return cls(request, events.put, _events=events)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the rest."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Give the place back before the next step; no event need come any more. May be called from any thread."""
        self._cancelled.set()

    @property
    def deadline(self) -> float:
        """When its time is up, on `time.perf_counter`'s clock."""
        return float("inf") if self.request.seconds is None else self.submitted + self.request.seconds

    def events(self) -> Iterator[Event]:
        """Wait for each event up to the last one; raises the error of a request that failed."""
        assert self._events is not None, "this ticket hands its events to its own `emit`"
        while True:
            event = self._events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Ended):
                return

    def result(self) -> list[Completion]:
        """Wait for the end; return the completion of each choice. Raises the error of a request that failed."""
        pieces: list[list[Piece]] = [[] for _ in range(self.request.settings.n)]
        for event in self.events():
            if isinstance(event, Written):
                pieces[event.choice].append(event.piece)
        usage = len(self.request.prompt)
        return [
            Completion(
                "".join(piece.text for piece in choice),
                tuple(choice),
                (choice[-1].finish_reason if choice else None) or "length",
                Usage(usage, len(choice)),
            )
            for choice in pieces
        ]
