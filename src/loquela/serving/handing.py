"""What goes between the process at the door and one that serves: connections, and a few words, over a Unix socket.

The door sends records of eight bytes: a connection travels beside a record of nought; any other record is the status of
an answer that the door gave itself, and the seconds it took. The server sends lines: `READY`, `BEAT`, `FAILED …`, and
`ADAPTER` with the name of one that was loaded or dropped at run time, and its directory or null.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator

__all__ = ["ADAPTER", "BEAT", "BEAT_SECONDS", "FAILED", "READY", "allow_files", "hand", "received", "tell"]

READY, BEAT, FAILED, ADAPTER = b"ready", b"beat", b"failed ", b"adapter "
BEAT_SECONDS = 1.0
_RECORD = struct.Struct("<If")
_AT_ONCE = 64
_MOST_FILES = 8192


def hand(channel: socket.socket, connection: socket.socket) -> bool:
    """Give a connection away; return whether there was room for it. It is still to be closed here."""
    try:
        socket.send_fds(channel, [_RECORD.pack(0, 0.0)], [connection.fileno()])
    except OSError:  # the other side is too busy to take it, or gone
        return False
    return True


def tell(channel: socket.socket, status: int, seconds: float) -> bool:
    """Tell of an answer; return whether there was room for that."""
    try:
        channel.send(_RECORD.pack(status, seconds))
    except OSError:
        return False
    return True


def received(channel: socket.socket) -> Iterator[socket.socket | tuple[int, float]]:
    """Yield the connections and answers that have come by now; raises `EOFError` when the door is no more."""
    for _ in range(_AT_ONCE):
        try:
            data, files, _, _ = socket.recv_fds(channel, _RECORD.size, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            raise EOFError from None
        if not data:
            raise EOFError
        status, seconds = _RECORD.unpack(data)
        if status:
            yield status, seconds
        for file in files:
            yield socket.socket(fileno=file)


def allow_files() -> None:
    """Let this process have as many connections as the system lets it: a shell's usual limit is a thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
