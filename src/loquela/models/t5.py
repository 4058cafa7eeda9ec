"""T5 (Raffel et al., 2019, arXiv:1910.10683): RMSNorm before each half, a learned bias per distance, no biases else.

Versions 1.1 and FLAN gate the feed-forward (arXiv:2002.05202) and give the head a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import CrossAttention, MultiHeadAttention
from loquela.layers.block import Memory, PreNormBlock
from loquela.layers.cache import Cache
from loquela.layers.decoder import Decoder
from loquela.layers.encoder import Encoder
from loquela.layers.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from loquela.layers.masks import padding_mask
from loquela.layers.norms import RMSNorm
from loquela.layers.positions import RelativeBias
from loquela.models.base import Config, EncoderDecoder, Rename

__all__ = ["T5", "T5Config"]


@dataclass
class T5Config(Config):
    """config.json of T5. What `feed_forward_proj` and `tie_word_embeddings` imply may also be said outright."""

    model_type: ClassVar[str] = "t5"
    hf_architecture: ClassVar[str] = "T5ForConditionalGeneration"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"is_encoder_decoder": (True,)}
    inert: ClassVar[frozenset[str]] = frozenset({"n_positions", "output_past", "classifier_dropout"})

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    is_gated_act: bool | None = None
    dense_act_fn: str | None = None
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    """Whether the head multiplies hidden states by d_model^-0.5; unless said, a head tied to the embedding does."""
    decoder_start_token_id: int | None = None

    def check(self) -> None:
        """Fill in what other fields imply; the activation must be known."""
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        super().check()
        *gated, activation = self.feed_forward_proj.split("-")
        if gated not in ([], ["gated"]):
            raise ConfigError(f"feed_forward_proj must be NAME or gated-NAME, but is {self.feed_forward_proj!r}")
        if self.is_gated_act is None:
            self.is_gated_act = bool(gated)
        if self.dense_act_fn is None:
            self.dense_act_fn = "gelu_new" if self.feed_forward_proj == "gated-gelu" else activation
        if self.dense_act_fn not in ACTIVATIONS:
            raise ConfigError(f"dense_act_fn must be one of {', '.join(ACTIVATIONS)}, but is {self.dense_act_fn!r}")
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.extra.get("pad_token_id", 0)

    def as_stored(self, names: Collection[str]) -> Config:
        """A head that does not scale is untied where the checkpoint has one, even if a newer config.json says tied."""
        own_head = not self.scale_decoder_outputs and "lm_head.weight" in names
        return replace(self, tie_word_embeddings=self.tie_word_embeddings and not own_head)


class T5(EncoderDecoder):
    """The encoder-decoder transformer of T5."""

    config: T5Config
    ignored = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        assert config.num_decoder_layers is not None
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        # one embedding, which old checkpoints write under these names too
        self.encoder_embedding = self.decoder_embedding = self.token_embedding
        self.dropout = nn.Dropout(config.dropout_rate)
        self.encoder_bias, self.decoder_bias = _bias(config, bidirectional=True), _bias(config, bidirectional=False)
        self.encoder = Encoder((_block(config, cross=False) for _ in range(config.num_layers)), _norm(config))
        self.decoder = Decoder((_block(config, cross=True) for _ in range(config.num_decoder_layers)), _norm(config))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @property
    def renames(self) -> tuple[Rename, ...]:  # type: ignore[override]
        """The wide matrices are `wi`, or `wi_0` and `wi_1` where one gates the other."""
        gated = self.config.is_gated_act
        names: list[Rename] = [
            ("token_embedding", "shared"),
            ("encoder_embedding", "encoder.embed_tokens"),
            ("decoder_embedding", "decoder.embed_tokens"),
            ("lm_head", "lm_head"),
        ]
        for side, feedforward in (("encoder", 1), ("decoder", 2)):
            layer, parts = f"{side}.layers.*", f"{side}.block.*.layer"
            wide = f"{parts}.{feedforward}.DenseReluDense"
            names += [
                (f"{side}_bias.table", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"),
                (f"{layer}.attention_norm", f"{parts}.0.layer_norm"),
                *((f"{layer}.attention.{x}_proj", f"{parts}.0.SelfAttention.{x}") for x in "qkvo"),
                (f"{layer}.cross_norm", f"{parts}.1.layer_norm"),
                *((f"{layer}.cross.{x}_proj", f"{parts}.1.EncDecAttention.{x}") for x in "qkvo"),
                (f"{layer}.feedforward_norm", f"{parts}.{feedforward}.layer_norm"),
                (f"{layer}.feedforward.gate_proj", f"{wide}.wi_0"),
                (f"{layer}.feedforward.up_proj", f"{wide}.wi_1" if gated else f"{wide}.wi"),
                (f"{layer}.feedforward.down_proj", f"{wide}.wo"),
                (f"{side}.norm", f"{side}.final_layer_norm"),
            ]
        return tuple(names)

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Distances have no end; this is what may be read or written in one go, bounded by memory only."""
        return 2**20

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.d_model

    def encode(self, source: Tensor, *, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        x = self.dropout(self.token_embedding(source))
        bias = self.encoder_bias(source.shape[1], source.shape[1])
        return self.dropout(self.encoder(x, padding=padding, bias=bias))  # type: ignore[no-any-return]

    def decode(  # noqa: D102
        self,
        tokens: Tensor,
        memory: list[Memory],
        *,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        x = self.dropout(self.token_embedding(tokens))
        keys = tokens.shape[1] + (0 if cache is None else cache.length)
        x = self.decoder(
            x,
            cache=cache,
            padding=padding,
            bias=self.decoder_bias(tokens.shape[1], keys),
            memory=memory,
            memory_mask=padding_mask(memory_padding),
        )
        return self.dropout(x)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def initialise(self) -> None:
        """As the T5 code does: N(0, 1/√in), queries by a further 1/√d_kv as no score is scaled, embedding N(0, 1).

        A head of its own starts as in T5X, like any matrix: at N(0, 1) the first loss would be five times chance's.
        """
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.constant_(parameter, config.initializer_factor)
                continue
            std = parameter.shape[-1] ** -0.5
            if name.endswith("_bias.table.weight"):
                std = config.d_model**-0.5
            elif name.startswith("token_embedding"):
                std = 1.0
            elif name.endswith("q_proj.weight"):
                std *= config.d_kv**-0.5
            nn.init.normal_(parameter, std=config.initializer_factor * std)


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.d_model, config.layer_norm_epsilon)


def _bias(config: T5Config, *, bidirectional: bool) -> RelativeBias:
    return RelativeBias(
        config.num_heads,
        buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
        bidirectional=bidirectional,
    )


def _block(config: T5Config, *, cross: bool) -> PreNormBlock:
    assert config.dense_act_fn is not None
    dim, heads, head_dim, dropout = config.d_model, config.num_heads, config.d_kv, config.dropout_rate
    feedforward = GatedFeedForward if config.is_gated_act else FeedForward
    return PreNormBlock(
        MultiHeadAttention(dim, heads, head_dim=head_dim, scale=1.0, dropout=dropout),
        feedforward(dim, config.d_ff, ACTIVATIONS[config.dense_act_fn], bias=False, dropout=dropout),
        _norm(config),
        _norm(config),
        cross=CrossAttention(dim, heads, head_dim=head_dim, scale=1.0, dropout=dropout) if cross else None,
        cross_norm=_norm(config) if cross else None,
        dropout=dropout,
    )


CONFIG, NETWORK = T5Config, T5
