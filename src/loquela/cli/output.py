"""What every verb shares: results on stdout, everything else on stderr, one line for an error."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from loquela.errors import LoquelaError

__all__ = ["INTERRUPTED", "console", "errors_as_exit_codes", "note", "print_json"]

INTERRUPTED = 130
console = Console(stderr=True, highlight=False)
"""Progress, logs and notes go here, never to stdout."""


def note(message: str) -> None:
    """Say something aloud that is not a result; one line on stderr."""
    console.print(message, style="dim", markup=False, soft_wrap=True)


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on one line of stdout, and nothing else."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn what is raised on purpose into one line on stderr and its exit code; leave bugs their traceback."""
    try:
        yield
    except LoquelaError as error:
        console.print(f"loquela: {error}", style="bold red", markup=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        console.print("loquela: interrupted", style="bold red")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of our pipe has left: that is its right, and no error to print
        sys.stderr.close()
        raise SystemExit(128 + signal.SIGPIPE) from None
