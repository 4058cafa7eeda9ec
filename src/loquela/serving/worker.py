"""Running the app: in this process, or in several behind one port."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TypeAlias

import uvicorn
from starlette.types import ASGIApp

from loquela.api import LanguageModel
from loquela.errors import UsageError
from loquela.serving.app import build
from loquela.serving.guard import HEADER_BYTES
from loquela.serving.observe import LOG, log_to_stderr
from loquela.serving.options import Options
from loquela.serving.protocol import PatientProtocol
from loquela.serving.state import Served, opened

__all__ = ["bind", "run", "server_config"]

Prepare: TypeAlias = "Callable[[LanguageModel], None]"


def bind(options: Options) -> socket.socket:
    """Return a listening socket; raises `UsageError` for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named; else each takes 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(f"the server cannot listen at {options.host} port {options.port}: {error}") from None
    listener.setblocking(False)
    return listener


def run(
    options: Options,
    listener: socket.socket,
    ready: Callable[[Served], None] | None = None,
    prepare: Prepare | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let what runs end; a second signal leaves at once.

    `prepare` is called with the model in each process before anything is computed, `ready` when the one worker serves.
    """
    if options.workers == 1:
        _serve(options, listener, ready, prepare)
    else:
        _Family(options, listener, prepare).run()


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


def _serve(
    options: Options,
    listener: socket.socket,
    ready: Callable[[Served], None] | None = None,
    prepare: Prepare | None = None,
) -> None:
    log_to_stderr()
    sys.setswitchinterval(0.001)  # the loop's turn comes soon, however much Python the model's thread runs
    model = opened(options)
    if prepare is not None:
        prepare(model)
    served = Served(options, model)
    server = uvicorn.Server(server_config(options, build(served)))
    gc.collect()
    gc.freeze()  # a million objects that stay: looking through them again and again holds everybody up for 0.2 s
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn hands a signal on when it has drained: that is the end
        signal.signal(number, lambda *_: None)
    place = {"host": options.host, "port": listener.getsockname()[1], "pid": os.getpid(), "engine": served.engine}
    LOG.info("serving", extra={"fields": place})
    if ready is not None:
        ready(served)
    asyncio.run(server.serve(sockets=[listener]))
    served.close()
    LOG.info("closed")


class _Family:
    """Several processes that accept on one socket; one that dies is replaced."""

    def __init__(self, options: Options, listener: socket.socket, prepare: Prepare | None) -> None:
        self._options, self._listener, self._prepare = options, listener, prepare
        self._context = multiprocessing.get_context("spawn")
        self._ending = 0

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="loquela-metrics-") as metrics:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._end)
            children = [self._start() for _ in range(self._options.workers)]
            failures = 0
            while not self._ending:
                time.sleep(0.1)
                for index, child in enumerate(children):
                    if not child.is_alive() and not self._ending:
                        failures += 1
                        if failures > 5 * len(children):
                            self._ending = 1
                        children[index] = self._start()
            self._tell(children, signal.SIGTERM)
            while any(child.is_alive() for child in children):
                if self._ending > 1:
                    self._tell(children, signal.SIGKILL)
                time.sleep(0.05)
            if failures > 5 * len(children):
                raise UsageError("the workers die as soon as they are started: their log says why")

    def _start(self) -> BaseProcess:
        child = self._context.Process(target=_child, args=(self._options, self._listener, self._prepare), daemon=False)
        child.start()
        return child

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending += 1

    @staticmethod
    def _tell(children: list[BaseProcess], number: signal.Signals) -> None:
        for child in children:
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, number)


def _child(options: Options, listener: socket.socket, prepare: Prepare | None) -> None:
    try:
        _serve(options, listener, prepare=prepare)
    except Exception as error:
        sys.stderr.write(f"loquela: {error}\n")
        sys.exit(1)
