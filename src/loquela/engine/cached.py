"""`jit`: Numba's compiler with machine code kept on disk, so that a second process compiles nothing.

Numba knows that a cached function is stale by its own file's time stamp only, not by what it inlined from other files.
So the directory's name is a digest of all files of this room: another version of the engine has another directory.
"""

# mypy: allow-untyped-calls, disable-error-code="import-untyped,attr-defined,no-untyped-call"
from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config

__all__ = ["cache_directory", "callback", "jit"]


def cache_directory() -> Path:
    """Where compiled kernels are kept: `LOQUELA_CACHE`, else the user's cache directory as the system has it."""
    given = os.environ.get("LOQUELA_CACHE")
    if given:
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "loquela"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "loquela"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "loquela"
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return base / f"kernels-{digest.hexdigest()[:16]}"


_DIRECTORY = cache_directory()


def jit(function: Callable[..., Any]) -> Any:
    """Compile without the interpreter's lock, and keep the machine code; where nothing can be written, only compile."""
    return _kept(lambda cache: numba.njit(nogil=True, cache=cache)(function))


def callback(function: Callable[..., Any], signature: str) -> Any:
    """Compile a function of C's calling convention at once; it is called by its `address`."""
    return _kept(lambda cache: numba.cfunc(signature, cache=cache)(function))


def _kept(make: Callable[[bool], Any]) -> Any:
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = str(_DIRECTORY)
        return make(True)
    except (RuntimeError, OSError):  # no place to write
        return make(False)
    finally:
        config.CACHE_DIR = before
