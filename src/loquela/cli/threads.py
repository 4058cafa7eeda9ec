"""How many threads a command computes with, and how they wait for each other."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loquela.api import LanguageModel

__all__ = ["share_cores", "starting", "suit_threads", "suits_one_thread"]

_LIGHT = 32_000_000


def share_cores() -> None:
    """Let threads that wait give up their core soon; to be called before torch is imported.

    GCC's OpenMP spins for milliseconds by default. On a machine that does something else as well, two threads then wait
    for each other's turn at every operation: a training step of 0.1 s took 0.5 to 4 s. With a short spin it took 0.3 to
    0.6 s, and on a machine of its own as long as before. What the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


@contextmanager
def starting() -> Iterator[None]:
    """Look for garbage neither while the block imports and loads, nor ever again in what it leaves behind.

    Torch and Numba make a million objects, all to stay; looking through them again and again took a seventh of the
    time to the first token. Meanwhile other threads read, hash and round: they need the interpreter now and then, and
    get it ten times as soon as is usual.
    """
    gc.disable()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def suit_threads(model: LanguageModel) -> None:
    """Let a small model generate with one thread, unless OMP_NUM_THREADS says otherwise.

    A token's matrices are then too small to share: on an idle machine a second thread gains nothing up to 15 million
    parameters, and on a busy one waiting for it costs three quarters of the speed and more. Training and scoring, whose
    matrices are large, keep all threads. It is set for the whole process, so a library must not do it, only a command.
    """
    import torch

    if suits_one_thread(model.network.parameter_count()):
        torch.set_num_threads(1)


def suits_one_thread(parameters: int) -> bool:
    """Whether a model is so small, and nothing says otherwise; see `suit_threads`."""
    return parameters < _LIGHT and "OMP_NUM_THREADS" not in os.environ
