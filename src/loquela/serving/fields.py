"""The fields of requests that come from the sampling rules: a new rule brings its field."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from loquela.generation.rules import RULES
from loquela.generation.setting import Setting

__all__ = ["MOST_TOKENS", "Sampling", "Strict"]

MOST_TOKENS = 2**31 - 1
"""No number of tokens is larger: it fits every integer there is."""
_MOST_BIASES = 1024
_TOKEN = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
_LISTS = Annotated[list[Annotated[list[_TOKEN], Field(min_length=1, max_length=64)]], Field(max_length=_MOST_BIASES)]


class Strict(BaseModel):
    """A body in which every key is known and every value of its own type: nothing is guessed, nothing ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _field(setting: Setting) -> tuple[Any, Any]:
    bounds: dict[str, Any] = {}
    if setting.kind in (int, float):
        if not math.isinf(setting.minimum):
            bounds["ge"] = setting.minimum
        top = MOST_TOKENS if setting.kind is int else 1e6
        bounds["le"] = min(setting.maximum, top)
    kind: Any = setting.kind
    if setting.kind is dict:
        value = Annotated[float, Field(ge=setting.minimum, le=setting.maximum)]
        key = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
        kind = Annotated[dict[key, value], Field(max_length=_MOST_BIASES)]
    elif setting.kind is list:
        kind = _LISTS
    return kind | None, Field(default=None, description=setting.help, **bounds)


_FIELDS: dict[str, Any] = {name: _field(rule.setting) for name, rule in RULES.items()}
Sampling: type[Strict] = create_model("Sampling", __base__=Strict, **_FIELDS)
"""A body with one field for each sampling rule; null or left out is the model's own default, else OpenAI's."""
