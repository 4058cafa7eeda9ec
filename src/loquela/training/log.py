"""What a run writes down as it goes: `loss.csv`, the same to the last byte whatever the interruptions; `timing.csv`.

loss.csv has a row every `logging_steps` updates and at each validation: `train_loss` is the mean since the row before
(nats per token), `val_loss` that of the whole held-out text, `grad_norm` that of the last update before clipping.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path

from loquela.errors import StorageError

__all__ = ["LossLog", "Row", "Timing", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One row of loss.csv."""

    step: int
    tokens: int
    train_loss: float
    val_loss: float | None
    learning_rate: float
    grad_norm: float


class LossLog:
    """loss.csv, cut back to the `size` that the checkpoint knows of and open for more."""

    def __init__(self, file: Path, size: int, *, writes: bool = True) -> None:
        self.file = file
        self._stream: FileIO | None = None
        """None on a rank that does not write."""
        self.lost = False
        """Whether rows that the checkpoint knows of are gone."""
        if writes:
            with _storage(file):
                self._stream = file.open("ab", buffering=0)
                self.lost = self._stream.tell() < size
            self.cut(size)

    def cut(self, size: int) -> None:
        """Drop what comes after the first `size` bytes."""
        if self._stream is None:
            return
        with _storage(self.file):
            self._stream.truncate(min(size, self._stream.seek(0, os.SEEK_END)))
            if not self._stream.seek(0, os.SEEK_END):
                self._write([f.name for f in fields(Row)])

    def write(self, row: Row) -> None:
        """Append a row; it is in the file when this returns."""
        self._write(["" if value is None else repr(value) for value in asdict(row).values()])

    def sync(self) -> int:
        """Put all rows on the disk; return the size of the file, for the checkpoint."""
        if self._stream is None:
            return 0
        with _storage(self.file):
            os.fsync(self._stream.fileno())
            return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, cells: list[str]) -> None:
        if self._stream is not None:
            _append(self.file, self._stream, cells)


class Timing:
    """timing.csv: `seconds` since the run began, those between sessions left out; the speed since the last row.

    `mfu` is the share of what the hardware could compute at best that was spent on tokens, where that is known.
    """

    def __init__(self, file: Path, *, writes: bool = True) -> None:
        self.file = file
        self._stream: FileIO | None = None
        before = 0.0
        with _storage(file):
            text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
            for row in csv.DictReader(text.splitlines()):
                before = max(before, _number(row.get("seconds")))
            if writes:
                self._stream = file.open("ab", buffering=0)
            if self._stream is None:
                pass
            elif not text:
                _append(file, self._stream, ["step", "seconds", "tokens_per_second", "mfu"])
            elif not text.endswith("\n"):  # a kill has cut the last line
                _append(file, self._stream, [])
        self._begin = time.perf_counter() - before
        self._last = (before, 0)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, all its sessions together."""
        return time.perf_counter() - self._begin

    def write(self, step: int, tokens: int, utilisation: Callable[[float], float | None]) -> float:
        """Append a row; `tokens` were trained on in this session. Returns the tokens per second since the last row."""
        seconds, (last_seconds, last_tokens) = self.seconds, self._last
        speed = (tokens - last_tokens) / max(seconds - last_seconds, 1e-9)
        mfu = utilisation(speed)
        if self._stream is not None:
            shown = "" if mfu is None else f"{mfu:.6f}"
            _append(self.file, self._stream, [str(step), f"{seconds:.3f}", f"{speed:.0f}", shown])
        self._last = (seconds, tokens)
        return speed

    def restart(self) -> None:
        """Count tokens from zero again."""
        self._last = (self.seconds, 0)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a loss.csv."""
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Row(
                int(row["step"]),
                int(row["tokens"]),
                float(row["train_loss"]),
                float(row["val_loss"]) if row["val_loss"] else None,
                float(row["learning_rate"]),
                float(row["grad_norm"]),
            )
            for row in csv.DictReader(stream)
        ]


def _append(file: Path, stream: FileIO, cells: list[str]) -> None:
    with _storage(file):
        line = (",".join(cells) + "\n").encode()
        while line:  # a disk about to be full takes a part, then raises
            line = line[stream.write(line) :]


def _number(cell: str | None) -> float:
    try:
        return float(cell or 0)
    except ValueError:  # a line that a kill has cut
        return 0.0


@contextmanager
def _storage(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror or error}") from error
