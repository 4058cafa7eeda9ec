"""Looking inside: attention, embeddings, next tokens, gradients; data first, figures from it.

`inspect.NAME(model, text)` draws a picture, `PICTURES` holds them all, `loquela.inspection.watch` collects what modules
compute. Names are imported when they are first used: drawing needs torch and plotly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loquela.inspection.picture import PICTURES, Picture
    from loquela.inspection.reading import Inspected, UnavailableError
    from loquela.inspection.shown import Shown, inspect, report

__all__ = ["PICTURES", "Inspected", "Picture", "Shown", "UnavailableError", "inspect", "report"]

_HOMES = {
    "PICTURES": "picture",
    "Picture": "picture",
    "Inspected": "reading",
    "UnavailableError": "reading",
    "Shown": "shown",
    "inspect": "shown",
    "report": "shown",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loquela.inspection' has no attribute {name!r}")
    return getattr(importlib.import_module(f"loquela.inspection.{_HOMES[name]}"), name)
