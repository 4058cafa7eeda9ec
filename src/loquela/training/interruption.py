"""SIGINT and SIGTERM: the first asks for an end at the next step boundary, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """A context in which a signal sets `requested` while `patient`, and otherwise raises `KeyboardInterrupt`.

    A run is patient while it has something to save. Outside the main thread, which alone receives signals, nothing
    is changed. A launcher such as torchrun passes on what a terminal has sent to all its processes already: where one
    has `launched` this process, only the same signal twice is a second one.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.launched = launched
        self.first: int | None = None
        self.patient = False
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if not self.patient or (self.requested and not (self.launched and number != self.first)):
            raise KeyboardInterrupt
        self.first = self.first or number
        self.requested = True
