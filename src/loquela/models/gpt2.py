"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each half, GELU, biases everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import PreNormBlock
from loquela.layers.cache import Cache, positions
from loquela.layers.decoder import Decoder
from loquela.layers.feedforward import ACTIVATIONS, FeedForward
from loquela.layers.norms import LayerNorm
from loquela.models.base import Config, Network, Rename


@dataclass
class GPT2Config(Config):
    """config.json of GPT-2."""

    model_type: ClassVar[str] = "gpt2"
    hf_architecture: ClassVar[str] = "GPT2LMHeadModel"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),  # a matter of precision, not of the formula
        "add_cross_attention": (False,),
    }
    inert: ClassVar[frozenset[str]] = frozenset(
        """summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
        n_ctx""".split()
    )

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def check(self) -> None:
        """Widths must divide and the activation must be known."""
        super().check()
        self.must_divide("n_embd", "n_head")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function must be one of {', '.join(ACTIVATIONS)}, but is {self.activation_function!r}"
            )


class GPT2(Network):
    """The decoder-only transformer of GPT-2."""

    config: GPT2Config
    base_prefix = "transformer."
    ignored = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
    renames: ClassVar[tuple[Rename, ...]] = (
        ("token_embedding", "transformer.wte"),
        ("position_embedding", "transformer.wpe"),
        ("decoder.layers.*.attention_norm", "transformer.h.*.ln_1"),
        ("decoder.layers.*.attention.qkv_proj.weight", "transformer.h.*.attn.c_attn.weight", "transpose"),
        ("decoder.layers.*.attention.qkv_proj.bias", "transformer.h.*.attn.c_attn.bias"),
        ("decoder.layers.*.attention.o_proj.weight", "transformer.h.*.attn.c_proj.weight", "transpose"),
        ("decoder.layers.*.attention.o_proj.bias", "transformer.h.*.attn.c_proj.bias"),
        ("decoder.layers.*.feedforward_norm", "transformer.h.*.ln_2"),
        ("decoder.layers.*.feedforward.up_proj.weight", "transformer.h.*.mlp.c_fc.weight", "transpose"),
        ("decoder.layers.*.feedforward.up_proj.bias", "transformer.h.*.mlp.c_fc.bias"),
        ("decoder.layers.*.feedforward.down_proj.weight", "transformer.h.*.mlp.c_proj.weight", "transpose"),
        ("decoder.layers.*.feedforward.down_proj.bias", "transformer.h.*.mlp.c_proj.bias"),
        ("decoder.norm", "transformer.ln_f"),
        ("lm_head", "lm_head"),
    )

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        dim, heads, eps = config.n_embd, config.n_head, config.layer_norm_epsilon
        self.token_embedding = nn.Embedding(config.vocab_size, dim)
        self.position_embedding = nn.Embedding(config.n_positions, dim)
        self.embedding_dropout = nn.Dropout(config.embd_pdrop)
        self.decoder = Decoder(
            (
                PreNormBlock(
                    MultiHeadAttention(dim, heads, bias=True, fused=True, dropout=config.attn_pdrop),
                    FeedForward(dim, config.n_inner or 4 * dim, ACTIVATIONS[config.activation_function]),
                    LayerNorm(dim, eps),
                    LayerNorm(dim, eps),
                    dropout=config.resid_pdrop,
                )
                for _ in range(config.n_layer)
            ),
            LayerNorm(dim, eps),
        )
        self.lm_head = nn.Linear(dim, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.config.n_positions

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.n_embd

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states; `segments` (batch, seq) numbers documents that stand side by side in a row.

        Each is read as if it stood alone; such a row is read whole, without a cache.
        """
        where = positions(cache, tokens.shape[1], tokens.device, padding=padding, segments=segments)
        x = self.embedding_dropout(self.token_embedding(tokens) + self.position_embedding(where))
        return self.decoder(x, cache=cache, padding=padding, segments=segments)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def new_cache(self) -> Cache:  # noqa: D102
        return Cache(self.config.n_layer)

    def initialise(self) -> None:
        """N(0, 0.02), the projections back into the stream scaled by 1/√(2 · layers), as the GPT-2 report says."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 * ((2 * self.config.n_layer) ** -0.5 if into_stream else 1.0))


CONFIG, NETWORK = GPT2Config, GPT2
