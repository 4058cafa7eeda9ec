"""BERT (Devlin et al., 2018, arXiv:1810.04805): a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loquela.errors import ConfigError
from loquela.layers.heads import Pooler
from loquela.layers.norms import LayerNorm
from loquela.models.base import Rename
from loquela.models.encoder_only import EncoderConfig, EncoderOnly, Task, blocks


@dataclass
class BertConfig(EncoderConfig):
    """config.json of BERT."""

    model_type: ClassVar[str] = "bert"
    hf_architecture: ClassVar[str] = "BertForMaskedLM"
    inert: ClassVar[frozenset[str]] = frozenset(
        """directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
        pooler_type output_past _num_labels""".split()
    )

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True

    def check(self) -> None:
        """Widths must divide and the activation must be known."""
        super().check()
        self.must_divide("hidden_size", "num_attention_heads")
        self.must_activate("hidden_act")
        if self.task == "fill-mask" and not self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings must be true for a head that fills masks, but is false")


def body_renames(prefix: str) -> tuple[Rename, ...]:
    """Return the names on disk of the body, which stand after `prefix`."""
    layer = f"{prefix}.encoder.layer.*"
    return (
        ("token_embedding", f"{prefix}.embeddings.word_embeddings"),
        ("position_embedding", f"{prefix}.embeddings.position_embeddings"),
        ("token_type_embedding", f"{prefix}.embeddings.token_type_embeddings"),
        ("embedding_norm", f"{prefix}.embeddings.LayerNorm"),
        ("encoder.layers.*.attention.q_proj", f"{layer}.attention.self.query"),
        ("encoder.layers.*.attention.k_proj", f"{layer}.attention.self.key"),
        ("encoder.layers.*.attention.v_proj", f"{layer}.attention.self.value"),
        ("encoder.layers.*.attention.o_proj", f"{layer}.attention.output.dense"),
        ("encoder.layers.*.attention_norm", f"{layer}.attention.output.LayerNorm"),
        ("encoder.layers.*.feedforward.up_proj", f"{layer}.intermediate.dense"),
        ("encoder.layers.*.feedforward.down_proj", f"{layer}.output.dense"),
        ("encoder.layers.*.feedforward_norm", f"{layer}.output.LayerNorm"),
        ("pooler", f"{prefix}.pooler"),
    )


class Bert(EncoderOnly):
    """The encoder of BERT, with the head that its config names."""

    config: BertConfig
    base_prefix = "bert."
    ignored: ClassVar[tuple[str, ...]] = (
        "bert.embeddings.position_ids",
        "cls.predictions.decoder.bias",  # cls.predictions.bias once more
        "cls.seq_relationship.weight",  # the head of next-sentence prediction, and the pooler that only it needs
        "cls.seq_relationship.bias",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    )
    renames: ClassVar[tuple[Rename, ...]] = (
        *body_renames("bert"),
        ("lm_head.dense", "cls.predictions.transform.dense"),
        ("lm_head.norm", "cls.predictions.transform.LayerNorm"),
        ("lm_head.decoder.weight", "cls.predictions.decoder.weight"),
        ("lm_head.decoder.bias", "cls.predictions.bias"),
        ("classifier.output", "classifier"),
        ("token_classifier.output", "classifier"),
    )
    summarised: ClassVar[tuple[Task, ...]] = ("feature-extraction", "text-classification")
    """The tasks whose checkpoints carry the pooler."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        dim, eps, dropout = config.hidden_size, config.layer_norm_eps, config.hidden_dropout_prob
        self.token_embedding = nn.Embedding(config.vocab_size, dim)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, dim)
        self.token_type_embedding = nn.Embedding(config.type_vocab_size, dim)
        self.embedding_norm, self.embedding_dropout = LayerNorm(dim, eps), nn.Dropout(dropout)
        self.encoder = blocks(
            config.num_hidden_layers,
            dim,
            config.num_attention_heads,
            config.intermediate_size,
            activation=config.hidden_act,
            eps=eps,
            dropout=dropout,
            attention_dropout=config.attention_probs_dropout_prob,
        )
        self.pooler = Pooler(dim) if self.task in self.summarised else None
        self.add_head(
            activation=config.hidden_act,
            eps=eps,
            dropout=dropout if config.classifier_dropout is None else config.classifier_dropout,
            tied=config.tie_word_embeddings,
        )


CONFIG, NETWORK = BertConfig, Bert
