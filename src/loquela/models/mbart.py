"""mBART (Liu et al., 2020, arXiv:2001.08210): BART on many languages, with the norms before each half of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.layers.block import PreNormBlock
from loquela.models.bart import Bart, BartConfig


@dataclass
class MBartConfig(BartConfig):
    """config.json of mBART. A translation starts from the target's language, so no start token is the default."""

    model_type: ClassVar[str] = "mbart"
    hf_architecture: ClassVar[str] = "MBartForConditionalGeneration"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        **BartConfig.fixed,
        "normalize_before": (True,),
        "add_final_layer_norm": (True,),
    }

    decoder_start_token_id: int | None = None


class MBart(Bart):
    """The encoder-decoder transformer of mBART."""

    block = PreNormBlock
    last_norm = True


CONFIG, NETWORK = MBartConfig, MBart
