"""The transformer (Vaswani et al., 2017, arXiv:1706.03762): attention is all you need, from one language to another.

Names on disk are those of BART, its nearest relative at Hugging Face, which has no model of 2017 itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import CrossAttention, MultiHeadAttention
from loquela.layers.block import Memory, PostNormBlock, PreNormBlock
from loquela.layers.cache import Cache
from loquela.layers.decoder import Decoder
from loquela.layers.embedding import InputEmbedding
from loquela.layers.encoder import Encoder
from loquela.layers.feedforward import ACTIVATIONS, FeedForward
from loquela.layers.masks import padding_mask
from loquela.layers.norms import LayerNorm
from loquela.layers.positions import SinusoidalPositions
from loquela.models.base import Config, EncoderDecoder, Rename

__all__ = ["Transformer", "TransformerConfig"]


@dataclass
class TransformerConfig(Config):
    """config.json of the 2017 transformer; the defaults are the paper's base model."""

    model_type: ClassVar[str] = "transformer"
    hf_architecture: ClassVar[str] = "TransformerForConditionalGeneration"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"is_encoder_decoder": (True,)}

    vocab_size: int = 37000
    max_position_embeddings: int = 512
    d_model: int = 512
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    activation_function: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    scale_embedding: bool = True
    tie_word_embeddings: bool = True
    decoder_start_token_id: int | None = None

    def check(self) -> None:
        """Widths must divide and the activation must be known."""
        super().check()
        self.must_divide("d_model", "encoder_attention_heads")
        self.must_divide("d_model", "decoder_attention_heads")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function must be one of {', '.join(ACTIVATIONS)}, but is {self.activation_function!r}"
            )


class Transformer(EncoderDecoder):
    """The encoder-decoder transformer of 2017."""

    config: TransformerConfig
    base_prefix = "model."
    block: ClassVar[type[PostNormBlock] | type[PreNormBlock]] = PostNormBlock
    last_norm: ClassVar[bool] = False
    """Whether each stack ends in a norm, as it must when its blocks have theirs at the beginning."""
    renames: ClassVar[tuple[Rename, ...]] = (
        ("token_embedding", "model.shared"),
        *(
            (f"{side}{ours}", f"model.{side}.{theirs}")
            for side in ("encoder", "decoder")
            for ours, theirs in (
                ("_input.tokens", "embed_tokens"),
                ("_input.positions", "embed_positions"),
                ("_input.norm", "layernorm_embedding"),
                (".layers.*.attention", "layers.*.self_attn"),
                (".layers.*.attention.o_proj", "layers.*.self_attn.out_proj"),
                (".layers.*.attention_norm", "layers.*.self_attn_layer_norm"),
                (".layers.*.cross", "layers.*.encoder_attn"),
                (".layers.*.cross.o_proj", "layers.*.encoder_attn.out_proj"),
                (".layers.*.cross_norm", "layers.*.encoder_attn_layer_norm"),
                (".layers.*.feedforward.up_proj", "layers.*.fc1"),
                (".layers.*.feedforward.down_proj", "layers.*.fc2"),
                (".layers.*.feedforward_norm", "layers.*.final_layer_norm"),
                (".norm", "layer_norm"),
            )
        ),
        ("lm_head", "lm_head"),
    )

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        source, target = self.token_embeddings()
        if source is target:
            self.token_embedding = source
        self.encoder_input, self.decoder_input = self.input(source), self.input(target)
        heads, hidden = config.encoder_attention_heads, config.encoder_ffn_dim
        self.encoder = Encoder(
            (self._block(heads, hidden, cross=False) for _ in range(config.encoder_layers)), self._last_norm()
        )
        heads, hidden = config.decoder_attention_heads, config.decoder_ffn_dim
        self.decoder = Decoder(
            (self._block(heads, hidden, cross=True) for _ in range(config.decoder_layers)), self._last_norm()
        )
        self.lm_head = nn.Linear(config.d_model, target.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = target.weight

    def token_embeddings(self) -> tuple[nn.Embedding, nn.Embedding]:
        """Make the embeddings of source and target: one for both, as the paper has it (3.4)."""
        shared = nn.Embedding(self.config.vocab_size, self.config.d_model)
        return shared, shared

    def input(self, tokens: nn.Embedding) -> InputEmbedding:
        """Make what turns one side's tokens into the stream."""
        positions = SinusoidalPositions(self.config.max_position_embeddings, self.config.d_model)
        return InputEmbedding(tokens, positions, scale=self.scale, dropout=self.config.dropout)

    @property
    def scale(self) -> float:
        """What token embeddings are multiplied by."""
        return self.config.d_model**0.5 if self.config.scale_embedding else 1.0

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.lm_head.out_features

    @property
    def context_length(self) -> int:
        """Tokens that a source may have, and tokens that a target may have."""
        return self.config.max_position_embeddings

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.d_model

    def encode(self, source: Tensor, *, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        return self.encoder(self.encoder_input(source, padding=padding), padding=padding)  # type: ignore[no-any-return]

    def decode(  # noqa: D102
        self,
        tokens: Tensor,
        memory: list[Memory],
        *,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        x = self.decoder_input(tokens, cache=cache, padding=padding)
        return self.decoder(  # type: ignore[no-any-return]
            x, cache=cache, padding=padding, memory=memory, memory_mask=padding_mask(memory_padding)
        )

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def initialise(self) -> None:
        """Glorot's uniform for matrices, N(0, 1/√d_model) for embeddings, as the paper's tensor2tensor does."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            elif name.endswith("_proj.weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)

    def _last_norm(self) -> LayerNorm | None:
        return LayerNorm(self.config.d_model) if self.last_norm else None

    def _block(self, heads: int, hidden: int, *, cross: bool) -> PostNormBlock | PreNormBlock:
        config, dim = self.config, self.config.d_model
        activation = ACTIVATIONS[config.activation_function]
        return self.block(
            MultiHeadAttention(dim, heads, bias=True, dropout=config.attention_dropout),
            FeedForward(dim, hidden, activation, dropout=config.activation_dropout),
            LayerNorm(dim),
            LayerNorm(dim),
            cross=CrossAttention(dim, heads, bias=True, dropout=config.attention_dropout) if cross else None,
            cross_norm=LayerNorm(dim) if cross else None,
            dropout=config.dropout,
        )


CONFIG, NETWORK = TransformerConfig, Transformer
