"""The playground beside a talk in the terminal: a server of its own, for as long as the talk lasts."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loquela.cli.output import note

__all__ = ["playground"]

_SECONDS = 60


@contextmanager
def playground(model: Path) -> Iterator[None]:
    """Open the page for a model directory; say where it is as soon as it is, and end it with the block.

    Where it cannot be started, that is said and the block goes on without it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "loquela", "play", "--model", str(model)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C in the terminal stops a reply, not the page
    )
    ready = threading.Event()
    threading.Thread(target=_follow, args=(process, ready), daemon=True).start()
    try:
        ready.wait(_SECONDS)
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


def _follow(process: subprocess.Popen[str], ready: threading.Event) -> None:
    """Read what the server says, so that its pipe never fills; pass on where it is, or why it is not."""
    last = ""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"is served at (\S+)", line):
            note(f"The playground with this model is open at {found[1]} until you leave.")
            ready.set()
        last = line.strip() or last
    if not ready.is_set():
        note(f"the playground could not be opened: {last.removeprefix('loquela: ') or 'it ended at once'}")
        ready.set()
