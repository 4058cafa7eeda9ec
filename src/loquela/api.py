"""The Python API: `load` a model directory, then generate, score, embed, look at logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import torch
from torch import Tensor

from loquela.checkpoint.sentence import Pooling, read_pooling, sentence_files
from loquela.checkpoint.store import end_ids, opened, save_model
from loquela.data.readers import Piece as TextPiece
from loquela.engine.choosing import Engine, EngineName, quantised_network, stored_width, warm
from loquela.errors import TokenizerError, UsageError
from loquela.evaluation.perplexity import Score, score
from loquela.generation.completion import Completion, Piece, choices, prompt_ids, stream
from loquela.generation.constrain import constraint
from loquela.generation.decode import Speculation, evaluating
from loquela.generation.embed import embed
from loquela.generation.inputs import Ids, rows, source_and_target, states
from loquela.generation.settings import GenerationSettings, settled
from loquela.generation.speculative import Draft, draft_of
from loquela.generation.tagging import TaggedWord, tag
from loquela.inspection.watch import Seen, watch
from loquela.models.base import Network
from loquela.peft.attaching import adapters, wearing
from loquela.peft.wardrobe import Names
from loquela.prompting.budget import fit
from loquela.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from loquela.engine.decoder import CacheType, Quantize

__all__ = ["LanguageModel", "load"]

Wear: TypeAlias = "Names | EllipsisType"
"""What a call wears: an adapter, None for the base alone, one of both per row, or `...`: as the model was loaded."""


def load(
    directory: str | Path,
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    *,
    engine: EngineName = "auto",
    quantize: Quantize | None = None,
    cache_dtype: CacheType = "float32",
) -> LanguageModel:
    """Open a model directory in Hugging Face's layout, and adapters in PEFT's for it: one base in memory.

    One `adapter` directory is worn by every call that says nothing else. Several, by name, are chosen at each call
    (`adapter="name"`), which wears none unless it says so. `dtype` is what is computed in: float32, float16, bfloat16
    or float64. `engine` is what generates (`loquela.engine.choosing`); `quantize` rounds the weights to int8 or int4,
    for all that the model does then; what adapters add to them stays in float32. `cache_dtype` float16 or int8 keeps
    keys and values in less memory. Raises `CheckpointError` for a directory that is missing, half-written, damaged, or
    made for another base.
    """
    chosen, width = Engine(engine, cache_dtype), quantize or stored_width(directory, engine)
    warm(directory, engine, width)
    with opened(directory, dtype=dtype, device=device, unread=width is not None) as loaded:
        network = loaded.network if adapter is None else loaded.read_rest()
        if adapter is not None:
            from loquela.tuning.subject import open_adapter  # a quarter of what there is to import, for adapters only

            for name, place in ({"default": adapter} if isinstance(adapter, str | Path) else adapter).items():
                network = open_adapter(network, loaded.tokenizer, place, name)
        if width is not None:
            network = quantised_network(network, width, engine, cache_dtype, loaded, asked=quantize is not None)
    model = LanguageModel(network, loaded.tokenizer, loaded.generation_config, read_pooling(loaded.directory))
    model.adapter, model.engine = "default" if isinstance(adapter, str | Path) else None, chosen
    return model


class LanguageModel:
    """A network and its tokenizer, with what the model's authors say about its use.

    `generation_config` is their generation_config.json; `pooling` says how a text becomes a vector, where the model's
    directory is one of sentence-transformers.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer | None = None,
        generation_config: dict[str, Any] | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.network = network.eval()
        self.generation_config = generation_config or {}
        self.pooling = pooling
        self._tokenizer = tokenizer
        self.adapter: str | None = None
        """The adapter that a call wears unless it says otherwise."""
        self.engine = Engine()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that calls can wear."""
        return tuple(adapters(self.network))

    @contextmanager
    def wearing(self, adapter: Wear = ...) -> Iterator[None]:
        """Let `network` wear adapters while the `with` runs; see `loquela.peft.wearing`."""
        with wearing(self.network, self._worn(adapter)):
            yield

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises `TokenizerError` when the model's directory has none."""
        if self._tokenizer is None:
            raise TokenizerError("text needs the model's tokenizer.json, but its directory has none")
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """The context window in tokens, prompt and completion together."""
        return self.network.context_length

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text; see `checkpoint.store.end_ids`."""
        return end_ids(self.network, self._tokenizer, self.generation_config)

    # -- numbers

    def logits(self, ids: Ids, target: Ids | None = None, *, adapter: Wear = ...) -> Tensor:
        """Return the logits (batch, seq, vocab) of token ids (seq,) or (batch, seq); each row may wear its own.

        Of an encoder-decoder `ids` are the source, and the logits those of `target`, what its decoder reads: the token
        that it starts from, then the text (transformers' `decoder_input_ids`).
        """
        with evaluating(self.network), self.wearing(adapter):
            tokens, source = source_and_target(self.network, ids, target)
            return cast(Tensor, self.network(tokens, **source))

    def hidden(self, ids: Ids, target: Ids | None = None, *, adapter: Wear = ...) -> Tensor:
        """Return the last hidden states (batch, seq, dim) of token ids (seq,) or (batch, seq); see `logits`.

        Of an encoder-decoder without a `target` they are the encoder's.
        """
        with evaluating(self.network), self.wearing(adapter):
            if target is None and self.network.kind == "encoder-decoder":
                return states(self.network, rows(self.network, ids))
            tokens, source = source_and_target(self.network, ids, target)
            return self.network.hidden(tokens, **source)

    def embed(self, texts: str | Sequence[str], *, adapter: str | EllipsisType | None = ...) -> Tensor:
        """Return one vector per text (n, dim), by `pooling`, else the mean of its last hidden states (see `hidden`)."""
        with self.wearing(adapter):
            return embed(self.network, self.tokenizer, [texts] if isinstance(texts, str) else texts, self.pooling)

    def score(
        self,
        text: str | Iterable[TextPiece],
        *,
        window: int | None = None,
        stride: int | None = None,
        adapter: str | EllipsisType | None = ...,
    ) -> Score:
        """Return log-probabilities per token, perplexity and bits per byte; see `loquela.evaluation.perplexity`."""
        with self.wearing(adapter):
            return score(self.network, self.tokenizer, text, window=window, stride=stride)

    def tag(self, text: str | Sequence[str], *, adapter: str | EllipsisType | None = ...) -> list[TaggedWord]:
        """Return the words of a text (or of the words given), each with the label that fits it best.

        Raises `UsageError` unless the model is one for token classification.
        """
        with self.wearing(adapter):
            return tag(self.network, self.tokenizer, text)

    def watch(self, *names: str) -> AbstractContextManager[Seen]:
        """Collect what modules compute, by name, while the `with` runs; see `loquela.inspection.watch`."""
        return watch(self.network, *names)

    # -- text

    def settings(self, **given: Any) -> GenerationSettings:
        """What is given, else what generation_config.json says, else our defaults; raises `UsageError`."""
        return settled(self.generation_config, given)

    @overload
    def generate(
        self, prompt: str, *, top: int = 0, truncate: bool = False, adapter: Wear = ..., **settings: Any
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: Sequence[str], *, top: int = 0, truncate: bool = False, adapter: Wear = ..., **settings: Any
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        top: int = 0,
        truncate: bool = False,
        adapter: Wear = ...,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        assistant_model: LanguageModel | None = None,
        **settings: Any,
    ) -> Completion | list[Completion]:
        """Complete a prompt; a list in gives a list out, each as it would be alone.

        Settings are those of `loquela.generation.settings`: `max_new_tokens`, `temperature`, `top_k`, `top_p`,
        `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `logit_bias`, `stop`, `seed`, `n`,
        `do_sample`, `sampler_order`. With `n` above 1 each prompt gives n completions, one after the other in a list;
        with `best_of` they are the best of so many. `top` asks for that many alternatives with each token. A prompt
        longer than the context window raises `ContextWindowError`, or with `truncate` is cut to its last tokens
        (`Completion.truncated` says by how many). `adapter` names what is worn, or for a list of prompts what each
        wears. The text fits `json_schema`, or matches `regex`, if one is given. An `assistant_model` guesses ahead, or
        with `prompt_lookup_num_tokens` what stands before does: the same distribution in less time.
        """
        chosen = self.settings(**settings)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        worn = self._worn(adapter)
        each = [worn] * len(prompts) if worn is None or isinstance(worn, str) else list(worn)
        if len(each) != len(prompts):
            raise UsageError(f"each prompt must have one adapter or None, but {len(prompts)} have {len(each)}")
        asked = constraint(self.tokenizer, json_schema=json_schema, regex=regex, end_ids=self.end_ids)
        draft, completions = self._draft(chosen, assistant_model, settings), []
        for text, name in zip(prompts, each, strict=True):
            with wearing(self.network, name):
                ids, cut = self.fit(text, chosen, truncate=truncate)
                runs = self.engine.of(self.network)
                for completion in choices(
                    runs, self.tokenizer, ids, chosen, top=top, end_ids=self.end_ids, constraint=asked, draft=draft
                ):
                    completions.append(replace(completion, truncated=cut))
        return completions[0] if isinstance(prompt, str) and chosen.n == 1 else completions

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        top: int = 5,
        truncate: bool = False,
        adapter: str | EllipsisType | None = ...,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        assistant_model: LanguageModel | None = None,
        speculation: Speculation | None = None,
        **settings: Any,
    ) -> Iterator[Piece]:
        """Complete a prompt (text, or token ids as they are) token by token; see `generate`.

        Each piece has its log-probability and the `top` most probable tokens. `speculation` counts what guessing ahead
        brings, as it goes.
        """
        chosen, worn = self.settings(**settings), self._worn(adapter)
        with wearing(self.network, worn):
            ids, _ = self.fit(prompt, chosen, truncate=truncate)
            asked = constraint(self.tokenizer, json_schema=json_schema, regex=regex, end_ids=self.end_ids)
            runs = self.engine.of(self.network)
            draft = self._draft(chosen, assistant_model, settings)
            if draft is not None and speculation is not None:
                draft.speculation = speculation
            pieces = stream(
                runs, self.tokenizer, ids, chosen, top=top, end_ids=self.end_ids, constraint=asked, draft=draft
            )
        return self._each_wearing(worn, pieces)

    def _draft(
        self, chosen: GenerationSettings, assistant: LanguageModel | None, given: Mapping[str, Any]
    ) -> Draft | None:
        if assistant is None:
            if "num_assistant_tokens" in given:
                raise UsageError("num_assistant_tokens says how many tokens a draft guesses, but there is no draft")
            return draft_of(chosen, self.network, self.tokenizer)
        if assistant.adapter is not None:
            raise UsageError("a draft must wear no adapter, but wears one: merge it first (loquela merge)")
        runs = assistant.engine.of(assistant.network)
        return draft_of(chosen, self.network, self.tokenizer, runs, assistant.tokenizer)

    def _each_wearing(self, worn: Names, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Wear adapters while a piece is computed, not while whoever asked for it has the turn."""
        while True:
            with wearing(self.network, worn):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _worn(self, adapter: Wear) -> Names:
        return self.adapter if isinstance(adapter, EllipsisType) else adapter

    def fit(
        self, prompt: str | Sequence[int], settings: GenerationSettings, *, truncate: bool = False
    ) -> tuple[list[int], int]:
        """Return a prompt's token ids as the context window takes them, and how many were cut off at its start."""
        if self.network.kind == "encoder":
            raise UsageError(
                f"a prompt is for a model that writes, but {self.network.config.model_type} reads a text whole: what "
                "belongs behind its masks `loquela generate` and `loquela.generation.fill` tell"
            )
        ids = prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        kept = fit(ids, self.context_length, settings.max_new_tokens, truncate=truncate)
        return kept, len(ids) - len(kept)

    def save(self, directory: str | Path) -> None:
        """Write the model as a Hugging Face directory, whole or not at all; raises `StorageError`.

        Adapters are not part of it, unless they were merged: `loquela.peft.save_adapter` writes those.
        """
        extra = sentence_files(self.pooling, self.network.dim) if self.pooling else {}
        save_model(
            self.network, self._tokenizer, directory, generation_config=self.generation_config, extra_files=extra
        )
