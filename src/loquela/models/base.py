"""What every model is: a config read strictly, a network that maps tokens to logits, and its names on disk.

A file of this room is one architecture. It defines `CONFIG` (a subclass of `Config`) and `NETWORK` (a subclass of
`Network`); the file's name is the `model_type` of its config.json. Nothing else registers it.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache as memoise
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError, nearest
from loquela.layers.cache import Cache, CrossCache
from loquela.layers.decoder import Decoder

__all__ = ["Config", "EncoderDecoder", "Network", "Rename", "architecture", "architectures", "config_from_dict"]

Rename = tuple[str, str] | tuple[str, str, Literal["transpose"]]
"""A module's (or tensor's) name in code, its name on disk, and what happens to the tensor on the way.

`*` stands for one segment, a layer's number. The rest of a name (`.weight`, `.bias`) carries over.
"""

_INERT = frozenset(
    # Keys that say where a config comes from or how another library should run it, never what the model computes.
    """_name_or_path architectures auto_map chunk_size_feed_forward dtype torch_dtype transformers_version use_cache
    output_attentions output_hidden_states return_dict gradient_checkpointing is_decoder is_encoder_decoder
    add_cross_attention cross_attention_hidden_size problem_type finetuning_task id2label label2id task_specific_params
    tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id initializer_range pruned_heads tie_encoder_decoder
    torchscript use_bfloat16 tf_legacy_loss quantization_config do_sample early_stopping num_beams num_beam_groups
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size max_length min_length
    num_return_sequences bad_words_ids begin_suppress_tokens suppress_tokens remove_invalid_values diversity_penalty
    encoder_no_repeat_ngram_size exponential_decay_length_penalty output_scores return_dict_in_generate
    pretraining_tp""".split()
) - {"auto_map", "quantization_config", "add_cross_attention", "is_encoder_decoder"}


@dataclass
class Config:
    """Base of all configs. Fields carry the names of Hugging Face's config.json, so the file needs no table.

    A key that is neither a field, nor named in `fixed` or `inert`, is an error: it could change what is computed.
    """

    model_type: ClassVar[str]
    hf_architecture: ClassVar[str]
    """The class name that other libraries look up, written as `architectures`."""
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys that this architecture knows but supports with these values only."""
    inert: ClassVar[frozenset[str]] = frozenset()
    """Further keys that change nothing in what is computed."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    """Inert keys as they were read, written back unchanged."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read a config.json; raises `ConfigError` that names every key which cannot be honoured."""
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        wrong: list[str] = []
        for key, value in raw.items():
            if key == "model_type":
                continue
            if key in known:
                values[key] = value
            elif key in cls.fixed:
                if value not in cls.fixed[key]:
                    wrong.append(f"{key}={value!r} (only {' or '.join(map(repr, cls.fixed[key]))} is supported)")
                extra[key] = value
            elif key in _INERT or key in cls.inert:
                extra[key] = value
            else:
                wrong.append(f"unknown key {key!r}{nearest(key, known)}")
        if wrong:
            raise ConfigError(f"config of model_type {cls.model_type!r} cannot be honoured: {'; '.join(wrong)}")
        required = [
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
        ]
        if required:
            raise ConfigError(f"config of model_type {cls.model_type!r} lacks {', '.join(required)}")
        config = cls(**values, extra=extra)
        config.check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config.json: what was read, overlaid by this config's fields."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {"architectures": [self.hf_architecture], "model_type": self.model_type, **self.extra, **own}

    def check(self) -> None:
        """Raise `ConfigError` where values contradict each other; called once all fields are read."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31):
                raise ConfigError(f"{f.name} must be a positive whole number, but is {value!r}")

    def as_stored(self, names: Collection[str]) -> Config:
        """Return this config, corrected where the tensors' `names` on disk say better what the model is."""
        return self

    def must_divide(self, whole: str, part: str) -> None:
        """Raise `ConfigError` unless field `part` divides field `whole`."""
        if getattr(self, whole) % getattr(self, part):
            raise ConfigError(
                f"{part} must divide {whole}, but {whole} is {getattr(self, whole)} and {part} {getattr(self, part)}"
            )


class Network(nn.Module, ABC):
    """A language model without its tokenizer: token ids in, logits out.

    `forward` is `head(hidden(tokens))`; the two halves stand apart so that training and scoring compute logits
    only where they need them.
    """

    kind: ClassVar[Literal["decoder", "encoder", "encoder-decoder"]] = "decoder"
    renames: ClassVar[tuple[Rename, ...]] = ()
    """Names in code and on disk; see `Rename`. Read in both directions."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Names on disk (with `*`) that old checkpoints carry and nothing computes with, such as mask buffers."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Names on disk that a checkpoint may lack; the tensor is zero then."""
    base_prefix: ClassVar[str] = ""
    """The prefix that a checkpoint saved without its head lacks, e.g. `transformer.`."""
    headless: bool = False
    """Whether this checkpoint is such a one, and is written as it was read: without `base_prefix`."""
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Endings of names in old checkpoints, and what they are now."""

    config: Config

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many tokens the logits tell apart."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The context window in tokens: prompt and completion together."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the residual stream."""

    @abstractmethod
    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:
        """Return the last hidden states (batch, seq, dim), after the final norm, of `tokens` (batch, seq; int64).

        With a `cache`, `tokens` come after what it holds, and it is extended in place. `padding` (batch, cached + seq;
        bool) is True where a token is real; rows of different lengths are padded on either side.
        """

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, vocab_size) of hidden states (…, dim)."""

    def new_cache(self) -> Cache:
        """Return an empty cache for incremental decoding."""
        raise UsageError(
            f"only a model that writes from left to right has a cache, but this is {self.config.model_type}"
        )

    def start(self, prompt: Tensor, *, padding: Tensor | None = None) -> tuple[Cache, Tensor]:
        """Return a cache and the first tokens to feed, for a `prompt` (batch, seq) padded on the left.

        A decoder reads the prompt itself. An encoder-decoder has read it when this returns: its cache holds the
        encoder's output, and the first token is the decoder's start token.
        """
        return self.new_cache(), prompt

    @abstractmethod
    def initialise(self) -> None:
        """Draw fresh weights from torch's global generator, as training from scratch starts."""

    def forward(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:
        """Return the logits (batch, seq, vocab_size); see `hidden`."""
        return self.head(self.hidden(tokens, cache=cache, padding=padding))

    def parameter_count(self) -> int:
        """Trainable and frozen parameters, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())


class EncoderDecoder(Network):
    """A network that reads a source whole and writes a target from left to right (arXiv:1706.03762)."""

    kind = "encoder-decoder"
    decoder: Decoder

    @property
    def start_token_id(self) -> int:
        """The token that the decoder starts from, config.json's `decoder_start_token_id`."""
        token: int | None = getattr(self.config, "decoder_start_token_id", None)
        if token is None:
            raise ConfigError("config.json must name the decoder_start_token_id that targets start from, but does not")
        return token

    @abstractmethod
    def encode(self, source: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """Return the encoder's output (batch, source, dim) of `source` (batch, source; int64).

        `padding` (batch, source) is True where a token is real.
        """

    def memory(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values that each decoder layer makes of the encoder's output, once."""
        return [layer.cross.keys_values(encoded) for layer in self.decoder.layers]  # type: ignore[union-attr, operator]

    @abstractmethod
    def decode(
        self,
        tokens: Tensor,
        memory: list[tuple[Tensor, Tensor]],
        *,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Return the decoder's last hidden states (batch, seq, dim) of target `tokens` (batch, seq)."""

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> Tensor:
        """Return the decoder's last hidden states (batch, seq, dim) of target `tokens`.

        The source is given as token ids, or was read into a `CrossCache` by `start`.
        """
        if isinstance(cache, CrossCache):
            return self.decode(tokens, cache.memory, memory_padding=cache.padding, cache=cache, padding=padding)
        if source is None:
            raise UsageError("an encoder-decoder needs a source: give `source` token ids, or a cache made by `start`")
        memory = self.memory(self.encode(source, padding=source_padding))
        return self.decode(tokens, memory, memory_padding=source_padding, cache=cache, padding=padding)

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> Tensor:
        """Return the logits (batch, seq, vocab_size) of target `tokens`; see `hidden`."""
        return self.head(
            self.hidden(tokens, cache=cache, padding=padding, source=source, source_padding=source_padding)
        )

    def new_cache(self) -> Cache:
        """Refused: the cache of an encoder-decoder holds its source, so only `start` can make one."""
        raise UsageError("the cache of an encoder-decoder holds its source: make it with `start(source)`")

    def start(self, prompt: Tensor, *, padding: Tensor | None = None) -> tuple[Cache, Tensor]:
        """Read the `prompt` as the source; the decoder begins with its start token."""
        cache = CrossCache(self.memory(self.encode(prompt, padding=padding)), padding)
        return cache, torch.full((len(prompt), 1), self.start_token_id, device=prompt.device)


_SHARED = frozenset({"base", "encoder_only", "rope", "rotary_decoder"})


@memoise
def architectures() -> tuple[str, ...]:
    """Every `model_type` that this package has, sorted."""
    package = importlib.import_module("loquela.models")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _SHARED))


def architecture(model_type: str) -> ModuleType:
    """Return the module of a `model_type` (with `CONFIG` and `NETWORK`); raises `ConfigError` for an unknown one."""
    if model_type not in architectures():  # a list of our own files: a config can never name a module to import
        raise ConfigError(
            f"model_type must be one of {', '.join(architectures())}, but is {model_type!r}"
            f"{nearest(str(model_type), architectures())}"
        )
    return importlib.import_module(f"loquela.models.{model_type}")


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """Read a config.json of any architecture."""
    if "model_type" not in raw:
        raise ConfigError("config.json must say its model_type, but does not")
    config: Config = architecture(raw["model_type"]).CONFIG.from_dict(raw)
    return config
