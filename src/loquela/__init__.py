"""Loquela: the whole life of a language model in one house.

```python
import loquela

result = loquela.train("recipes/shakespeare.yaml")
model = loquela.load(result.model)
print(model.generate("To be, or", max_new_tokens=60, temperature=0.8, top_k=25, seed=0).text)
```

Names are imported when they are first used, so that `import loquela` and `loquela --help` are instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loquela.version import VERSION

if TYPE_CHECKING:
    from loquela.api import LanguageModel, load
    from loquela.errors import LoquelaError
    from loquela.evaluation.run import evaluate
    from loquela.inspection import inspect
    from loquela.training.run import train
    from loquela.tuning.run import tune

__all__ = ["LanguageModel", "LoquelaError", "__version__", "evaluate", "inspect", "load", "train", "tune"]

__version__ = VERSION
_HOMES = {
    "LanguageModel": "loquela.api",
    "LoquelaError": "loquela.errors",
    "evaluate": "loquela.evaluation.run",
    "inspect": "loquela.inspection",
    "load": "loquela.api",
    "train": "loquela.training.run",
    "tune": "loquela.tuning.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loquela' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
