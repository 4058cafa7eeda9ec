"""Where numbers lie: the engine names everything by its address."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loquela.checkpoint.memory import Arena, aligned

__all__ = ["Arena", "address", "aligned"]


def address(array: npt.NDArray[np.generic] | Tensor) -> int:
    """Where the first number of an array or a tensor lies."""
    return array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data
