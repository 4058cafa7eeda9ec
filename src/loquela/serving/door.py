"""The door of the server: a process that listens, answers /health, and hands every other connection to one that serves.

It holds no model and computes nothing, so that it answers at once, whatever is going on behind it. It starts those who
serve, replaces one that dies, and ends them. Nothing heavy is imported here before they have been started.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loquela.errors import LoquelaError, UsageError
from loquela.serving.handing import ADAPTER, FAILED, READY, allow_files, hand, tell
from loquela.serving.options import Options

if TYPE_CHECKING:
    from loquela.serving.protocol import Reception
    from loquela.serving.worker import Prepare

__all__ = ["bind", "run"]

SILENT_SECONDS = 5.0
"""How long a connection may say nothing."""
STILL_SECONDS = 30.0
"""How long a process that serves may give no sign before /health says so."""
_MOST_HELD = 4096
_HEALTH = (b"GET /health ", b"HEAD /health ")
_TICK = 0.05
_DEATHS, _SOON = 5, 60.0
"""So many deaths of each process within so many seconds, and it is no use to start it again."""


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
    ready: Callable[[], None] | None = None,
    prepare: Prepare | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let what runs end; a second signal leaves at once.

    `prepare` is called with the model in each process before anything is computed, `ready` when the first one serves.
    Raises what keeps them from serving, and `KeyboardInterrupt` when it is interrupted before they do.
    """
    with ExitStack() as stack:
        if options.workers > 1:
            metrics = stack.enter_context(tempfile.TemporaryDirectory(prefix="loquela-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        allow_files()
        asyncio.run(_Door(options, listener, ready, prepare).run())


def _serve(
    options: Options, address: tuple[str, int], channel: socket.socket, prepare: Prepare | None
) -> None:  # what a process of its own begins with
    from loquela.serving.worker import serve

    os.setsid()
    serve(options, address, channel, prepare)


class _Behind:
    """A process that serves, as it is seen from the door."""

    def __init__(self, options: Options, address: tuple[str, int], prepare: Prepare | None) -> None:
        self.channel, theirs = socket.socketpair()
        self.options = options
        """What one that takes its place is to begin with."""
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(options, address, theirs, prepare), daemon=False)
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the door, which ends the others
        self.process.start()
        signal.signal(signal.SIGINT, previous)
        theirs.close()
        self.channel.setblocking(False)
        self.ready, self.moved = False, 0.0
        self.failure: LoquelaError | None = None
        self._said = b""

    @property
    def alive(self) -> bool:
        """Whether it serves, and has moved of late."""
        return self.ready and time.monotonic() - self.moved < STILL_SECONDS

    def listen(self) -> None:
        """Take in what it says."""
        try:
            said = self.channel.recv(65536)
        except OSError:
            said = b""
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            self.moved = time.monotonic()
            if line == READY:
                self.ready = True
            elif line.startswith(FAILED):
                code, message = json.loads(line.removeprefix(FAILED))
                self.failure = (UsageError if code == UsageError.exit_code else LoquelaError)(message)
            elif line.startswith(ADAPTER):
                name, directory = json.loads(line.removeprefix(ADAPTER))
                others = {other: path for other, path in self.options.adapters.items() if other != name}
                worn = {} if directory is None else {name: Path(directory)}
                self.options = replace(self.options, adapters=others | worn)
        if not said:
            self.ready = False
            asyncio.get_running_loop().remove_reader(self.channel)

    def end(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)


class _Door:
    """Accepts, looks at the first bytes of each connection, and hands it on."""

    def __init__(
        self,
        options: Options,
        listener: socket.socket,
        ready: Callable[[], None] | None,
        prepare: Prepare | None,
    ) -> None:
        self._options, self._listener, self._ready, self._prepare = options, listener, ready, prepare
        self._address = (options.host, int(listener.getsockname()[1]))
        self._behind: list[_Behind] = []
        self._turn = 0
        self._signals: list[int] = []
        self._deaths: list[float] = []
        self._held: deque[socket.socket] = deque()
        """Connections for which nobody had room."""
        self._retrying = False
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Do all of it until the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.append, number)
        self._behind = [self._start(self._options) for _ in range(self._options.workers)]
        from loquela.serving.health import reception
        from loquela.serving.observe import log_to_stderr

        log_to_stderr()
        opened = False
        try:
            while not self._signals:
                if not opened and any(one.ready for one in self._behind):
                    self._reception: Reception = reception(self._options, self._alive, self)
                    loop.add_reader(self._listener, self._accept)
                    opened = True
                    if self._ready is not None:
                        self._ready()
                self._replace(opened)
                await asyncio.sleep(_TICK)
        finally:
            loop.remove_reader(self._listener)
            self._listener.close()
            for connection in [*self._held, *self._silent]:
                connection.close()
            await self._end()
        if not opened and signal.SIGINT in self._signals:
            raise KeyboardInterrupt

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Let somebody behind the door count an answer that was given here."""
        any(tell(one.channel, status, seconds) for one in self._behind if one.ready)

    # -- those behind the door

    def _alive(self) -> bool:
        return any(one.alive for one in self._behind)

    def _start(self, options: Options) -> _Behind:
        one = _Behind(options, self._address, self._prepare)
        asyncio.get_running_loop().add_reader(one.channel, one.listen)
        return one

    def _replace(self, opened: bool) -> None:
        from loquela.serving.observe import LOG, forget_worker

        for index, one in enumerate(self._behind):
            if one.process.is_alive():
                continue
            if one.failure is None and one.channel.fileno() >= 0:
                one.listen()  # its last words
            if one.failure is not None and not opened:
                raise one.failure
            code, now = one.process.exitcode, time.monotonic()
            self._deaths = [*(then for then in self._deaths if now - then < _SOON), now]
            if not opened or len(self._deaths) > _DEATHS * len(self._behind):
                raise LoquelaError(f"a process that serves ended by itself, exit code {code}: its log above says why")
            LOG.error("worker died", extra={"fields": {"pid": one.process.pid, "exit_code": code}})
            asyncio.get_running_loop().remove_reader(one.channel)
            one.channel.close()
            forget_worker(one.process.pid)
            self._behind[index] = self._start(replace(one.options, again=True))

    async def _end(self) -> None:
        for one in self._behind:
            one.end(signal.SIGTERM)
        while any(one.process.is_alive() for one in self._behind):
            if len(self._signals) > 1:
                for one in self._behind:
                    one.end(signal.SIGKILL)
            await asyncio.sleep(_TICK)

    # -- connections

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # too many files: those that wait in the system's own queue wait on
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(0.1, self._accept_again)
                return
            connection.setblocking(False)
            self._look(connection)

    def _accept_again(self) -> None:
        if not self._signals:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _look(self, connection: socket.socket) -> None:
        """See what a connection begins with, and who is to have it."""
        loop = asyncio.get_running_loop()
        try:
            begins = connection.recv(16, socket.MSG_PEEK)
        except BlockingIOError:
            if connection not in self._silent:
                self._silent[connection] = loop.call_later(SILENT_SECONDS, self._drop, connection)
                loop.add_reader(connection, self._look, connection)
            return
        except OSError:
            begins = b""
        self._forget(connection)
        if begins.startswith(_HEALTH):
            self._reception.take(connection)
        elif begins and len(self._held) < _MOST_HELD:
            self._held.append(connection)
            self._give()
        else:
            connection.close()

    def _forget(self, connection: socket.socket) -> None:
        if (timer := self._silent.pop(connection, None)) is not None:
            timer.cancel()
            asyncio.get_running_loop().remove_reader(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _give(self) -> None:
        """Give what is held to those behind the door, in turn; try again soon while they have no room."""
        while self._held:
            ready = [one for one in self._behind if one.ready]
            self._turn += 1
            ready = ready[self._turn % len(ready) :] + ready[: self._turn % len(ready)] if ready else []
            if not any(hand(one.channel, self._held[0]) for one in ready):
                if not self._retrying:
                    self._retrying = True
                    asyncio.get_running_loop().call_later(0.01, self._retry)
                return
            self._held.popleft().close()

    def _retry(self) -> None:
        self._retrying = False
        self._give()
