"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108): half of BERT's layers, no token types, no pooler in the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn import functional as F

from loquela.layers.heads import ClassificationHead, Pooler
from loquela.layers.norms import LayerNorm
from loquela.models.base import Rename
from loquela.models.encoder_only import EncoderConfig, EncoderOnly, blocks

_EPS = 1e-12  # config.json has no key for it


@dataclass
class DistilBertConfig(EncoderConfig):
    """config.json of DistilBERT."""

    model_type: ClassVar[str] = "distilbert"
    hf_architecture: ClassVar[str] = "DistilBertForMaskedLM"
    inert: ClassVar[frozenset[str]] = frozenset(  # `sinusoidal_pos_embds` says only how the table was drawn
        {"sinusoidal_pos_embds", "qa_dropout", "tie_weights_", "output_past", "_num_labels"}
    )

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    seq_classif_dropout: float = 0.2
    tie_word_embeddings: bool = True

    def check(self) -> None:
        """Widths must divide and the activation must be known."""
        super().check()
        self.must_divide("dim", "n_heads")
        self.must_activate("activation")


class DistilBert(EncoderOnly):
    """The encoder of DistilBERT, with the head that its config names."""

    config: DistilBertConfig
    base_prefix = "distilbert."
    ignored = ("distilbert.embeddings.position_ids",)
    renames: ClassVar[tuple[Rename, ...]] = (
        ("token_embedding", "distilbert.embeddings.word_embeddings"),
        ("position_embedding", "distilbert.embeddings.position_embeddings"),
        ("embedding_norm", "distilbert.embeddings.LayerNorm"),
        ("encoder.layers.*.attention.q_proj", "distilbert.transformer.layer.*.attention.q_lin"),
        ("encoder.layers.*.attention.k_proj", "distilbert.transformer.layer.*.attention.k_lin"),
        ("encoder.layers.*.attention.v_proj", "distilbert.transformer.layer.*.attention.v_lin"),
        ("encoder.layers.*.attention.o_proj", "distilbert.transformer.layer.*.attention.out_lin"),
        ("encoder.layers.*.attention_norm", "distilbert.transformer.layer.*.sa_layer_norm"),
        ("encoder.layers.*.feedforward.up_proj", "distilbert.transformer.layer.*.ffn.lin1"),
        ("encoder.layers.*.feedforward.down_proj", "distilbert.transformer.layer.*.ffn.lin2"),
        ("encoder.layers.*.feedforward_norm", "distilbert.transformer.layer.*.output_layer_norm"),
        ("lm_head.dense", "vocab_transform"),
        ("lm_head.norm", "vocab_layer_norm"),
        ("lm_head.decoder", "vocab_projector"),
        ("classifier.pooler.dense", "pre_classifier"),
        ("classifier.output", "classifier"),
        ("token_classifier.output", "classifier"),
    )

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.dim)
        self.embedding_norm, self.embedding_dropout = LayerNorm(config.dim, _EPS), nn.Dropout(config.dropout)
        self.encoder = blocks(
            config.n_layers,
            config.dim,
            config.n_heads,
            config.hidden_dim,
            activation=config.activation,
            eps=_EPS,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        tokens = self.task == "token-classification"
        self.add_head(
            activation=config.activation,
            eps=_EPS,
            dropout=config.dropout if tokens else config.seq_classif_dropout,
            tied=config.tie_word_embeddings,
        )

    def text_classifier(self, dropout: float) -> ClassificationHead:
        """Return the head that labels a whole text, with a pooler of its own."""
        return ClassificationHead(self.dim, len(self.labels), dropout=dropout, pooler=Pooler(self.dim, F.relu))


CONFIG, NETWORK = DistilBertConfig, DistilBert
