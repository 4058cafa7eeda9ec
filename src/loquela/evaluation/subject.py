"""What is evaluated: a model in this process, or one behind a URL, seen through the few questions a task asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from loquela.errors import ContextWindowError, UsageError
from loquela.evaluation.ahead import in_order

__all__ = ["Answer", "Likelihood", "Question", "Subject", "cannot", "one_by_one"]


@dataclass(frozen=True)
class Likelihood:
    """How a model expects a continuation of a context."""

    log_prob: float
    """The sum over its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether each token was the most probable, so that greedy decoding would write it."""


@dataclass(frozen=True)
class Question:
    """What is asked about likelihoods: how each of the continuations of one context is expected."""

    context: str
    continuations: tuple[str, ...]
    prefix: str = ""
    """A beginning of `context` that it shares with others, so that it is computed once."""


Answer: TypeAlias = "list[Likelihood] | ContextWindowError"
"""A likelihood for each continuation, or why the question does not fit."""


class Subject(Protocol):
    """The questions. One that a model has no answer to raises `UsageError`."""

    name: str
    kind: str
    """`decoder`, `encoder-decoder`, `encoder` (fills masks), `classifier`, `tagger`, `embedder`, or `remote`."""
    window: int | None
    """The context window in tokens, None where it is not known."""
    at_once: int
    """How many calls it answers at a time: 1 for a model in this process, which computes many items in one call."""

    def count(self, text: str) -> int:
        """Return the tokens of a text."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""

    def likelihoods(self, context: str, continuations: Sequence[str], *, prefix: str = "") -> list[Likelihood]:
        """Return how each continuation of `context` is expected; see `Question`."""

    def several(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers in the order of the questions, which are taken as they are needed.

        However many are computed together, each is what `likelihoods` would give.
        """

    def complete(self, prompt: str, *, max_new_tokens: int, stop: Sequence[str]) -> str:
        """Return the greedy completion of a prompt."""

    def classify(self, text: str, pair: str | None) -> str:
        """Return the label of a text, or of a pair of texts."""

    def tag(self, words: Sequence[str]) -> list[str]:
        """Return the tag of each word of a sentence."""

    def labels(self) -> tuple[str, ...]:
        """Return the labels that `classify` or `tag` tells apart; empty where it has no answer."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Return one vector per text (n, dim)."""


def cannot(name: str, what: str) -> UsageError:
    """Return the error of a question that this kind of model has no answer to."""
    return UsageError(f"{name} must be a model that {what} for this task, but is not: choose another task or model")


def one_by_one(subject: Subject, questions: Iterable[Question]) -> Iterator[Answer]:
    """Answer questions each by itself, as many calls at a time as the subject takes."""

    def answer(question: Question) -> Answer:
        try:
            return subject.likelihoods(question.context, question.continuations, prefix=question.prefix)
        except ContextWindowError as error:
            return error

    return in_order(answer, questions, subject.at_once)
