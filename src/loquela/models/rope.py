"""How config.json says that rotary positions turn: two spellings read into one, every key honoured or refused.

Newer files keep all of it in `rope_parameters`; older ones have `rope_theta`, and `rope_scaling` for what stretches it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from loquela.errors import ConfigError
from loquela.layers.positions import rotary_frequencies
from loquela.layers.rotary_scaling import stretch_long_waves, yarn_frequencies, yarn_scale

__all__ = ["angles", "completed", "joined", "number", "reach", "spelled_as_before"]

_KEYS: dict[str, tuple[set[str], set[str]]] = {
    # What each kind must have, and what it may have.
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        set(
            """original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim
            truncate""".split()
        ),
    ),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor"}),
}
_NOT_NUMBERS = {"rope_type", "truncate", "short_factor", "long_factor"}
KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds whose angles are the same for every text, short or long."""


def joined(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with `rope_parameters` as the one spelling; raises `ConfigError` where two disagree."""
    raw = dict(raw)
    theta, scaling, parameters = (raw.pop(key, None) for key in ("rope_theta", "rope_scaling", "rope_parameters"))
    merged = {} if theta is None else {"rope_theta": theta}
    for name, given in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(given, Mapping | None):
            raise ConfigError(f"{name} must be an object of settings, but is {given!r}")
        given = {key: value for key, value in (given or {}).items() if value is not None}
        kind = given.pop("type", None)  # the oldest spelling, often kept beside the new one
        if kind is not None:
            given.setdefault("rope_type", kind)
        for key, value in given.items():
            if key in merged and merged[key] != value:
                raise ConfigError(f"{key} must be the same wherever it is given, but is {merged[key]!r} and {value!r}")
            merged[key] = value
    return {**raw, "rope_parameters": merged}


def completed(
    parameters: Mapping[str, Any], *, theta: float, window: int, kinds: Collection[str] = KINDS
) -> dict[str, Any]:
    """Check the settings and fill in what may be left out: `theta`, and the context `window` as the original one.

    Raises `ConfigError` for a kind that is none of `kinds`, for keys that it does not know and for values that are no
    numbers.
    """
    complete = {"rope_type": "default", "rope_theta": theta, **parameters}
    kind = complete["rope_type"]
    if kind not in kinds:
        why = ": its angles change as a text grows, which a cache cannot follow" if kind == "dynamic" else ""
        raise ConfigError(f"rope_type must be one of {', '.join(kinds)}, but is {kind!r}{why}")
    required, optional = _KEYS[kind]
    if "original_max_position_embeddings" in optional:
        complete.setdefault("original_max_position_embeddings", window)
    if missing := required - complete.keys():
        raise ConfigError(f"rope_type {kind!r} needs {', '.join(sorted(missing))}")
    if unknown := complete.keys() - required - optional - {"rope_type", "rope_theta"}:
        raise ConfigError(f"rope_type {kind!r} does not know {', '.join(sorted(unknown))}")
    for key in complete.keys() - _NOT_NUMBERS:
        number(key, complete[key])
    if kind == "llama3" and not complete["low_freq_factor"] < complete["high_freq_factor"]:
        raise ConfigError(
            f"low_freq_factor must be less than high_freq_factor, but they are {complete['low_freq_factor']} and "
            f"{complete['high_freq_factor']}"
        )
    return complete


def number(name: str, value: Any) -> float:
    """Return `value`; raises `ConfigError` unless it is a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a positive number, but is {value!r}")
    return value


def angles(parameters: Mapping[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """Return the (head_dim / 2,) frequencies of `completed` settings, and what sines and cosines are multiplied by."""
    theta, factor = parameters["rope_theta"], parameters.get("factor", 1.0)
    frequencies = rotary_frequencies(head_dim, theta)
    match parameters["rope_type"]:
        case "linear":
            return frequencies / factor, 1.0
        case "llama3":
            low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
            original = parameters["original_max_position_embeddings"]
            return stretch_long_waves(frequencies, factor, low=low, high=high, original=original), 1.0
        case "yarn":
            frequencies = yarn_frequencies(
                frequencies,
                theta,
                factor,
                fast=parameters.get("beta_fast", 32),
                slow=parameters.get("beta_slow", 1),
                original=parameters["original_max_position_embeddings"],
                truncate=parameters.get("truncate", True),
            )
            return frequencies, _attention_factor(parameters)
    return frequencies, 1.0


def _attention_factor(parameters: Mapping[str, Any]) -> float:
    factor, weights = parameters["factor"], [parameters.get(key) for key in ("mscale", "mscale_all_dim")]
    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    if None in weights:
        return yarn_scale(factor)
    return yarn_scale(factor, weights[0]) / yarn_scale(factor, weights[1])  # type: ignore[arg-type]


def reach(parameters: Mapping[str, Any]) -> int:
    """Return the context window that YaRN stretches the original one to; 0 where the settings name none."""
    if parameters.get("rope_type") != "yarn":
        return 0
    return int(parameters["factor"] * parameters["original_max_position_embeddings"])


def spelled_as_before(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings under the keys of older files as well, for readers that know only those."""
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    stretched = {} if scaling["rope_type"] == "default" else {"rope_scaling": scaling}
    return {"rope_theta": parameters["rope_theta"], **stretched}
