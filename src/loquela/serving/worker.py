"""A process that serves: the model, the app, and connections that come from the door (`loquela.serving.door`)."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import uvicorn

from loquela.api import LanguageModel
from loquela.errors import LoquelaError
from loquela.serving.app import build
from loquela.serving.handing import ADAPTER, BEAT, BEAT_SECONDS, FAILED, READY, allow_files, received
from loquela.serving.observe import LOG, log_to_stderr
from loquela.serving.options import Options
from loquela.serving.protocol import Reception, server_config
from loquela.serving.state import Served, opened

__all__ = ["Prepare", "serve"]

Prepare: TypeAlias = "Callable[[LanguageModel], None]"


def serve(options: Options, address: tuple[str, int], channel: socket.socket, prepare: Prepare | None) -> None:
    """Serve what comes through `channel` until SIGTERM, then let what runs end; without a door, end at once.

    What is wrong with the model or the options is told to the door, which ends with it.
    """
    log_to_stderr()
    allow_files()
    sys.setswitchinterval(0.001)  # the loop's turn comes soon, however much Python the model's thread runs
    try:
        model = opened(options)
        if prepare is not None:
            prepare(model)
        served = Served(options, model)
    except LoquelaError as error:
        channel.sendall(FAILED + json.dumps([error.exit_code, str(error)]).encode() + b"\n")
        sys.exit(error.exit_code)
    server = uvicorn.Server(server_config(options, build(served)))
    gc.collect()
    gc.freeze()  # a million objects that stay: looking through them again and again holds everybody up for 0.2 s
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn hands a signal on when it has drained: that is the end
    place = {"host": address[0], "port": address[1], "pid": os.getpid(), "engine": served.engine}
    LOG.info("serving", extra={"fields": place})
    asyncio.run(_answer(server, served, channel))
    served.close()
    LOG.info("closed")


async def _answer(server: uvicorn.Server, served: Served, channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    reception = Reception(server.config, server.server_state)
    channel.setblocking(False)

    def take() -> None:
        try:
            for given in received(channel):
                if isinstance(given, socket.socket):
                    reception.take(given)
                else:
                    served.metrics.answered("/health", *given)
        except EOFError:  # who accepts connections is no more, and nobody could end this process
            loop.remove_reader(channel)
            server.should_exit = server.force_exit = True

    def changed(name: str, directory: Path | None) -> None:
        channel.send(ADAPTER + json.dumps([name, directory and str(directory)]).encode() + b"\n")

    async def beat() -> None:
        while True:
            served.metrics.refresh()
            with suppress(OSError):
                channel.send(BEAT + b"\n")
            await asyncio.sleep(BEAT_SECONDS)

    served.changed = changed
    loop.add_reader(channel, take)
    channel.send(READY + b"\n")
    beating = loop.create_task(beat())
    await server.serve(sockets=[])
    beating.cancel()
    loop.remove_reader(channel)
