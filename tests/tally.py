"""Counts of a soak that takes hours, in parts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

import loquela

_BEGAN = time.monotonic()


class Tally:
    """The counts of a soak, in parts: $LOQUELA_SOAK keeps them between calls, $LOQUELA_SOAK_MINUTES ends a call early.

    They hold for one state of the code: where the package has changed since, all begins anew. A call that ends before
    the count is full is skipped, not passed.
    """

    def __init__(self, name: str, spare: Path) -> None:
        self.place = Path(os.environ.get("LOQUELA_SOAK", spare)) / name
        digest = hashlib.sha256()
        for file in sorted(Path(loquela.__file__).parent.rglob("*.py")):
            digest.update(file.read_bytes())
        fresh = {"code": digest.hexdigest(), "seconds": 0.0}
        file = self.place / "counts.json"
        self.counts = json.loads(file.read_text()) if file.exists() else fresh
        if self.counts["code"] != fresh["code"]:
            shutil.rmtree(self.place)
            self.counts = fresh
        self.place.mkdir(parents=True, exist_ok=True)
        self._last = time.monotonic()
        self._end_in_time()

    def __getitem__(self, name: str) -> int:
        return int(self.counts.get(name, 0))

    def add(self, **counts: int) -> None:
        """Write down what has held; end the call when its minutes are over."""
        now = time.monotonic()
        self.counts["seconds"] += now - self._last
        self._last = now
        for name, count in counts.items():
            self.counts[name] = self[name] + count
        part = self.place / "counts.json.part"
        part.write_text(json.dumps(self.counts))
        part.replace(self.place / "counts.json")
        self._end_in_time()

    def _end_in_time(self) -> None:
        if time.monotonic() - _BEGAN > 60 * float(os.environ.get("LOQUELA_SOAK_MINUTES", "inf")):
            pytest.skip(f"in parts: {self.counts}; the same command goes on from there")
