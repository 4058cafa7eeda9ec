"""mT5 (Xue et al., 2020, arXiv:2010.11934): T5 1.1 on a hundred languages; its head never scales hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loquela.models.t5 import T5, T5Config


@dataclass
class MT5Config(T5Config):
    """config.json of mT5."""

    model_type: ClassVar[str] = "mt5"
    hf_architecture: ClassVar[str] = "MT5ForConditionalGeneration"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    scale_decoder_outputs: bool | None = False


class MT5(T5):
    """The encoder-decoder transformer of mT5."""


CONFIG, NETWORK = MT5Config, MT5
