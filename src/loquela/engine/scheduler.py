"""Many requests at once: a step is one token for each text that is being written, and a piece of one prompt.

One thread owns the network. What others call only puts a request into the queue or takes a job's result out, so that
they never wait for a computation. A request starts when a place is free and the memory of its caches fits the limit;
then its prompt is read piece by piece between the others' tokens, prompts taking turns, so that a long one holds nobody
up. Each step first frees the places of requests that were cancelled or whose time is up.

What a request gets does not depend on the others: `loquela.engine.rows` computes each row as it would be alone, on the
schedule of the decode loop (`loquela.generation.decode`), and a draw is a function of the seed and the position.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from torch import Tensor

from loquela.engine.prefixes import Prefixes
from loquela.engine.requests import Ended, Event, Failed, Request, Scored, Scores, Ticket, Written
from loquela.engine.rows import Rows, Wear
from loquela.engine.terms import Limits, Terms
from loquela.engine.turns import Turns
from loquela.engine.work import Reading, Writing, bytes_per_position, do
from loquela.errors import BusyError, LoquelaError, UnavailableError, UsageError
from loquela.generation.completion import PieceMaker, alternatives
from loquela.generation.decode import CHUNK, Writer, spans
from loquela.generation.outlook import Outlook
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = ["Limits", "Scheduler"]

T = TypeVar("T")

_CLOSING = "the server is closing: try again later"


class Scheduler:
    """Serves one network; `submit` may be called from any thread, `close` ends it.

    `wear` lets the network wear an adapter by name (see `know`); `compiled` is its compiled form, if it has one. Raises
    `UsageError` from `submit` for what can never be served,
    `BusyError` when too many wait, `UnavailableError` once it is closing.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        limits: Limits | None = None,
        *,
        wear: Wear | None = None,
        compiled: Network | None = None,
    ) -> None:
        self.network, self.tokenizer, self.limits = network, tokenizer, limits or Limits()
        self._rows = Rows(network, wear, compiled)
        self._prefixes = Prefixes(self.limits.cache_bytes // 2)
        self._terms = Terms(network, self.limits, bytes_per_position(self._rows) if network.kind != "encoder" else 0)
        self.know(None)
        self._waiting, self._jobs = Turns(), deque[tuple[Callable[[], Any], Future[Any]]]()
        self._reading, self._writing = deque[Reading](), list[Writing]()
        self._closing = self._aborting = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="loquela-scheduler", daemon=True)
        self._thread.start()

    # -- called from any thread

    def submit(self, request: Request, emit: Callable[[Event], None] | None = None) -> Ticket:
        """Let a request wait for its turn; its events go to `emit`, or are read from the ticket."""
        self._terms.check(request)
        ticket = Ticket.waiting(request) if emit is None else Ticket(request, emit)
        with self._wake:
            self._must_be_open()
            if len(self._waiting) >= self.limits.queue:
                raise BusyError(f"{self.limits.queue} requests wait already, as many as may: try again in a moment")
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def call(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` in the scheduler's thread between two steps: it may use the network."""
        future: Future[T] = Future()
        with self._wake:
            self._must_be_open()
            if len(self._jobs) >= self.limits.queue:
                raise BusyError(f"{self.limits.queue} requests wait already, as many as may: try again in a moment")
            self._jobs.append((job, future))
            self._wake.notify()
        return future

    def know(self, adapter: str | None) -> str | None:
        """Let requests wear an adapter that the network has. To be run by `call`, or before any request.

        Returns why its rows cannot be computed together with the others, if so.
        """
        self._terms.windows[adapter] = self._rows.window(adapter)
        return self._rows.know(adapter)

    def window(self, adapter: str | None) -> int:
        """Return the context window under an adapter."""
        return self._terms.windows[adapter]

    def forget(self, adapter: str) -> None:
        """Drop what was kept of an adapter; raises `UsageError` while a request wears it. To be run by `call`."""
        with self._wake:
            tickets = [*self._waiting, *self._tickets()]
        if any(ticket.request.adapter == adapter for ticket in tickets):
            raise UsageError(f"adapter {adapter!r} must be out of use to be unloaded, but a request wears it")
        self._terms.windows.pop(adapter, None)
        self._prefixes.forget(adapter)

    def state(self) -> dict[str, int]:
        """Return how many requests wait, how many places are taken, and the bytes that are kept for beginnings."""
        taken = len(self._reading) + len(self._writing)
        return {"waiting": len(self._waiting), "running": taken, "prefix_bytes": self._prefixes.bytes}

    def close(self, seconds: float = 0.0) -> None:
        """Take no more, let what was taken end within so many `seconds`, then fail the rest; returns when all is."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(seconds)
        self._aborting = True
        self._thread.join()

    def _must_be_open(self) -> None:
        if self._closing:
            raise UnavailableError(_CLOSING)

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._jobs or self._reading or self._writing or self._closing):
                    self._wake.wait()
                if self._closing and not (self._waiting or self._jobs or self._reading or self._writing):
                    return
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                do(*job)
            self._clear()
            self._admit()
            self._step()

    def _clear(self) -> None:
        """Free the places of those who left, whose time is up, or whom the server leaves."""
        now = time.perf_counter()

        def gone(ticket: Ticket) -> bool:
            return ticket.cancelled or now > ticket.deadline or self._aborting

        with self._wake:
            out = self._waiting.remove(gone)
        out += [ticket for ticket in self._tickets() if gone(ticket)]
        for ticket in out:
            late = f"the request must end within {ticket.request.seconds} s, but did not: ask for less, or try again"
            self._fail(ticket, UnavailableError(late if now > ticket.deadline else _CLOSING))

    def _admit(self) -> None:
        """Start those whose turn it is, as long as there are places and memory."""
        while True:
            with self._wake:
                ticket = self._waiting.next()
                if ticket is None or self._places() + ticket.request.settings.n > self.limits.slots:
                    return
                cost, taken = self._terms.cost(ticket.request), self._taken()
                if taken + cost > self.limits.cache_bytes:
                    return
                self._waiting.pop()
            self._prefixes.make_room(self.limits.cache_bytes - taken - cost)
            ticket.started = time.perf_counter()
            try:
                self._reading.append(self._begin(ticket, cost))
            except Exception as error:
                self._fail(ticket, _as_ours(error))

    def _begin(self, ticket: Ticket, cost: int) -> Reading:
        request = ticket.request
        if self.network.kind == "decoder" and not request.score_prompt:
            known = self._prefixes.find(request.adapter, request.prompt)
            if known is not None:
                return Reading(ticket, cost, list(request.prompt), *known)
        cache, first = self._rows.start(request.prompt, request.adapter)
        return Reading(ticket, cost, first, cache, 0)

    def _tickets(self) -> dict[Ticket, None]:
        """Every request that has a place, once."""
        tickets = [reading.ticket for reading in self._reading] + [writing.ticket for writing in self._writing]
        return dict.fromkeys(tickets)

    def _places(self) -> int:
        return sum(reading.ticket.request.settings.n for reading in self._reading) + len(self._writing)

    def _taken(self) -> int:
        return sum(reading.cost for reading in self._reading) + sum(writing.cost for writing in self._writing)

    def _step(self) -> None:
        """Advance all texts by one token, and one prompt by one piece."""
        writing = list(self._writing)
        reading = self._reading.popleft() if self._reading else None
        tokens = [[row.writer.completion[-1]] for row in writing]
        caches = [row.cache for row in writing]
        adapters, wanted = [row.ticket.request.adapter for row in writing], [1] * len(writing)
        if reading is not None:
            start, end = next(spans(reading.held, len(reading.prefix)))
            tokens.append(reading.prefix[start:end])
            caches.append(reading.cache)
            adapters.append(reading.ticket.request.adapter)
            wanted.append(end - start if reading.ticket.request.score_prompt else int(end == len(reading.prefix)))
        if not tokens:
            return
        try:
            hidden = self._rows.hidden(tokens, caches, adapters, wanted)
            if reading is not None:
                reading.held += len(tokens[-1])
                ready = self._read(reading, hidden[-1])
                hidden, adapters = (hidden, adapters) if ready else (hidden[:-1], adapters[:-1])
            outlooks = self._rows.outlooks([states[-1] for states in hidden], adapters)
        except Exception as error:  # nothing that one request brought may end the thread that serves all
            for ticket in self._tickets() | ({} if reading is None else {reading.ticket: None}):
                self._fail(ticket, _as_ours(error))
            return
        for row, outlook in zip(writing, outlooks, strict=False):
            self._write(row, outlook)
        if reading is not None and reading.held == len(reading.prefix):
            self._begin_writing(reading, outlooks[-1])

    def _read(self, reading: Reading, hidden: Tensor) -> bool:
        """Take in a piece that was read; return whether the prompt is whole."""
        request, held, length = reading.ticket.request, reading.held, len(reading.prefix)
        if request.score_prompt:
            self._score(reading, hidden)
        if held % CHUNK == 0 and length - held <= CHUNK and self.network.kind == "decoder":
            self._prefixes.make_room(self.limits.cache_bytes - self._taken() - reading.cost)
            self._prefixes.keep(request.adapter, reading.prefix[:held], reading.cache)
        if held < length:
            self._reading.append(reading)
        return held == length

    def _score(self, reading: Reading, hidden: Tensor) -> None:
        request, last = reading.ticket.request, reading.held == len(reading.prefix)
        if not reading.scores:
            reading.scores.append(Scored(reading.prefix[0], None, ()))
        rows = list(hidden[:-1] if last else hidden)
        for outlook in self._rows.outlooks(rows, [request.adapter] * len(rows)) if rows else []:
            token = reading.prefix[len(reading.scores)]
            top = alternatives(outlook, self.tokenizer, request.top)
            reading.scores.append(Scored(token, outlook.log_probability(token), top))
        if last:
            reading.ticket.emit(Scores(tuple(reading.scores)))

    def _begin_writing(self, reading: Reading, outlook: Outlook) -> None:
        """Start every choice from its own copy of the cache that holds the prompt."""
        ticket, request = reading.ticket, reading.ticket.request
        settings, window = request.settings, self._terms.windows[request.adapter]
        rows = []
        for choice in range(settings.n):
            cache = reading.cache if choice == settings.n - 1 else copy.deepcopy(reading.cache)
            guide = None if request.constraint is None else request.constraint.start()
            writer = Writer(reading.prefix, settings, window, end_ids=request.end_ids, choice=choice, guide=guide)
            maker = PieceMaker(self.tokenizer, reading.prefix, settings.stop, request.end_ids, request.top)
            rows.append(Writing(ticket, reading.cost // settings.n, cache, writer, maker))
        if not rows[0].going:  # no token was asked for
            self._end(ticket)
            return
        self._writing += rows
        for row in rows:
            self._write(row, outlook)

    def _write(self, row: Writing, outlook: Outlook) -> None:
        """Choose a text's next token and hand out the piece."""
        ticket = row.ticket
        if ticket.cancelled or row not in self._writing:
            return
        try:
            piece = row.maker.push(row.writer.take(outlook))
        except LoquelaError as error:
            self._fail(ticket, error)
            return
        ticket.emit(Written(row.writer.choice, piece, time.perf_counter()))
        if not row.going:
            self._writing.remove(row)
            if not any(other.ticket is ticket for other in self._writing):
                self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        self._leave(ticket)
        ticket.emit(Ended())

    def _fail(self, ticket: Ticket, error: LoquelaError) -> None:
        self._leave(ticket)
        ticket.emit(Failed(error))

    def _leave(self, ticket: Ticket) -> None:
        self._writing = [row for row in self._writing if row.ticket is not ticket]
        self._reading = deque(reading for reading in self._reading if reading.ticket is not ticket)


def _as_ours(error: Exception) -> LoquelaError:
    if isinstance(error, LoquelaError):
        return error
    return LoquelaError(f"the model could not go on: {type(error).__name__}: {error}")
