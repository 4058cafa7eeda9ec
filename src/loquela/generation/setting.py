"""What one setting of generation is: its name, type, default, range and help; from these flags and fields derive."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loquela.errors import UsageError

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """A setting. `kind` is int, float, bool, tuple (of strings), list (of lists of token ids) or dict (id → number).

    The range binds numbers, and the numbers in a dict.
    """

    name: str
    kind: type
    default: Any
    help: str
    minimum: float = -math.inf
    maximum: float = math.inf

    def check(self, value: Any) -> Any:
        """Return `value` in its proper type; raises `UsageError` that names setting, bound and value."""
        wrong = UsageError(f"{self.name} must be {self._meaning()}, but is {value!r}")
        if self.kind is tuple:
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
                raise wrong
            return tuple(value)
        if self.kind is list:
            if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) and row for row in value):
                raise wrong
            if not all(type(token) is int and token >= 0 for row in value for token in row):
                raise wrong
            return [list(row) for row in value]
        if self.kind is dict:
            if not isinstance(value, Mapping) or not all(self._is_number(bias) for bias in value.values()):
                raise wrong
            if not all((isinstance(key, int) and key >= 0) or str(key).isdecimal() for key in value):
                raise wrong
            return {int(key): float(bias) for key, bias in value.items()}
        if self.kind is bool:
            if not isinstance(value, bool):
                raise wrong
            return value
        if not self._is_number(value) or (self.kind is int and not isinstance(value, int)):
            raise wrong
        return self.kind(value)

    def parse(self, text: str) -> Any:
        """Read the value from what a person typed; raises `UsageError`.

        A list of strings is JSON, or separated by commas; a table and a list of lists are JSON.
        """
        try:
            if self.kind in (int, float):
                return self.check(self.kind(text))
            if self.kind is tuple and not text.startswith("["):
                return self.check(text.split(","))
            return self.check(json.loads(text))
        except ValueError:
            raise UsageError(f"{self.name} must be {self._meaning()}, but is {text!r}") from None

    def _is_number(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) != math.inf and self.minimum <= value <= self.maximum  # NaN fails the last

    def _meaning(self) -> str:
        low, high = f"{self.minimum:g}", f"{self.maximum:g}"
        if math.isinf(self.minimum):
            span = ""
        else:
            span = f" of at least {low}" if math.isinf(self.maximum) else f" from {low} to {high}"
        return {
            int: f"a whole number{span}",
            float: f"a number{span}",
            bool: "true or false",
            tuple: "a list of strings, none of them empty",
            list: "a list of lists of token ids, none of them empty",
            dict: f"a table of token ids and numbers{span}",
        }[self.kind]
