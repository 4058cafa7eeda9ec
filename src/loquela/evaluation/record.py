"""What is kept of every item, as one line of JSON: enough for every metric, and to go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from loquela.errors import DataError, StorageError, UsageError

__all__ = ["Log", "Record"]

Record: TypeAlias = "dict[str, Any]"
"""`task`, `item` (the row's number), `gold`, and what the model said; see `loquela.evaluation.ask`."""


class Log:
    """A .jsonl file of records. Its first line says what was asked of whom; only the same goes on in it.

    A record is on disk before more is computed. A last line that an interruption cut is asked again.
    """

    def __init__(self, path: Path | None, what: Mapping[str, Any]) -> None:
        self.done: dict[tuple[str, int], Record] = {}
        self._file = None
        if path is None:
            return
        kept = self._read(path, dict(what)) if path.exists() and path.stat().st_size else 0
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(kept)
            self._file.seek(kept)
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error.strerror}") from error
        if not kept:
            self._write({"loquela": "evaluation", **what})

    def _read(self, path: Path, what: dict[str, Any]) -> int:
        """Take over the records of a file; return how many of its bytes are whole lines."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} must be readable, but: {error.strerror}") from error
        lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
        if not lines:
            return 0
        try:
            head, *records = map(json.loads, lines)
            if not isinstance(head, dict) or head.pop("loquela", None) != "evaluation":
                raise ValueError("its first line is another")
            self.done = {(record["task"], record["item"]): record for record in records}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} must be a log of this command, but is not ({error}): name a new file") from None
        expected = json.loads(json.dumps(what))
        if head != expected:
            changed = [key for key in {**head, **expected} if head.get(key) != expected.get(key)]
            raise UsageError(
                f"{path} must be the log of the same evaluation, but differs in {', '.join(sorted(changed))}: "
                "name a new file, or remove this one"
            )
        return sum(len(line) + 1 for line in lines)

    def add(self, record: Record) -> None:
        """Write one record."""
        self._write(record)

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"the log could not be written: {error.strerror}") from error

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
