"""What the process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_freed_memory_back", "keep_freed_memory"]


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of handing them back to the kernel after every use.

    A step allocates and frees the same few megabytes hundreds of times; each time the kernel would clear new pages.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, 1 << 30)
        library.mallopt(top_pad, 64 << 20)


def give_freed_memory_back() -> None:
    """Hand back, once, what `keep_freed_memory` keeps: before something else becomes as large as a step was."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
