"""The requests of one call: submitted a few at a time, their events in one stream, cancelled when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from loquela.engine.requests import Ended, Event, Failed, Request, Ticket, Written
from loquela.errors import BusyError, UnavailableError
from loquela.serving.failures import ApiError
from loquela.serving.state import Served

__all__ = ["Run", "until_left"]

T = TypeVar("T")
_AT_ONCE = 4


class Run:
    """Submits `requests`; raises what the scheduler raises when the first ones find no place."""

    def __init__(self, served: Served, requests: Sequence[Request]) -> None:
        self._served, self._requests = served, requests
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._last: dict[tuple[int, int], float] = {}
        self.completion_tokens = 0
        try:
            for _ in requests[:_AT_ONCE]:
                self._submit()
        except BaseException:
            self.cancel()
            raise

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt) for request in self._requests)

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield each event with the number of its request; raises the error of the first that fails."""
        open_requests = len(self._requests)
        self._served.metrics.prompt_tokens.inc(self.prompt_tokens)
        try:
            while open_requests:
                number, event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Written):
                    self._measure(number, event)
                yield number, event
                if isinstance(event, Ended):
                    open_requests -= 1
                    await self._submit_next()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give all places back."""
        for ticket in self._tickets:
            ticket.cancel()

    def _submit(self) -> None:
        number = len(self._tickets)

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        self._tickets.append(self._served.scheduler.submit(self._requests[number], emit))

    async def _submit_next(self) -> None:
        """Submit one more; where the queue is full, wait: this call has its place in the world already."""
        while len(self._tickets) < len(self._requests):
            try:
                self._submit()
                return
            except UnavailableError:
                raise
            except BusyError:
                await asyncio.sleep(0.05)

    def _measure(self, number: int, event: Written) -> None:
        metrics, ticket, key = self._served.metrics, self._tickets[number], (number, event.choice)
        self.completion_tokens += 1
        metrics.tokens.inc()
        if key in self._last:
            metrics.token.observe(event.at - self._last[key])
        elif event.choice == 0 and ticket.started is not None:
            metrics.queue.observe(ticket.started - ticket.submitted)
            metrics.first.observe(event.at - ticket.submitted)
        self._last[key] = event.at


async def until_left(request: HttpRequest, work: Awaitable[T], left: Callable[[], Any]) -> T:
    """Await `work`; if the caller hangs up before, call `left` and give up. The body must have been read."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the caller left before the answer was whole")
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            left()
            task.cancel()


async def _hang_up(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
