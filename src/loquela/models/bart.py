"""BART (Lewis et al., 2019, arXiv:1910.13461): the 2017 transformer with learned positions and a norm on its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.embedding import InputEmbedding
from loquela.layers.norms import LayerNorm
from loquela.layers.positions import LearnedPositions
from loquela.models.base import Rename
from loquela.models.transformer import Transformer, TransformerConfig

__all__ = ["Bart", "BartConfig"]


@dataclass
class BartConfig(TransformerConfig):
    """config.json of BART."""

    model_type: ClassVar[str] = "bart"
    hf_architecture: ClassVar[str] = "BartForConditionalGeneration"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "is_encoder_decoder": (True,),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
        "normalize_before": (False,),
        "normalize_embedding": (True,),
        "add_final_layer_norm": (False,),
        "static_position_embeddings": (False,),
    }
    inert: ClassVar[frozenset[str]] = frozenset(
        """num_hidden_layers extra_pos_embeddings add_bias_logits force_bos_token_to_be_generated classif_dropout
        classifier_dropout do_blenderbot_90_layernorm output_past save_step _num_labels""".split()
    )

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    activation_function: str = "gelu"
    init_std: float = 0.02
    scale_embedding: bool = False
    decoder_start_token_id: int | None = 2

    def check(self) -> None:
        """One matrix must serve both embeddings and the head."""
        super().check()
        if not self.tie_word_embeddings:
            raise ConfigError(
                f"tie_word_embeddings must be true in {self.model_type}, for source, target and head, but is false"
            )


class Bart(Transformer):
    """The encoder-decoder transformer of BART."""

    config: BartConfig
    ignored = ("model.encoder.version", "model.decoder.version")
    optional = ("final_logits_bias",)
    renames: ClassVar[tuple[Rename, ...]] = (*Transformer.renames, ("final_logits_bias", "final_logits_bias"))
    final_logits_bias: Tensor

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.register_buffer("final_logits_bias", torch.zeros(1, self.vocab_size))

    def input(self, tokens: nn.Embedding) -> InputEmbedding:  # noqa: D102
        dim = self.config.d_model
        return InputEmbedding(
            tokens,
            LearnedPositions(self.config.max_position_embeddings, dim, offset=2),
            scale=self.scale,
            norm=LayerNorm(dim),
            dropout=self.config.dropout,
        )

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden) + self.final_logits_bias[0]  # type: ignore[no-any-return]

    def initialise(self) -> None:
        """N(0, init_std); norms start as the identity, biases at zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                nn.init.normal_(parameter, std=self.config.init_std)
        nn.init.zeros_(self.final_logits_bias)


CONFIG, NETWORK = BartConfig, Bart
