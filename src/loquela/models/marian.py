"""Marian (Junczys-Dowmunt et al., 2018, arXiv:1804.00344): the 2017 transformer as the OPUS-MT translators have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from loquela.layers.embedding import InputEmbedding
from loquela.layers.positions import SinusoidalPositions
from loquela.models.bart import Bart, BartConfig


@dataclass
class MarianConfig(BartConfig):
    """config.json of Marian."""

    model_type: ClassVar[str] = "marian"
    hf_architecture: ClassVar[str] = "MarianMTModel"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        **BartConfig.fixed,
        "normalize_embedding": (False,),
        "static_position_embeddings": (True,),
    }

    vocab_size: int = 58101
    decoder_vocab_size: int | None = None
    share_encoder_decoder_embeddings: bool = True
    decoder_start_token_id: int | None = 58100

    def check(self) -> None:
        """Fill in the size of the target's vocabulary, which is another only where embeddings are not shared."""
        super().check()
        if self.decoder_vocab_size is None or self.share_encoder_decoder_embeddings:
            self.decoder_vocab_size = self.vocab_size


class Marian(Bart):
    """The encoder-decoder transformer of Marian."""

    config: MarianConfig
    ignored = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")  # the formula's values

    def token_embeddings(self) -> tuple[nn.Embedding, nn.Embedding]:
        """Make the embeddings of source and target: one for both, unless each side has a vocabulary of its own."""
        if self.config.share_encoder_decoder_embeddings:
            return super().token_embeddings()
        assert self.config.decoder_vocab_size is not None
        dim = self.config.d_model
        return nn.Embedding(self.config.vocab_size, dim), nn.Embedding(self.config.decoder_vocab_size, dim)

    def input(self, tokens: nn.Embedding) -> InputEmbedding:  # noqa: D102
        positions = SinusoidalPositions(self.config.max_position_embeddings, self.config.d_model, halves=True)
        return InputEmbedding(tokens, positions, scale=self.scale, dropout=self.config.dropout)


CONFIG, NETWORK = MarianConfig, Marian
