"""/health, answered at the door: by a process that does nothing else, whatever those who serve are busy with.

An interpreter runs one thread at a time, and the system may take the core from whichever that is. Where a hundred
callers, bodies of megabytes and other programs want the same two cores, an answer from within waited up to 0.3 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

from loquela.serving.failures import ApiError
from loquela.serving.guard import Answers, Guard
from loquela.serving.options import Options
from loquela.serving.protocol import Reception, server_config

__all__ = ["reception"]

_PATH = "/health"


def reception(options: Options, alive: Callable[[], bool], answers: Answers) -> Reception:
    """Return who takes connections that ask for /health; `alive` says whether there is anybody behind the door.

    Such a connection is closed after its answer: what it asked next might be for those behind.
    """

    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        if not alive():
            message = "nobody serves here at the moment: a worker is starting again, or has not moved for long"
            raise ApiError(503, message, code="unavailable", headers={"Retry-After": "5"})
        await JSONResponse({"status": "ok"})(scope, receive, send)

    config = server_config(options, _closing(Guard(health, options, answers, [_PATH])))
    config.load()
    state = ServerState()
    _date(state)
    return Reception(config, state)


def _closing(app: ASGIApp) -> ASGIApp:
    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, answer)

    return closing


def _date(state: ServerState) -> None:
    """Keep the header that names the time right."""
    state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
    asyncio.get_running_loop().call_later(1, _date, state)
