"""What is evaluated: a model in this process, or one behind a URL, seen through the few questions a task asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loquela.errors import UsageError

__all__ = ["Likelihood", "Subject"]


@dataclass(frozen=True)
class Likelihood:
    """How a model expects a continuation of a context."""

    log_prob: float
    """The sum over its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether each token was the most probable, so that greedy decoding would write it."""


class Subject(Protocol):
    """The questions. One that a model has no answer to raises `UsageError`."""

    name: str
    kind: str
    """`decoder`, `encoder-decoder`, `encoder` (fills masks), `classifier`, `embedder`, or `remote`."""
    window: int | None
    """The context window in tokens, None where it is not known."""

    def count(self, text: str) -> int:
        """Return the tokens of a text."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""

    def likelihoods(self, context: str, continuations: Sequence[str], *, prefix: str = "") -> list[Likelihood]:
        """Return how each continuation of `context` is expected.

        `prefix`, a beginning of `context`, is shared with other contexts and is computed once.
        """

    def complete(self, prompt: str, *, max_new_tokens: int, stop: Sequence[str]) -> str:
        """Return the greedy completion of a prompt."""

    def classify(self, text: str, pair: str | None) -> str:
        """Return the label of a text, or of a pair of texts."""

    def labels(self) -> tuple[str, ...]:
        """Return the labels that `classify` tells apart; empty where it has no answer."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Return one vector per text (n, dim)."""


def cannot(name: str, what: str) -> UsageError:
    """Return the error of a question that this kind of model has no answer to."""
    return UsageError(f"{name} must be a model that {what} for this task, but is not: choose another task or model")
