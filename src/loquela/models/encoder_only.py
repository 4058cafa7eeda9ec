"""What the encoder-only architectures share: a body that reads a text whole, and a head for each use of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import PostNormBlock
from loquela.layers.cache import Cache
from loquela.layers.encoder import Encoder
from loquela.layers.feedforward import ACTIVATIONS, FeedForward
from loquela.layers.heads import ClassificationHead, MaskedTokenHead, Pooler, first_real
from loquela.layers.masks import positions_from_padding
from loquela.layers.norms import LayerNorm
from loquela.models.base import Config, Network

__all__ = ["EncoderConfig", "EncoderOnly", "Task", "blocks"]

Task = Literal["fill-mask", "text-classification", "token-classification", "feature-extraction"]
"""What a head is for, in Hugging Face's words."""

TASKS: dict[str, Task] = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
}
"""Endings of the class names that config.json gives as `architectures`, and the task that each means."""


@dataclass
class EncoderConfig(Config):
    """What the configs of BERT's family share: the head follows from `architectures`, the labels from `id2label`."""

    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "position_embedding_type": ("absolute",),
    }

    architectures: list[str] | None = None

    @classmethod
    def family(cls) -> str:
        """What every class name of this architecture begins with, e.g. `Bert`."""
        return cls.hf_architecture.removesuffix("ForMaskedLM")

    @property
    def task(self) -> Task:
        """What the head is for."""
        assert self.architectures is not None
        return TASKS[self.architectures[0].removeprefix(self.family())]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels of a classifier, in the order of its logits."""
        names: dict[str, str] = self.extra.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return tuple(names[str(i)] for i in range(len(names)))

    def for_task(self, task: Task, labels: Sequence[str] = ()) -> EncoderConfig:
        """Return this config with the head of another task."""
        ending = next(ending for ending, name in TASKS.items() if name == task)
        config = dataclasses.replace(self, architectures=[self.family() + ending], extra=dict(self.extra))
        if labels:
            config.extra["id2label"] = {str(i): label for i, label in enumerate(labels)}
            config.extra["label2id"] = {label: i for i, label in enumerate(labels)}
        return config

    def check(self) -> None:
        """There must be one architecture, it must be known, and its labels must be numbered from 0."""
        super().check()
        known = [self.family() + ending for ending in TASKS]
        if self.architectures is None or self.architectures == [self.family() + "ForPreTraining"]:
            self.architectures = [self.hf_architecture]  # two heads, of which the one that fills masks is kept
        if len(self.architectures) != 1 or self.architectures[0] not in known:
            raise ConfigError(f"architectures must be one of {', '.join(known)}, but is {self.architectures!r}")
        names = self.extra.get("id2label") or {}
        if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
            raise ConfigError(f"id2label must name the labels 0, 1, …, but is {names!r}")

    def must_activate(self, name: str) -> None:
        """Raise `ConfigError` unless the field `name` is a known activation."""
        if getattr(self, name) not in ACTIVATIONS:
            raise ConfigError(f"{name} must be one of {', '.join(ACTIVATIONS)}, but is {getattr(self, name)!r}")


_NEIGHBOURS = (-1, 1, -2, 2)
_WAVE, _GAIN, _LESS = 0.06, 0.84, 0.1
"""The waves' height beside embeddings of 0.02; what a head multiplies them by; what is left of all else there."""


class EncoderOnly(Network):
    """A network that reads a text whole, in both directions.

    `head` works on each position by itself; `forward` of a text classifier applies it to the first token only.
    """

    kind = "encoder"
    aliases = ((".gamma", ".weight"), (".beta", ".bias"))

    config: EncoderConfig
    token_embedding: nn.Embedding
    position_embedding: nn.Embedding
    embedding_norm: LayerNorm
    embedding_dropout: nn.Dropout
    encoder: Encoder

    def __init__(self) -> None:
        super().__init__()
        self.token_type_embedding: nn.Embedding | None = None
        self.pooler: Pooler | None = None
        self.lm_head: MaskedTokenHead | None = None
        self.classifier: ClassificationHead | None = None
        self.token_classifier: ClassificationHead | None = None

    @property
    def task(self) -> Task:
        """What the head is for."""
        return self.config.task

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels that a classifier tells apart."""
        return self.config.labels

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.token_embedding.num_embeddings

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.position_embedding.num_embeddings

    @property
    def dim(self) -> int:  # noqa: D102
        return self.token_embedding.embedding_dim

    def text_classifier(self, dropout: float) -> ClassificationHead:
        """Return the head that labels a whole text."""
        return ClassificationHead(self.dim, len(self.labels), dropout=dropout)

    def add_head(self, *, activation: str, eps: float, dropout: float, tied: bool) -> None:
        """Put the head of this network's task on the body; called once that stands."""
        if self.task == "fill-mask":
            self.lm_head = MaskedTokenHead(self.dim, self.vocab_size, ACTIVATIONS[activation], eps)
            if tied:
                self.lm_head.decoder.weight = self.token_embedding.weight
        elif self.task == "text-classification":
            self.classifier = self.text_classifier(dropout)
        elif self.task == "feature-extraction":
            self.headless = True
        else:
            self.token_classifier = ClassificationHead(self.dim, len(self.labels), dropout=dropout)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Return the rows of the position table for `tokens` (batch, seq)."""
        if padding is None:
            return torch.arange(tokens.shape[1], device=tokens.device)
        return positions_from_padding(padding, tokens.shape[1])

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states (batch, seq, dim) of `tokens` (batch, seq; int64).

        `padding` (batch, seq; bool) is True where a token is real. `token_types` (batch, seq) numbers the first and
        the second text of a pair 0 and 1; without it all is one text.
        """
        if cache is not None:
            raise UsageError("an encoder reads its text whole: call it without a cache")
        x = self.token_embedding(tokens) + self.position_embedding(self.positions(tokens, padding))
        if self.token_type_embedding is not None:
            x = x + self.token_type_embedding(torch.zeros_like(tokens) if token_types is None else token_types)
        x = self.embedding_dropout(self.embedding_norm(x))
        return self.encoder(x, padding=padding)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, vocab_size or labels) of hidden states (…, dim)."""
        if self.lm_head is not None:
            return self.lm_head(hidden)  # type: ignore[no-any-return]
        if self.token_classifier is not None:
            return self.token_classifier(hidden)  # type: ignore[no-any-return]
        if self.classifier is None:
            raise UsageError(
                f"logits need a checkpoint with a head, but this one is a {self.config.family()}Model: "
                "it gives hidden states and embeddings"
            )
        return self.classifier(hidden if self.pooler is None else self.pooler(hidden))  # type: ignore[no-any-return]

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Return logits: (batch, seq, vocab_size), (batch, seq, labels), or (batch, labels) for a whole text."""
        x = self.hidden(tokens, cache=cache, padding=padding, token_types=token_types)
        return self.head(first_real(x, padding) if self.task == "text-classification" else x)

    def for_task(self, task: Task, labels: Sequence[str] = ()) -> EncoderOnly:
        """Return a network with the same body and the head of another task, drawn afresh where this has none."""
        network = cast(Any, type(self))(self.config.for_task(task, labels)).to(self.token_embedding.weight)
        network.initialise()
        own, shapes = self.state_dict(), network.state_dict()
        shared = {name: t for name, t in own.items() if name in shapes and "classifier.output" not in name}
        network.load_state_dict(shared, strict=False)
        return cast(EncoderOnly, network)

    def initialise(self) -> None:
        """N(0, 0.02), as in the paper; norms start as the identity, biases at zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                nn.init.normal_(parameter, std=0.02)

    @torch.no_grad()
    def look_at_neighbours(self) -> None:
        """Change a fresh start so that the heads of the first two layers look at the tokens beside each token.

        At a mask there is nothing to read but the position, so a masked model must find out by chance that the words
        beside it matter; until then it only learns which words are frequent, and the loss stands. Here positions begin
        as waves, and queries and keys as matrices that turn them by -1, 1, -2 and 2 places, a head for each. The waves
        are orthogonal for places that are less than the width of a head apart; from twice that width on they come
        again. All of it is trained on: what a layer looks at in the end, it has learnt.

        Raises `UsageError` when the width of a head is odd.
        """
        attentions = [cast(MultiHeadAttention, layer.attention) for layer in list(self.encoder.layers)[:2]]
        width, heads = attentions[0].head_dim, attentions[0].heads
        if width % 2:
            raise UsageError(f"a head must be of an even width to turn waves, but is of {width}")
        pace = (2 * torch.arange(width // 2) + 1) * math.pi / width  # of a wave from place to place
        angles = torch.arange(self.position_embedding.num_embeddings)[:, None] * pace
        positions = self.position_embedding.weight.mul_(_LESS)
        positions[:, :width] = _WAVE * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        for number, attention in enumerate(attentions):
            queries, keys = (part.weight.mul_(_LESS) for part in (attention.q_proj, attention.k_proj))
            for head in range(heads):
                offset = _NEIGHBOURS[(number * heads + head) % len(_NEIGHBOURS)]
                rows = slice(head * width, (head + 1) * width)
                cos, sin = (offset * pace).cos(), (offset * pace).sin()
                turned = torch.stack((torch.stack((cos, sin), -1), torch.stack((-sin, cos), -1)), -2)  # (waves, 2, 2)
                queries[rows, :width] = _GAIN * torch.block_diag(*turned)  # type: ignore[no-untyped-call]
                keys[rows, :width] = _GAIN * torch.eye(width)


def blocks(
    layers: int,
    dim: int,
    heads: int,
    hidden: int,
    *,
    activation: str,
    eps: float,
    dropout: float,
    attention_dropout: float,
) -> Encoder:
    """Return an encoder of BERT's blocks: the norm after each half, biases everywhere."""
    return Encoder(
        PostNormBlock(
            MultiHeadAttention(dim, heads, bias=True, dropout=attention_dropout),
            FeedForward(dim, hidden, ACTIVATIONS[activation]),
            LayerNorm(dim, eps),
            LayerNorm(dim, eps),
            dropout=dropout,
        )
        for _ in range(layers)
    )
