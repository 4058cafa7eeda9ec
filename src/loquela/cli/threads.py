"""How many threads a command generates with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loquela.api import LanguageModel

__all__ = ["suit_threads"]

_LIGHT = 32_000_000


def suit_threads(model: LanguageModel) -> None:
    """Let a small model generate with one thread, unless OMP_NUM_THREADS says otherwise.

    A token's matrices are then too small to share: on an idle machine a second thread gains nothing up to 15 million
    parameters, and on a busy one waiting for it costs three quarters of the speed and more. Training and scoring, whose
    matrices are large, keep all threads. It is set for the whole process, so a library must not do it, only a command.
    """
    import torch

    if model.network.parameter_count() < _LIGHT and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
