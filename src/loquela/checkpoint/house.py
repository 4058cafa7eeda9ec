"""The house models: small trained models in the package, and adapters for one of them, that are opened by their names.

A path that exists always wins over a name. How they were made: recipes/house, docs/house.md and each one's README.md.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ADAPTERS", "HOUSE", "adapter", "adapter_names", "instead", "model", "model_names"]

HOUSE = Path(__file__).parent.parent / "house"
ADAPTERS = HOUSE / "adapters"


def model_names() -> list[str]:
    """Return the names of the models in the package, in order."""
    return _named(HOUSE, "config.json")


def adapter_names() -> list[str]:
    """Return the names of the adapters in the package, in order."""
    return _named(ADAPTERS, "adapter_config.json")


def model(name: str | Path) -> Path:
    """Return the directory of the house model of that name, unless `name` is a path that exists or no such name."""
    return _place(name, HOUSE, model_names())


def adapter(name: str | Path) -> Path:
    """Return the directory of the house adapter of that name, unless `name` is a path that exists or no such name."""
    return _place(name, ADAPTERS, adapter_names())


def instead(names: list[str]) -> str:
    """Return the end of a sentence that says what could have been named; empty where the package has none."""
    return f", nor is it one that the package has ({', '.join(names)})" if names else ""


def _named(place: Path, file: str) -> list[str]:
    return sorted(found.parent.name for found in place.glob(f"*/{file}"))


def _place(name: str | Path, place: Path, names: list[str]) -> Path:
    path = Path(name)
    return place / str(name) if str(name) in names and not path.exists() else path
