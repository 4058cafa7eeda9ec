"""Several calls at a time to something that is waited for, such as a server; results in the order of the calls."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

__all__ = ["in_order"]

T = TypeVar("T")
R = TypeVar("R")
Job: TypeAlias = "tuple[Future[Any], Callable[[Any], Any], Any] | None"
_AHEAD = 4
"""Calls that wait for each one that runs, so that one slow call does not stop the others."""


def in_order(do: Callable[[T], R], things: Iterable[T], at_once: int) -> Iterator[R]:
    """Yield `do(thing)` of each thing, in their order, `at_once` of them running at a time.

    Things are taken as they are needed, a few for each that runs. An error of a call is raised in its place. Who stops
    early waits for nobody: what runs ends by itself, what has not begun never does.
    """
    if at_once <= 1:
        yield from map(do, things)
        return
    jobs: SimpleQueue[Job] = SimpleQueue()
    running: deque[Future[R]] = deque()
    threads = [threading.Thread(target=_work, args=(jobs,), name="loquela-ask", daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        for thing in things:
            future: Future[R] = Future()
            jobs.put((future, do, thing))
            running.append(future)
            if len(running) >= _AHEAD * at_once:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
        for _ in threads:
            jobs.put(None)


def _work(jobs: SimpleQueue[Job]) -> None:
    while (job := jobs.get()) is not None:
        future, do, thing = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(do(thing))
        except BaseException as error:
            future.set_exception(error)
