"""A model in this process.

Each item is computed by itself: its context once, then its continuations side by side. No other item, no batch size
and no order can change a bit of its score, whatever the matrix library does with larger batches. What many contexts
share (description and shots) is read once and its cache copied; the head sees only the positions whose token counts.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.checkpoint.sentence import Pooling
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.evaluation import masked
from loquela.evaluation.subject import Likelihood, cannot
from loquela.generation.completion import complete, prompt_ids
from loquela.generation.decode import evaluating
from loquela.generation.embed import embed
from loquela.generation.settings import GenerationSettings
from loquela.layers.cache import Cache
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.peft.attaching import wearing
from loquela.text.chat import render
from loquela.text.tokenizer import Tokenizer

__all__ = ["LocalSubject", "Opened"]

_SHARED = 16  # tokens from which on it pays to keep a prefix
_KEPT = 2  # prefixes whose caches are kept
_REMEMBERED = 16  # texts whose tokens are


class Opened(Protocol):
    """What `loquela.load` gives, as far as it is needed here."""

    network: Network
    pooling: Pooling | None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""


class LocalSubject:
    """A network and its tokenizer, asked what a task asks; see `loquela.evaluation.subject`.

    With `chat` a prompt to complete is what a user says, through the tokenizer's own chat template.
    """

    def __init__(self, model: Opened, name: str = "model", *, chat: bool = False) -> None:
        self.model, self.name = model, name
        self.network, self.tokenizer = model.network, model.tokenizer
        with self.computing():  # virtual tokens take a part of the window
            self.window: int | None = self.network.context_length
        self.kind = _kind(self.network)
        self.template = self.tokenizer.chat_template if chat else None
        if chat and not self.template:
            raise UsageError("--chat needs a model with a chat template, but this one has none: leave --chat out")
        self._prefixes: OrderedDict[tuple[int, ...], Cache] = OrderedDict()
        self._known: OrderedDict[str, list[int]] = OrderedDict()
        around = self.tokenizer.encode("")
        begins = bool(around) and around[0] == self.tokenizer.bos_id
        self._ends = len(around) - begins  # tokens that the tokenizer puts behind every text; few put any

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the network compute without gradients, and wear what the model was loaded with."""
        with evaluating(self.network), wearing(self.network, getattr(self.model, "adapter", None)):
            yield

    def count(self, text: str) -> int:
        """Return the tokens of a text, those that the tokenizer adds included."""
        return len(self._ids(text))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        return [len(ids) for ids in self.tokenizer.encode_batch(texts)]

    def _ids(self, text: str) -> list[int]:
        """Encode a text; the last few are remembered, for a prompt is counted before it is asked."""
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return self._known[text]

    # -- likelihood

    def likelihoods(self, context: str, continuations: Sequence[str], *, prefix: str = "") -> list[Likelihood]:
        """Return how each continuation of `context` is expected.

        Context and continuation are encoded together, and a blank at the context's end belongs to the continuation:
        the word that follows is then the token that it would be in a text.
        """
        if self.kind == "encoder":
            assert isinstance(self.network, EncoderOnly)
            with self.computing():
                return masked.likelihoods(self.network, self.tokenizer, context, continuations)
        if self.kind in ("classifier", "embedder"):
            raise cannot(self.name, "gives probabilities to texts")
        ids, rows = self._encode(context, continuations)
        longest = len(ids) + max(map(len, rows)) - 1
        if self.kind == "decoder" and self.window is not None and longest > self.window:
            raise ContextWindowError(
                f"a context and its continuation must fit the context window of {self.window} tokens, but have "
                f"{longest + 1}"
            )
        with self.computing():
            if len(rows) == 1 and self.kind == "decoder":
                return [self._single(ids, rows[0], prefix)]
            return self._together(ids, rows, prefix)

    def of_ids(self, context: Sequence[int], continuation: Sequence[int]) -> Likelihood:
        """Return how a continuation is expected, both given as token ids, at least one each."""
        if self.kind != "decoder":
            raise cannot(self.name, "writes from left to right")
        with self.computing():
            return self._single(list(context), list(continuation), "")

    def _encode(self, context: str, continuations: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        if not all(continuations):
            raise DataError("a continuation must have a character, but one is empty")
        tokenizer = self.tokenizer
        if self.kind == "encoder-decoder":
            return prompt_ids(tokenizer, context), tokenizer.encode_batch(continuations, add_special_tokens=False)
        bare = context.rstrip()
        blanks = context[len(bare) :]
        if not bare:
            texts = [blanks + continuation for continuation in continuations]
            return prompt_ids(tokenizer, ""), tokenizer.encode_batch(texts, add_special_tokens=False)
        given = len(self._ids(bare)) - self._ends
        whole = tokenizer.encode_batch([context + continuation for continuation in continuations])
        ids, rows = self._ids(bare)[:given], [row[given : len(row) - self._ends] for row in whole]
        if not all(rows):
            raise DataError("a continuation must have a token of its own, but one melts into its context's last token")
        return ids, rows

    def _single(self, ids: list[int], row: list[int], prefix: str) -> Likelihood:
        """Context and continuation in one go."""
        cache, first = self._begin(ids, prefix)
        inputs = torch.cat([first, self._tensor([row[:-1]])], dim=1)
        hidden = self.network.hidden(inputs, cache=cache)[0, first.shape[1] - 1 :]
        return _likelihood(self.network.head(hidden), self._tensor(row))

    def _together(self, ids: list[int], rows: list[list[int]], prefix: str) -> list[Likelihood]:
        """The context once, then the continuations as rows of one batch; what fills them up stands behind, unseen."""
        cache, first = self._begin(ids, prefix)
        cache = self.network.new_cache() if cache is None else cache
        last = self.network.hidden(first, cache=cache)[:, -1:]  # (1, 1, D): what all first tokens are predicted from
        longer = [i for i, row in enumerate(rows) if len(row) > 1]
        hidden: dict[int, Tensor] = dict.fromkeys(range(len(rows)), last[0])
        if longer:
            width = max(len(rows[i]) for i in longer) - 1
            cache.select(torch.zeros(len(longer), dtype=torch.int64, device=last.device))
            inputs = self._tensor([rows[i][:-1] + [0] * (width + 1 - len(rows[i])) for i in longer])
            found = self.network.hidden(inputs, cache=cache)
            for n, i in enumerate(longer):
                hidden[i] = torch.cat([last[0], found[n, : len(rows[i]) - 1]])
        logits = self.network.head(torch.cat([hidden[i] for i in range(len(rows))]))  # (all tokens, V)
        parts = torch.split(logits, [len(row) for row in rows])
        return [_likelihood(part, self._tensor(row)) for part, row in zip(parts, rows, strict=True)]

    def _begin(self, ids: list[int], prefix: str) -> tuple[Cache | None, Tensor]:
        """Return the cache that holds what is known of the context, and the tokens that are still to be read."""
        if self.kind == "encoder-decoder":
            return self.network.start(self._tensor([ids]))
        shared = self._shared(ids, prefix)
        if shared < _SHARED:
            return None, self._tensor([ids])
        key = tuple(ids[:shared])
        if key not in self._prefixes:
            cache = self.network.new_cache()
            self.network.hidden(self._tensor([ids[:shared]]), cache=cache)
            self._prefixes[key] = cache
            while len(self._prefixes) > _KEPT:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return copy.deepcopy(self._prefixes[key]), self._tensor([ids[shared:]])

    def _shared(self, ids: list[int], prefix: str) -> int:
        """How many of the context's tokens are those of `prefix`, at least one of the context left out."""
        if not prefix:
            return 0
        beginning = self._ids(prefix.rstrip())
        pairs = zip(beginning, ids[:-1], strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(beginning), len(ids) - 1))

    def _tensor(self, ids: Sequence[Any]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=next(self.network.parameters()).device)

    # -- text, labels, vectors

    def complete(self, prompt: str, *, max_new_tokens: int, stop: Sequence[str]) -> str:
        """Return the greedy completion of a prompt, without the stop string that ended it."""
        if self.network.kind == "encoder":
            raise cannot(self.name, "writes text")
        if self.template:
            ids = render([{"role": "user", "content": prompt}], self.template, self.tokenizer)
        else:
            ids = prompt_ids(self.tokenizer, prompt)
        settings = GenerationSettings(max_new_tokens=max_new_tokens, do_sample=False, stop=tuple(stop))
        with self.computing():
            return complete(self.network, self.tokenizer, ids, settings, end_ids=self.model.end_ids).text

    def classify(self, text: str, pair: str | None) -> str:
        """Return the label that a classifier gives."""
        if self.kind != "classifier":
            raise cannot(self.name, "classifies texts")
        assert isinstance(self.network, EncoderOnly)
        with self.computing():
            return masked.classify(self.network, self.tokenizer, text, pair)

    def labels(self) -> tuple[str, ...]:
        """Return the labels of a classifier."""
        return self.network.labels if self.kind == "classifier" and isinstance(self.network, EncoderOnly) else ()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Return one vector per text, as `LanguageModel.embed`; one that is too long is cut at its end."""
        with self.computing():
            vectors = embed(self.network, self.tokenizer, texts, self.model.pooling, truncate=True)
        found: npt.NDArray[np.floating[Any]] = vectors.float().cpu().numpy()
        return found


def _kind(network: Network) -> str:
    if not isinstance(network, EncoderOnly):
        return network.kind
    kinds = {"fill-mask": "encoder", "text-classification": "classifier", "feature-extraction": "embedder"}
    if network.task not in kinds:
        raise UsageError(f"a model for {network.task} cannot be evaluated yet: no task asks for labels of tokens")
    return kinds[network.task]


def _likelihood(logits: Tensor, tokens: Tensor) -> Likelihood:
    """Sum up the log-probabilities of `tokens` (n,) under `logits` (n, vocab)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    log_probs = (chosen - logits.logsumexp(-1)).double()
    return Likelihood(float(log_probs.sum()), len(tokens), bool((logits.argmax(-1) == tokens).all()))
