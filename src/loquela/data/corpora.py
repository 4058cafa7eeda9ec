"""The texts that are shipped in the package, by name; data/corpora/SOURCES.md says where each comes from."""

from __future__ import annotations

from pathlib import Path

from loquela.errors import DataError, nearest

__all__ = ["names", "path", "resolve"]

_DIRECTORY = Path(__file__).resolve().parent / "corpora"


def names() -> tuple[str, ...]:
    """Return the names of the corpora in the package, sorted."""
    return tuple(sorted(file.name.removesuffix(".txt.gz") for file in _DIRECTORY.glob("*.txt.gz")))


def path(name: str) -> Path:
    """Return the file of a corpus in the package; raises `DataError` for an unknown name."""
    if name not in names():
        raise DataError(f"a corpus must be one of {', '.join(names())}, but is {name!r}{nearest(name, names())}")
    return _DIRECTORY / f"{name}.txt.gz"


def resolve(data: str | Path) -> Path:
    """Return the file that `data` names: a file, or else a corpus in the package; raises `DataError` for neither.

    A file wins over a corpus of the same name.
    """
    file = Path(data)
    if file.is_file() or (file.exists() and not file.is_dir()):
        return file
    if str(data) in names():
        return path(str(data))
    what = "is a directory" if file.is_dir() else "does not exist"
    raise DataError(
        f"data must be a file or one of the corpora {', '.join(names())}, but {str(data)!r} {what}"
        f"{nearest(str(data), names())}"
    )
