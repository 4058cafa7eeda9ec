"""Every error that Loquela raises on purpose, in one tree.

```
LoquelaError                 exit code 1: it could not be done; the message is one line and says the way out
├── UsageError               exit code 2: the call itself is wrong (a flag, a recipe key, a value out of range)
│   └── RecipeError          an unknown or impossible key of a recipe
├── DataError                the text or the rows cannot be used
│   └── TextDecodingError    bytes that are not text in the stated encoding; names the byte offset
├── TokenizerError           a tokenizer file that cannot be read, or a vocabulary that cannot be made
├── CheckpointError          a model directory that is missing, half-written or damaged
│   ├── ConfigError          a config.json with unknown keys or values that this architecture does not have
│   └── MismatchError        tensors that are missing, extra or misshapen; every one is listed
├── ContextWindowError       a prompt that does not fit the context window; says both numbers
├── TrainingError            a run that cannot go on
│   ├── NonFiniteError       NaN or infinity in data, loss or gradient; names the step
│   └── DirectoryInUseError  another trainer holds the output directory, or another recipe made it
├── StorageError             a write that failed (disk full, I/O error); what was saved before is intact
├── BusyError                a server that has no room for one more request; says when to try again
│   └── UnavailableError     a server that is closing, or a request whose time is up
└── MissingExtraError        an optional package is needed; says which extra to install
```

A message says what must hold, what was given, and the way out, in one line.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "ContextWindowError",
    "DataError",
    "DirectoryInUseError",
    "LoquelaError",
    "MismatchError",
    "MissingExtraError",
    "NonFiniteError",
    "RecipeError",
    "StorageError",
    "TextDecodingError",
    "TokenizerError",
    "TrainingError",
    "UnavailableError",
    "UsageError",
    "nearest",
]

import difflib
from collections.abc import Iterable


class LoquelaError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(LoquelaError):
    """The call itself is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key or an impossible value."""


class DataError(LoquelaError):
    """The text or the rows given cannot be used."""


class TextDecodingError(DataError):
    """Bytes that are not text in the stated encoding."""


class TokenizerError(LoquelaError):
    """A tokenizer cannot be read or made."""


class CheckpointError(LoquelaError):
    """A model directory is missing, half-written or damaged."""


class ConfigError(CheckpointError):
    """A config has unknown keys or values that the architecture does not have."""


class MismatchError(CheckpointError):
    """The tensors of a checkpoint do not fit the model."""


class ContextWindowError(LoquelaError):
    """A prompt does not fit the context window."""


class TrainingError(LoquelaError):
    """A training run cannot go on."""


class NonFiniteError(TrainingError):
    """NaN or infinity appeared in data, loss or gradient."""


class DirectoryInUseError(TrainingError):
    """The output directory belongs to another run."""


class StorageError(LoquelaError):
    """A write failed; what was saved before is intact."""


class BusyError(LoquelaError):
    """There is no room for one more request."""

    retry_after = 1
    """Seconds after which it is worth trying again."""


class UnavailableError(BusyError):
    """The server is closing, or the request's time is up."""


class MissingExtraError(LoquelaError):
    """An optional package is not installed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of the `known` words, or `""` when none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
