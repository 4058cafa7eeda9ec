"""Data sets of the Hugging Face Hub, row by row, through the `datasets` package: only where one is named."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.data.files import ENDINGS
from loquela.data.readers import file_hash
from loquela.data.tag_rows import ENDINGS_OF_LINES
from loquela.errors import DataError, MissingExtraError, UsageError

__all__ = ["HUB", "HubSet", "digest", "named", "revision", "rows"]

HUB = "hub:"
_BARE = re.compile(r"[\w.-]+(/[\w.-]+){1,2}(:[\w.-]+)?")
_FILES = (*(f".{ending}" for ending in ENDINGS), *ENDINGS_OF_LINES, ".gz")


@dataclass(frozen=True)
class HubSet:
    """A split of a data set: `owner/name`, perhaps one of its configurations."""

    name: str
    config: str | None = None
    split: str = "train"


def named(source: str, split: str = "train") -> HubSet | None:
    """Return the set that a name means, None for a file: `hub:NAME[/CONFIG][:SPLIT]`, or the same without `hub:`.

    Without it a name must be `owner/name`, end like no file of rows, and lie on no disk here. `split` is what a name
    that says none means. Raises `UsageError`.
    """
    body = source.removeprefix(HUB)
    if body == source and (not _BARE.fullmatch(source) or Path(source).exists()):
        return None
    name, _, own = body.partition(":")
    if body == source and name.lower().endswith(_FILES):
        return None
    owner, *rest = name.split("/")
    if not all([owner, *rest]) or len(rest) > 2:
        raise UsageError(f"a data set of the Hub must be {HUB}NAME or {HUB}NAME:SPLIT, but is {source!r}")
    return HubSet("/".join([owner, *rest[:1]]), rest[1] if len(rest) == 2 else None, own or split)


def rows(chosen: HubSet) -> Iterator[dict[str, Any]]:
    """Yield the rows, with the names of labels in place of their numbers where the set names them.

    Raises `MissingExtraError` without the package, `DataError` for a set that cannot be had.
    """
    found = _asked(chosen, "load_dataset", split=chosen.split, streaming=True)
    names = {
        field: labels
        for field, feature in (getattr(found, "features", None) or {}).items()
        if (labels := getattr(getattr(feature, "feature", feature), "names", None))
    }
    source = iter(found)
    while True:
        try:
            row = dict(next(source))
        except StopIteration:
            return
        except Exception as error:  # the library lets its network's errors through, of many kinds
            raise _failed(chosen, error) from error
        yield {field: _label(value, names[field]) if field in names else value for field, value in row.items()}


def revision(chosen: HubSet) -> str:
    """Return what changes when the set does. Raises as `rows`."""
    return str(_asked(chosen, "load_dataset_builder").hash)


def digest(source: str) -> str:
    """Return the SHA-256 of a file, or the `revision` of the set that a name means."""
    chosen = named(source)
    return file_hash(Path(source)) if chosen is None else revision(chosen)


def _label(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_label(inner, names) for inner in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _asked(chosen: HubSet, function: str, **options: Any) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError(
            "data sets of the Hub need the datasets package: pip install 'loquela[hub]', or name files"
        ) from None
    config = () if chosen.config is None else (chosen.config,)
    try:
        return getattr(datasets, function)(chosen.name, *config, **options)
    except Exception as error:
        raise _failed(chosen, error) from error


def _failed(chosen: HubSet, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DataError(
        f"{chosen.name} must be a data set that can be read here or at the Hub, but: {reason}; give a file instead"
    )
