"""How well a model behind a URL expects a text: the windows of `loquela.evaluation.perplexity`, echoed by the server.

A prompt of token ids is echoed with the log-probability of each, so that windows begin and end with the very tokens
that they would in this process. The server tells the tokens of a text at POST /tokenize.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from loquela.data.readers import Piece
from loquela.errors import UsageError
from loquela.evaluation.ahead import in_order
from loquela.evaluation.perplexity import Score, prepare, scored, spans
from loquela.evaluation.remote import RemoteSubject

__all__ = ["RemoteTokens", "remote_score", "remote_window", "remote_windows"]


class RemoteTokens:
    """A server's tokenizer, as far as `loquela.evaluation.perplexity.prepare` asks it.

    What its tokenizer puts before a text is its BOS. Its EOS is not known, so nothing stands between documents.
    """

    eos_id: int | None = None
    unk_id: int | None = None

    def __init__(self, subject: RemoteSubject) -> None:
        self._subject = subject
        lead, self.window = subject.tokens("")
        self.bos_id = lead[0] if lead else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        return self._subject.tokens(text, add_special_tokens=add_special_tokens)[0]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the characters of the first token."""
        first = self._subject.text_of(self.encode(text[:1000])[:1])
        return [(0, len(first))]


def remote_window(tokens: RemoteTokens, window: int | None) -> int:
    """Return the tokens of a window: `window`, or what the server's own leaves beside one that follows and a new one.

    Raises `UsageError` where neither is known.
    """
    if window is None and tokens.window is None:
        raise UsageError(
            "the server must say its context window (max_model_len at /tokenize), but does not: --window N"
        )
    longest = None if tokens.window is None else tokens.window - 2
    if window is not None and (window < 1 or (longest is not None and window > longest)):
        raise UsageError(f"window must be from 1 to {longest}, two less than the server's, but is {window}")
    found = longest if window is None else window
    assert found is not None
    return found


def remote_windows(
    subject: RemoteSubject, ids: Sequence[int], *, window: int, stride: int, skip: Container[int] = ()
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yield each window's number and the log-probabilities of the tokens that it scores; see `score_windows`."""

    def ask(span: tuple[int, int, int, int]) -> tuple[int, npt.NDArray[np.float64]]:
        number, start, done, end = span
        return number, np.array(subject.log_probs(ids[start : end + 1])[done - start :], dtype=np.float64)

    left = (span for span in spans(len(ids) - 1, window, stride) if span[0] not in skip)
    return in_order(ask, left, subject.at_once)


def remote_score(
    subject: RemoteSubject, text: str | Iterable[Piece], *, window: int | None = None, stride: int | None = None
) -> Score:
    """Score a text by a model behind a URL; see `loquela.evaluation.perplexity.score`."""
    tokens = RemoteTokens(subject)
    prepared = prepare(tokens, text)
    window = remote_window(tokens, window)
    stride = max(1, window // 2) if stride is None else stride
    parts = [part for _, part in remote_windows(subject, prepared.ids, window=window, stride=stride)]
    return scored(prepared, np.concatenate(parts), window, stride)
