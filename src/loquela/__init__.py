"""Loquela: the whole life of a language model in one house."""

from __future__ import annotations

from loquela.version import VERSION as __version__

__all__ = ["__version__"]
