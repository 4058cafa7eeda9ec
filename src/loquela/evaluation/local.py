"""A model in this process.

A decoder that the compiled engine knows is asked many items at a time, any other network one item at a time: whichever
of both computes, no other item, no batch size and no order changes a bit of a score (`loquela.evaluation.likelihood`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from loquela.checkpoint.sentence import Pooling
from loquela.engine.choosing import Engine, EngineName, compiled_already
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.evaluation import masked
from loquela.evaluation.likelihood import SHARED, TOKENS, Alone, Encoded, Together
from loquela.evaluation.subject import Answer, Likelihood, Question, cannot
from loquela.generation.completion import complete, prompt_ids
from loquela.generation.decode import evaluating
from loquela.generation.embed import embed
from loquela.generation.settings import GenerationSettings
from loquela.generation.tagging import tag
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.peft.attaching import wearing
from loquela.text.chat import render
from loquela.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from loquela.engine.decoder import CompiledNetwork

__all__ = ["LocalSubject", "Opened"]

_REMEMBERED = 256  # texts whose tokens are kept


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

    With `chat` a prompt to complete is what a user says, through the tokenizer's own chat template. `engine` is what
    computes likelihoods: what the model was loaded with unless given; `auto` compiles decoders of any size, which pays
    as soon as many items are asked.
    """

    at_once = 1

    def __init__(
        self, model: Opened, name: str = "model", *, chat: bool = False, engine: EngineName | None = None
    ) -> None:
        self.model, self.name = model, name
        self.network, self.tokenizer = model.network, model.tokenizer
        with self.computing():  # virtual tokens take a part of the window
            self.window: int | None = self.network.context_length
        self.kind = _kind(self.network)
        self.template = self.tokenizer.chat_template if chat else None
        if chat and not self.template:
            raise UsageError("--chat needs a model with a chat template, but this one has none: leave --chat out")
        loaded_with = getattr(model, "engine", None)
        default: EngineName = loaded_with.name if isinstance(loaded_with, Engine) else "torch"
        self.engine = default if engine is None else engine
        self._compiler = Engine("compiled")
        self._alone = Alone(self.network)
        self._together: Together | None = None
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
        (answer,) = self.several([Question(context, tuple(continuations), prefix)])
        if isinstance(answer, ContextWindowError):
            raise answer
        return answer

    def several(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers in the order of the questions, each as `likelihoods` gives it."""
        if self.kind in ("classifier", "tagger", "embedder"):
            raise cannot(self.name, "gives probabilities to texts")
        waiting: list[Encoded | ContextWindowError] = []
        held = 0
        fast = self._fast()
        most = 0 if fast is None else min(TOKENS, self._beside(fast).room)
        for question in questions:
            if self.kind == "encoder":
                yield self._masked(question)
                continue
            item = self._item(question)
            tokens = _tokens(item)
            if waiting and held + tokens > most:
                yield from self._answered(waiting, fast)
                waiting, held = [], 0
            waiting.append(item)
            held += tokens
        yield from self._answered(waiting, fast)

    def _masked(self, question: Question) -> Answer:
        assert isinstance(self.network, EncoderOnly)
        with self.computing():
            try:
                return masked.likelihoods(self.network, self.tokenizer, question.context, question.continuations)
            except ContextWindowError as error:
                return error

    def _item(self, question: Question) -> Encoded | ContextWindowError:
        ids, rows = self._encode(question.context, question.continuations)
        longest = len(ids) + max(map(len, rows)) - 1
        if self.kind == "decoder" and self.window is not None and longest > self.window:
            return ContextWindowError(
                f"a context and its continuation must fit the context window of {self.window} tokens, but have "
                f"{longest + 1}"
            )
        shared = self._shared(ids, question.prefix) if self.kind == "decoder" else 0
        return Encoded(ids, rows, shared if shared >= SHARED else 0)

    def _answered(
        self, items: Sequence[Encoded | ContextWindowError], fast: CompiledNetwork | None
    ) -> Iterator[Answer]:
        found = iter(self._computed([item for item in items if isinstance(item, Encoded)], fast))
        return iter([next(found) if isinstance(item, Encoded) else item for item in items])

    def _computed(self, items: Sequence[Encoded], fast: CompiledNetwork | None) -> list[list[Likelihood]]:
        if not items:
            return []
        with self.computing():
            if fast is None:
                return [self._alone(item) for item in items]
            return self._beside(fast)(items)

    def _beside(self, fast: CompiledNetwork) -> Together:
        worn = getattr(self.model, "adapter", None)
        if self._together is None or self._together.of != (fast, worn):
            self._together = Together(fast, worn)
        return self._together

    @property
    def computes_together(self) -> bool:
        """Whether the compiled engine computes, many items at a time."""
        return self._fast() is not None

    def _fast(self) -> CompiledNetwork | None:
        """Return what computes many items at a time, each with its own bits; None where torch computes.

        That is so for what does not write, and for what the engine does not know, of the network or of the adapter that
        it wears.
        """
        if self.kind not in ("decoder", "encoder-decoder"):
            return None
        if compiled_already(self.network):
            return self.network
        first = next(self.network.parameters(), None)
        plain = first is not None and first.device.type == "cpu" and first.dtype == torch.float32
        if self.engine == "torch" or (self.engine == "auto" and not plain):
            return None
        try:
            with self.computing():
                found = self._compiler.of(self.network)
        except UsageError:
            if self.engine == "compiled":
                raise
            self.engine = "torch"
            return None
        return found if compiled_already(found) else None

    def of_ids(self, context: Sequence[int], continuation: Sequence[int]) -> Likelihood:
        """Return how a continuation is expected, both given as token ids, at least one each."""
        if self.kind != "decoder":
            raise cannot(self.name, "writes from left to right")
        return self._computed([Encoded(list(context), [list(continuation)])], self._fast())[0][0]

    def forget(self) -> None:
        """Drop what is kept of earlier questions, which costs memory and saves time."""
        self._alone.prefixes.clear()
        self._together = None

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

    def _shared(self, ids: list[int], prefix: str) -> int:
        """How many of the context's tokens are those of `prefix`, at least one of the context left out."""
        if not prefix:
            return 0
        beginning = self._ids(prefix.rstrip())
        pairs = zip(beginning, ids[:-1], strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(beginning), len(ids) - 1))

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
        network = self._fast() or self.network
        with self.computing():
            return complete(network, self.tokenizer, ids, settings, end_ids=self.model.end_ids).text

    def classify(self, text: str, pair: str | None) -> str:
        """Return the label that a classifier gives."""
        if self.kind != "classifier":
            raise cannot(self.name, "classifies texts")
        assert isinstance(self.network, EncoderOnly)
        with self.computing():
            return masked.classify(self.network, self.tokenizer, text, pair)

    def tag(self, words: Sequence[str]) -> list[str]:
        """Return the tag of each word of a sentence."""
        with self.computing():
            return [found.tag for found in tag(self.network, self.tokenizer, words)]

    def labels(self) -> tuple[str, ...]:
        """Return the labels of a classifier of texts or of words."""
        if isinstance(self.network, EncoderOnly) and self.kind in ("classifier", "tagger"):
            return self.network.labels
        return ()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Return one vector per text, as `LanguageModel.embed`; one that is too long is cut at its end."""
        with self.computing():
            vectors = embed(self.network, self.tokenizer, texts, self.model.pooling, truncate=True)
        found: npt.NDArray[np.floating[Any]] = vectors.float().cpu().numpy()
        return found


def _kind(network: Network) -> str:
    if not isinstance(network, EncoderOnly):
        return network.kind
    kinds = {"fill-mask": "encoder", "text-classification": "classifier", "token-classification": "tagger"}
    return kinds.get(network.task, "embedder")


def _tokens(item: Encoded | ContextWindowError) -> int:
    return item.tokens if isinstance(item, Encoded) else 0
