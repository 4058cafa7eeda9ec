"""uvicorn's HTTP protocol with the patience of a server that strangers may call.

Headers must come within seconds (a client that sends them byte by byte holds a connection for hours otherwise), and a
client that no longer reads is let go of.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from loquela.serving.guard import HEADER_BYTES
from loquela.serving.options import Options

__all__ = ["PatientProtocol", "Reception", "server_config"]

HEADER_SECONDS = 5.0
STALL_SECONDS = 60.0
MOST_CONNECTIONS = 4096


class PatientProtocol(H11Protocol):
    """Ends a connection whose headers do not come, or whose answers are not read."""

    _headers_due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for headers; refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Take in what came; go on waiting while the headers are not whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_expecting()
        elif self._headers_due is None:
            self._expect_headers()

    def on_response_complete(self) -> None:
        """The next request's headers have their own time, which begins with their first byte."""
        super().on_response_complete()
        self._stop_expecting()

    def pause_writing(self) -> None:
        """Start waiting for a client that does not read."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._stop_stalling()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_expecting()
        self._stop_stalling()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_expecting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _stop_stalling(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def server_config(options: Options, app: ASGIApp) -> uvicorn.Config:
    """Return how uvicorn is to run `app`."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        h11_max_incomplete_event_size=HEADER_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
        backlog=2048,
    )


class Reception:
    """Takes connections that another has accepted."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        self._config, self._state = config, state
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def take(self, connection: socket.socket) -> None:
        """Answer what comes over a connection."""
        connection.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _protocol(self) -> PatientProtocol:
        return PatientProtocol(config=self._config, server_state=self._state, app_state={})
