"""RoBERTa (Liu et al., 2019, arXiv:1907.11692): BERT whose positions are counted from after the padding token's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.errors import ConfigError
from loquela.layers.heads import ClassificationHead, Pooler
from loquela.models.base import Rename
from loquela.models.bert import Bert, BertConfig, body_renames
from loquela.models.encoder_only import Task


@dataclass
class RobertaConfig(BertConfig):
    """config.json of RoBERTa. `max_position_embeddings` counts the rows that no token uses."""

    model_type: ClassVar[str] = "roberta"
    hf_architecture: ClassVar[str] = "RobertaForMaskedLM"

    vocab_size: int = 50265
    pad_token_id: int | None = 1

    def check(self) -> None:
        """There must be a padding token, since the first position comes after its id."""
        super().check()
        if self.pad_token_id is None or not 0 <= self.pad_token_id < self.max_position_embeddings - 1:
            raise ConfigError(f"pad_token_id must be below max_position_embeddings - 1, but is {self.pad_token_id!r}")


class Roberta(Bert):
    """The encoder of RoBERTa, with the head that its config names."""

    config: RobertaConfig
    base_prefix = "roberta."
    ignored = (
        "roberta.embeddings.position_ids",
        "lm_head.decoder.bias",  # lm_head.bias once more
        "roberta.pooler.dense.weight",
        "roberta.pooler.dense.bias",
    )
    renames: ClassVar[tuple[Rename, ...]] = (
        *body_renames("roberta"),
        ("lm_head.dense", "lm_head.dense"),
        ("lm_head.norm", "lm_head.layer_norm"),
        ("lm_head.decoder.weight", "lm_head.decoder.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
        ("classifier.pooler.dense", "classifier.dense"),
        ("classifier.output", "classifier.out_proj"),
        ("token_classifier.output", "classifier"),
    )
    summarised: ClassVar[tuple[Task, ...]] = ("feature-extraction",)

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        if self.lm_head is not None:
            self.lm_head.activation = F.gelu  # whatever hidden_act says

    @property
    def context_length(self) -> int:  # noqa: D102
        assert self.config.pad_token_id is not None
        return self.config.max_position_embeddings - self.config.pad_token_id - 1

    def text_classifier(self, dropout: float) -> ClassificationHead:
        """Return the head that labels a whole text, with a pooler of its own."""
        return ClassificationHead(
            self.dim, len(self.labels), dropout=dropout, pooler=Pooler(self.dim), input_dropout=dropout
        )

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Count real tokens from `pad_token_id + 1`; padding has that id's own row."""
        assert self.config.pad_token_id is not None
        real = tokens != self.config.pad_token_id if padding is None else padding
        return torch.where(real, real.long().cumsum(-1), 0) + self.config.pad_token_id


CONFIG, NETWORK = RobertaConfig, Roberta
