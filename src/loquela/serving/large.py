"""What takes time with the size of a request or of its answer, done where it keeps nobody waiting.

Reading a body of 2 MB as JSON, or writing an answer of a million numbers, takes 0.1 s, in which no other thread of the
process has the interpreter; to read as many characters as tokens takes a core for 0.7 s. So it is done by one thread,
one piece after the other, and after each the thread rests as long as it took: there the server answers others, however
many such requests there are.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response

__all__ = ["LARGE", "aside", "json_answer"]

T = TypeVar("T")
LARGE = 16_384
"""Bytes, characters or numbers from which it is worth another thread."""
_MOST_REST = 0.2
"""Seconds."""
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="loquela-large")


async def aside(size: int, job: Callable[..., T], *given: Any) -> T:
    """Do a job here if what it works on is small, else in the thread for what is large."""
    if size < LARGE:
        return job(*given)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, partial(_piece, job, *given))


def _piece(job: Callable[..., T], *given: Any) -> T:
    begun = time.perf_counter()
    gc.disable()  # nothing of what is made in a moment is garbage, and looking through it takes longer than making it
    try:
        return job(*given)
    except Exception as error:
        _let_go(error)
        raise
    finally:
        gc.enable()
        time.sleep(min(_MOST_REST, time.perf_counter() - begun))


def _let_go(error: BaseException) -> None:
    """Free what an error keeps alive: the places it came through, with half a million objects of a body, and its cause.

    Whoever looks for garbage while they live goes through them all, which holds everybody up for 0.4 s.
    """
    error.__cause__ = error.__context__ = None
    traceback.clear_frames(error.__traceback__)


async def json_answer(
    answer: Mapping[str, Any], name: str, items: Sequence[T], form: Callable[[T], Any], size: int
) -> Response:
    """Return `answer` in JSON, and under `name` the list of what `form` makes of each item; `size` is that of all."""

    def written(item: T) -> str:
        return _written(form(item))

    pieces = [written(item) for item in items] if size < LARGE else [await aside(size, written, i) for i in items]
    parts = [f"{_written(key)}:{_written(value)}" for key, value in answer.items()]
    parts.append(f"{_written(name)}:[{','.join(pieces)}]")
    return Response(f"{{{','.join(parts)}}}", media_type="application/json")


def _written(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
