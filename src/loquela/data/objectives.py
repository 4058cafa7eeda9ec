"""What a model learns to predict: an objective turns a row of tokens into a sample.

An objective is one function (tokens, generator, special, options …) → `Sample`; `@objective` enters it under its name.
The generator belongs to the sample, so whatever is drawn is a pure function of (seed, step): the same after an
interruption, and however many machines share a batch. Options are the function's keyword-only arguments; a recipe
gives them as `objective_options`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from loquela.data.batch import IGNORED, Batch, Ids, Sample, collate
from loquela.data.corruption import denoised, middles_last, spans_out
from loquela.data.special import FIM, SENTINEL, Reader, Special
from loquela.errors import RecipeError, UsageError, nearest

__all__ = ["OBJECTIVES", "Batch", "Objective", "Pair", "Sample", "causal", "collate"]

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
_END = ("<|endoftext|>",)


class Pair(NamedTuple):
    """The token ids of a source and of its target."""

    source: Ids
    target: Ids


@dataclass(frozen=True)
class Objective:
    """An objective by its name: who can learn it, and what a tokenizer that is trained for it must have."""

    name: str
    function: Callable[..., Sample]
    readers: tuple[Reader, ...]
    special_tokens: tuple[str, ...]
    takes_pairs: bool = False
    is_whole_text: bool = False
    """Whether each token of a text is predicted once, from all before it: then bits per byte mean something."""
    writes: bool = False
    """Whether a model that learnt it goes on from a prompt."""

    def __call__(self, tokens: Any, generator: np.random.Generator, special: Special, **options: Any) -> Sample:
        """Make a sample of `tokens`, one more than the sample is long; for pairs, of a `Pair`."""
        return self.function(tokens, generator, special, **options)

    @property
    def summary(self) -> str:
        """The first line of what the function says of itself."""
        return (self.function.__doc__ or "").split("\n")[0]

    @cached_property
    def _options(self) -> type[BaseModel]:
        hints = get_type_hints(self.function, include_extras=True)
        keyword_only = [p for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        fields: Any = {p.name: (hints[p.name], p.default) for p in keyword_only}
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, the `given` ones checked; raises `RecipeError`."""
        known = list(self._options.model_fields)
        for key in given:
            if key not in known:
                raise RecipeError(
                    f"objective_options of {self.name} must be of {', '.join(known) or 'none'}, but one is {key!r}"
                    f"{nearest(str(key), known)}"
                )
        try:
            return self._options(**given).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(
                f"objective_options.{first['loc'][0]}: {first['msg'][:1].lower()}{first['msg'][1:]}, but is "
                f"{first['input']!r}"
            ) from None


OBJECTIVES: dict[str, Objective] = {}


def objective(
    *readers: Reader,
    special_tokens: Iterable[str] = (),
    takes_pairs: bool = False,
    is_whole_text: bool = False,
    writes: bool = False,
) -> Callable[[Callable[..., Sample]], Objective]:
    """Enter a function into `OBJECTIVES` under its name."""

    def entered(function: Callable[..., Sample]) -> Objective:
        made = Objective(
            function.__name__, function, readers, (*_END, *special_tokens), takes_pairs, is_whole_text, writes
        )
        OBJECTIVES[made.name] = made
        return made

    return entered


@objective("decoder", is_whole_text=True, writes=True)
def causal(tokens: Ids, generator: np.random.Generator, special: Special) -> Sample:
    """Predict each next token from those before it (Radford et al., 2018)."""
    return Sample(tokens[:-1], tokens[1:])


@objective("encoder", special_tokens=("<mask>", "<pad>"))
def masked(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    ratio: Part = 0.15,
    mask_share: Share = 0.8,
    random_share: Share = 0.1,
    whole_words: bool = False,
) -> Sample:
    """Find the tokens that were hidden, from both sides (BERT, arXiv:1810.04805, 3.1).

    `ratio` of a row is predicted: of that `mask_share` becomes the mask token, `random_share` another token, the rest
    stays. Another part of the row is chosen each time it is seen (RoBERTa, arXiv:1907.11692, 4.1). `whole_words`
    chooses words, all tokens of which are predicted. What the tokenizer puts around a text stands around the row.
    """
    if special.mask is None:
        raise UsageError("the objective masked must have a tokenizer with a mask token ([MASK], <mask>): train one")
    if mask_share + random_share > 1:
        raise UsageError(f"mask_share and random_share must add up to at most 1, but are {mask_share}, {random_share}")
    inputs = _framed(tokens[:-1], special)
    labels = np.full(len(inputs), IGNORED)
    may = np.flatnonzero(~special.is_mark[inputs])
    if not len(may):
        return Sample(inputs, labels)
    count = max(1, round(ratio * len(may)))
    chosen = _words(inputs, may, count, generator, special) if whole_words else generator.permutation(may)[:count]
    labels[chosen] = inputs[chosen]
    fate = generator.random(len(chosen))
    others = special.ordinary[generator.integers(len(special.ordinary), size=len(chosen))]
    inputs[chosen] = np.where(
        fate < mask_share, special.mask, np.where(fate < mask_share + random_share, others, inputs[chosen])
    )
    return Sample(inputs, labels)


def _words(inputs: Ids, may: Ids, count: int, generator: np.random.Generator, special: Special) -> Ids:
    """Choose whole words of `count` tokens together; one that would be too many is passed over, unless it is all."""
    words = special.words(inputs)[may]
    starts = np.flatnonzero(np.diff(words, prepend=-1))
    parts = np.split(may, starts[1:])
    chosen: list[Ids] = []
    for index in generator.permutation(len(parts)):
        if len(parts[index]) <= count or not chosen:
            chosen.append(parts[index])
            count -= len(parts[index])
        if count <= 0:
            break
    return np.concatenate(chosen)


@objective("encoder-decoder", "decoder", special_tokens=("<pad>", *map(SENTINEL.format, range(100))))
def span_corruption(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    ratio: Part = 0.15,
    mean_span: Annotated[float, Field(ge=1)] = 3.0,
) -> Sample:
    """Write the spans that were taken out, each after the sentinel that stands for it (T5, arXiv:1910.10683, 3.1.4).

    `ratio` of the text goes, in spans of `mean_span` tokens on average. The target names one sentinel more than there
    are spans, then the end token. A decoder reads the source first; the loss is on the target only.
    """
    end, around = _end(special), len(special.before) + len(special.after)
    size = len(tokens) - 1
    joined = special.reader == "decoder"
    source, target = spans_out(
        tokens[:-1],
        generator,
        special,
        source_room=size - around,
        target_room=size - len(end),
        room=(size + 1 if joined else 2 * size) - len(end),
        ratio=ratio,
        mean_span=mean_span,
    )
    return _read_and_write(source, np.concatenate((target, end)), special)


@objective("encoder-decoder", special_tokens=("<mask>", "<pad>"))
def denoising(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    ratio: Part = 0.3,
    mean_span: Annotated[float, Field(gt=0, le=100)] = 3.0,
    permute_sentences: bool = True,
) -> Sample:
    """Write the whole text, of which a noisy form is read (BART, arXiv:1910.13461, 2.2).

    Spans of Poisson length, `mean_span` on average and also empty ones, become one mask token each, until `ratio` of
    the tokens is gone; the sentences are shuffled.
    """
    if special.mask is None:
        raise UsageError("the objective denoising must have a tokenizer with a mask token ([MASK], <mask>): train one")
    end, around = _end(special), len(special.before) + len(special.after)
    room = len(tokens) - 1 - around
    text = tokens[: min(room, len(tokens) - 1 - len(end))]
    source = denoised(
        text,
        generator,
        special,
        room=room,
        ratio=ratio,
        mean_span=mean_span,
        permute_sentences=permute_sentences,
    )
    return _read_and_write(source, np.concatenate((text, end)), special)


@objective("decoder", "encoder-decoder", writes=True)
def prefix_lm(tokens: Ids, generator: np.random.Generator, special: Special) -> Sample:
    """Predict the rest of a text whose beginning is given (T5, arXiv:1910.10683, 3.2.3): loss on the rest only.

    An encoder reads the beginning in both directions. A decoder reads it from left to right, as it will read a prompt:
    its mask stays causal, so that its cache stays valid.
    """
    border = int(generator.integers(1, len(tokens) - 1)) if len(tokens) > 2 else 1
    if special.reader == "encoder-decoder":
        room = len(tokens) - 1 - len(special.before) - len(special.after)
        return _read_and_write(tokens[: min(border, room)], tokens[min(border, room) :], special)
    labels = tokens[1:].copy()
    labels[: border - 1] = IGNORED
    return Sample(tokens[:-1], labels)


@objective("decoder", special_tokens=FIM[0], writes=True)
def fim(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    rate: Share = 0.5,
    spm_rate: Share = 0.5,
) -> Sample:
    """Fill in the middle: a part of `rate` of the documents is moved to their end (arXiv:2207.14255).

    A row is cut into its documents; of each the middle is cut out at two places drawn between tokens. Then it is
    written as `<prefix> … <suffix> … <middle> …` (PSM), or in `spm_rate` of the cases as `<prefix> <suffix> …
    <middle> … …`, suffix first (SPM). Each token carries loss, as in the paper.
    """
    moved = middles_last(tokens, generator, special, rate=rate, spm_rate=spm_rate)
    return Sample(moved[:-1], moved[1:])


@objective("encoder-decoder", special_tokens=("<pad>",), takes_pairs=True, writes=True)
def pairs(pair: Pair, generator: np.random.Generator, special: Special) -> Sample:
    """Write the target that belongs to a source: a translation, a summary (arXiv:1409.3215)."""
    return _read_and_write(pair.source, np.concatenate((pair.target, _end(special))), special)


def _end(special: Special) -> Ids:
    return np.array([] if special.eos is None else [special.eos], dtype=np.int64)


def _framed(tokens: Ids, special: Special) -> Ids:
    """As many of the tokens as leave room for what the tokenizer puts around a text, and that."""
    room = len(tokens) - len(special.before) - len(special.after)
    return np.concatenate((special.before, tokens[:room], special.after)).astype(np.int64)


def _read_and_write(source: Ids, target: Ids, special: Special) -> Sample:
    """The target is written from the start token on; a decoder goes on from the source instead."""
    if special.reader == "encoder-decoder":
        assert special.start is not None
        read = np.concatenate((special.before, source, special.after)).astype(np.int64)
        return Sample(np.concatenate(([special.start], target[:-1])), target, read)
    whole = np.concatenate((source, target))
    labels = whole[1:].copy()
    labels[: len(source) - 1] = IGNORED
    return Sample(whole[:-1], labels)
