"""Recipes as files and as `key=value`: YAML without surprises, and the names of keys that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from loquela.errors import RecipeError, nearest

__all__ = ["dump", "leaves", "one_of", "override", "read", "unknown"]

_MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML without what could surprise: no key twice, no aliases (a few bytes of which unfold to gigabytes)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a recipe has no aliases (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read(file: Path) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines; raises `RecipeError`."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"a recipe must be at most {_MAX_BYTES:,} bytes of YAML, but {file} is larger")
        raw = _parse(content.decode())
    except OSError as error:
        raise RecipeError(f"a recipe must be a YAML file, but {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RecipeError(f"{file} must be YAML, but is not: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"a recipe must be 'key: value' lines, but {file} is {type(raw).__name__}")
    return raw


def override(raw: dict[str, Any], change: str) -> None:
    """Apply `key=value` to `raw`, with dots for keys inside keys; raises `RecipeError`."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"an override must be key=value, but is {change!r}")
    *outer, last = key.split(".")
    for name in outer:
        inner = raw.get(name)
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(f"{key!r} needs {name!r} to hold keys, but it is {inner!r}")
        raw[name] = dict(inner or {})
        raw = raw[name]
    try:
        raw[last] = _parse(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{key}= must be followed by a YAML value: {' '.join(str(error).split())}") from None


def unknown(raw: Mapping[Any, Any], model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Yield a sentence for every key that `model` does not have."""
    for key, value in raw.items():
        if key not in model.model_fields:
            yield f"unknown key {prefix + str(key)!r}{nearest(str(key), model.model_fields)}"
        elif isinstance(value, Mapping):
            annotation = model.model_fields[key].annotation
            for inner in (annotation, *get_args(annotation)):
                if isinstance(inner, type) and inner is not NoneType and issubclass(inner, BaseModel):
                    yield from unknown(value, inner, f"{prefix}{key}.")


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every innermost key, with dots, and its value."""
    for key, value in raw.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise `RecipeError`, which names the nearest, unless `value` is known."""
    if value not in known:
        raise RecipeError(f"{key} must be one of {', '.join(known)}, but is {value!r}{nearest(value, known)}")


def dump(raw: Mapping[str, Any]) -> str:
    """Write a recipe as YAML that reads back the same, as legible as that allows.

    PyYAML takes some signs for ends of lines where it does not escape them (U+0085); then all are escaped.
    """
    plain = json.loads(json.dumps(raw))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    try:
        same = yaml.safe_load(text) == plain
    except yaml.YAMLError:
        same = False
    return text if same else yaml.safe_dump(plain, sort_keys=False)
