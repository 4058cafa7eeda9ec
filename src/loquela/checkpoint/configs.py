"""Reading a stranger's config.json: whatever it says, the answer is a config or one `ConfigError`, at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loquela.checkpoint.few_bits import bits_of
from loquela.checkpoint.files import read_json
from loquela.checkpoint.tensors import shown
from loquela.errors import ConfigError
from loquela.models.base import Config, architecture, config_from_dict

__all__ = ["NONSENSE", "read_config"]

NONSENSE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What Python and torch raise where values of a config contradict each other in a way that nobody thought of."""
MAX_COUNT = 10_000
_COUNTED = ("layer", "head", "expert")

_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "bool": ("true or false", lambda value: type(value) is bool),
    "str": ("a string", lambda value: type(value) is str),
    "None": ("null", lambda value: value is None),
}
"""Annotation of a field → what its value must be."""


def read_config(directory: Path, name: str = "config.json") -> Config:
    """Read the config of a model directory; raises `CheckpointError`, `ConfigError` for what it says."""
    raw = read_json(directory, name)
    if name == "config.json" and bits_of(directory) is not None:
        del raw["quantization_config"]  # how the matrices are stored, not what the model computes
    model_type = raw.get("model_type")
    kind = architecture(model_type).CONFIG if isinstance(model_type, str) else Config
    if wrong := [*_wrong(kind, raw)]:
        raise ConfigError(f"{directory / name} has impossible values: {'; '.join(wrong)}")
    try:
        return config_from_dict(raw)
    except NONSENSE as error:
        raise ConfigError(f"{directory / name} has values that contradict each other: {error}") from error


def _wrong(kind: type[Config], raw: Mapping[str, Any]) -> Iterator[str]:
    for key, value in raw.items():
        if type(value) is int and value > MAX_COUNT and any(part in key for part in _COUNTED):
            yield f"{shown(key)} must be at most {MAX_COUNT:,}, but is {shown(value)}"
    for field in dataclasses.fields(kind):
        parts = str(field.type).split(" | ")
        if field.name in raw and all(part in _KINDS for part in parts):
            allowed = [_KINDS[part] for part in parts]
            if not any(fits(raw[field.name]) for _, fits in allowed):
                what = " or ".join(text for text, _ in allowed)
                yield f"{field.name} must be {what}, but is {shown(raw[field.name])}"
