"""Prompt tuning (Lester et al., 2021, arXiv:2104.08691): a few vectors before the text are all that is tuned.

A decoder reads them once: its cache then starts with their keys and values, and gradients flow through those. An
encoder reads them before each text. `prompt_tuning_init` says where they start: RANDOM (N(0, 1)), SAMPLE_VOCAB (the
embeddings of tokens drawn from the vocabulary), TEXT (those of a text's tokens, repeated or cut to the length).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError
from loquela.layers.cache import Cache
from loquela.models.base import Network
from loquela.peft.base import AdapterConfig, Part, Virtual
from loquela.peft.draw import Draw
from loquela.peft.wardrobe import Worn
from loquela.peft.worn import inserting, token_embedding

__all__ = ["CONFIG", "PromptConfig", "SoftPrompt", "SoftPromptConfig", "make"]

KEY = "prompt_embeddings"
_MAX_VIRTUAL = 100_000


@dataclass
class SoftPromptConfig(AdapterConfig):
    """What the configs of soft prompts share. What is None follows from the base."""

    num_virtual_tokens: int = 20
    token_dim: int | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    num_transformer_submodules: int | None = None

    def check(self) -> None:
        """There must be a virtual token, and not absurdly many."""
        super().check()
        self.at_least("num_virtual_tokens", 1, _MAX_VIRTUAL)
        self.at_least("num_transformer_submodules", 1, 3)


@dataclass
class PromptConfig(SoftPromptConfig):
    """adapter_config.json of prompt tuning."""

    method: ClassVar[str] = "prompt"
    peft_type: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def check(self) -> None:
        """A text to start from needs TEXT, and TEXT a text."""
        super().check()
        kinds = ("RANDOM", "TEXT", "SAMPLE_VOCAB")
        if self.prompt_tuning_init not in kinds:
            raise ConfigError(
                f"prompt_tuning_init must be one of {', '.join(kinds)}, but is {self.prompt_tuning_init!r}"
            )
        if self.prompt_tuning_init == "TEXT" and not self.prompt_tuning_init_text:
            raise ConfigError("prompt_tuning_init='TEXT' needs a prompt_tuning_init_text to start from")


class SoftPrompt(Virtual):
    """Vectors that stand before the embeddings of a text."""

    def __init__(self, embeddings: Tensor, length: int, *, in_encoder: bool) -> None:
        super().__init__({KEY: embeddings})
        self._length, self.in_encoder = length, in_encoder

    @property
    def length(self) -> int:  # noqa: D102
        return self._length

    def vectors(self) -> Tensor:  # noqa: D102
        return self.tensors[KEY][: self._length]  # PEFT keeps as many again for a decoder, and does not use them

    def became(self, network: Network, long: bool | None = None) -> Cache:
        """Read the vectors as a text of their own."""
        wardrobe: Any = network.wardrobe
        cache: Any = network.new_cache()
        if long is not None:
            cache.always = long
        vectors = self.vectors()[None]
        ids = torch.zeros(1, self.length, dtype=torch.long, device=vectors.device)
        worn = wardrobe.worn
        own = next(name for name, adapter in wardrobe.adapters.items() if adapter.virtual is self)
        with inserting(network, wardrobe, vectors):
            wardrobe.worn = Worn(own, ())
            try:
                network.hidden(ids, cache=cache)
            finally:
                wardrobe.worn = worn
        return cache  # type: ignore[no-any-return]


def make(
    network: Network, config: PromptConfig, draw: Draw
) -> tuple[PromptConfig, dict[str, Part], dict[str, str], Virtual]:
    """Return the config completed from the base, and the vectors at their start."""
    embedding = token_embedding(network)
    if not isinstance(embedding, nn.Embedding):
        raise UsageError(
            f"prompt tuning needs a model that embeds its tokens, but {network.config.model_type} does not"
        )
    dim = embedding.embedding_dim
    must_be(config, "token_dim", dim)
    submodules = config.num_transformer_submodules or 1
    count = config.num_virtual_tokens * submodules
    encoder = network.kind != "decoder"
    room = network.context_length - config.num_virtual_tokens
    if room < 1:
        raise UsageError(
            f"num_virtual_tokens must leave room in the context window of {network.context_length} tokens, but is "
            f"{config.num_virtual_tokens}"
        )
    prompt = SoftPrompt(_start(embedding, count, config, draw), config.num_virtual_tokens, in_encoder=encoder)
    config = replace(config, token_dim=dim, num_transformer_submodules=submodules)
    name = next(name for name, module in network.named_modules() if module is embedding)
    return config, {name: Part({})}, {name: name}, prompt


def _start(embedding: nn.Embedding, count: int, config: PromptConfig, draw: Draw) -> Tensor:
    dim = embedding.embedding_dim
    if config.prompt_tuning_init == "RANDOM" or draw.generator is None:
        return draw.normal(1, count, dim)
    ids = draw.text if config.prompt_tuning_init == "TEXT" else draw.integers(embedding.num_embeddings, count)
    if ids is None or not len(ids):
        raise UsageError("prompt_tuning_init='TEXT' needs the tokens of its text: attach with tokenizer=…")
    ids = ids.repeat(-(-count // len(ids)))[:count].to(embedding.weight.device)
    return draw.made((count, dim), lambda: embedding.weight[ids])


def must_be(config: Any, name: str, value: int) -> None:
    """Raise `UsageError` unless a setting that follows from the base is left out, or what follows."""
    given = getattr(config, name)
    if given is not None and given != value:
        raise UsageError(f"{name} must be {value} for this base, but is {given}: leave it out, or take the right base")


CONFIG = PromptConfig
