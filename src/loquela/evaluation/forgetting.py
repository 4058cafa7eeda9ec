"""What a model has forgotten: texts that it knew, scored before, during and after it learnt something else.

The unit is bits per byte of the probe; its change is read against the noise: how far two scores of the unchanged model
lie apart when the probe's items are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from loquela.errors import DataError, NonFiniteError
from loquela.generation.completion import complete
from loquela.generation.decode import evaluating
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = ["Forgetting", "ProbeText", "Stage", "change", "noise_floor", "own_texts", "score_texts", "texts_of"]

Numbers = npt.NDArray[np.float64]
RESAMPLES = 1000
_SEED = 20
_HEAD_ROWS = 512


@dataclass(frozen=True)
class ProbeText:
    """A text as token ids, of which the first is given; `n_bytes` of the rest."""

    ids: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True)
class Stage:
    """The scores of every probe at one time, in bits per byte."""

    step: int
    bits: dict[str, float]


@dataclass
class Forgetting:
    """What `loquela tune` says of forgetting. `before`, `after` and `delta` are bits per byte of the first probe.

    `tasks` holds the same for each of the others; `noise` is the floor below which a delta says nothing.
    """

    before: float | None = None
    after: float | None = None
    delta: float | None = None
    ci95: list[float] | None = None
    noise: float | None = None
    probe: str | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    similarity: float | None = None
    """Of an encoder, which has no language to forget: mean cosine between its hidden states before and after."""

    @property
    def lost(self) -> bool:
        """Whether any probe lost more than the noise."""
        found = [(self.delta, self.noise), *((t["delta"], t["noise"]) for t in self.tasks.values())]
        return any(delta is not None and noise is not None and delta > noise for delta, noise in found)

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        own = {name: getattr(self, name) for name in ("before", "after", "delta", "ci95", "noise", "probe", "tasks")}
        if self.similarity is not None:
            own["similarity"] = self.similarity
        return own | {"stages": [{"step": stage.step, **stage.bits} for stage in self.stages]}


def own_texts(network: Network, tokenizer: Tokenizer, *, tokens: int, length: int, seed: int) -> list[ProbeText]:
    """Let a model write texts of at most `length` tokens, at temperature 1, until `tokens` are written.

    They are what it holds likely; to find them less likely later is to have forgotten.
    """
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    prompt = [0 if start is None else start]
    length = min(length, network.context_length - 1)
    texts: list[ProbeText] = []
    written = tries = 0
    while written < tokens and tries < 4 * tokens:
        settings = GenerationSettings(
            max_new_tokens=length, temperature=1.0, top_k=0, top_p=1.0, seed=(seed << 20) + tries
        )
        ids = [piece.id for piece in complete(network, tokenizer, prompt, settings).tokens]
        tries += 1
        if n_bytes := len(tokenizer.decode(ids).encode()):
            texts.append(ProbeText((*prompt, *ids), n_bytes))
            written += len(ids)
    if not texts:
        raise DataError(
            "the base must write some text to be probed with, but writes none; give texts with --probe FILE"
        )
    return texts


def texts_of(tokenizer: Tokenizer, text: str, *, length: int, at_most: int) -> list[ProbeText]:
    """Cut a text to probes of `length` tokens, spread over all of it, at most so many."""
    ids = tokenizer.encode(text)
    starts = range(0, max(1, len(ids) - 1), length)
    chosen = [starts[i * len(starts) // at_most] for i in range(at_most)] if len(starts) > at_most else list(starts)
    found = [ids[start : start + length + 1] for start in chosen]
    return [
        ProbeText(tuple(part), n_bytes)
        for part in found
        if len(part) > 1 and (n_bytes := len(tokenizer.decode(part[1:]).encode()))
    ]


def score_texts(network: Network, texts: Sequence[ProbeText], *, batch_size: int = 16) -> list[Numbers]:
    """Return for each text the nats of each of its tokens but the first; what is worn stays worn."""
    found: list[Numbers] = [np.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    device = next(network.parameters()).device
    with evaluating(network):
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            width = max(len(texts[i].ids) for i in rows)
            tokens = torch.zeros(len(rows), width, dtype=torch.int64)
            for row, i in enumerate(rows):  # filled up on the right, which a causal network never sees
                tokens[row, : len(texts[i].ids)] = torch.tensor(texts[i].ids)
            tokens = tokens.to(device)
            hidden = network.hidden(tokens[:, :-1])
            for row, i in enumerate(rows):
                n = len(texts[i].ids) - 1
                nats = []
                for start in range(0, n, _HEAD_ROWS):
                    stop = min(start + _HEAD_ROWS, n)
                    logits = network.head(hidden[row, start:stop]).float()
                    nats.append(F.cross_entropy(logits, tokens[row, start + 1 : stop + 1], reduction="none").double())
                found[i] = torch.cat(nats).cpu().numpy()
    if not all(np.isfinite(nats).all() for nats in found):
        raise NonFiniteError("the score of a probe must be a number, but is not: the model's weights are damaged")
    return found


def bits_per_byte(nats: Sequence[float] | Numbers, n_bytes: Sequence[float] | Numbers) -> float:
    """Return nats summed over items, as bits for each of their bytes."""
    return float(np.sum(nats) / math.log(2) / np.sum(n_bytes))


def noise_floor(nats: Sequence[float] | Numbers, n_bytes: Sequence[float] | Numbers) -> float:
    """Return the 95 % point of |difference| between two scores of one model on items drawn anew each time.

    `nats` and `n_bytes` are per item. A pure function of them.
    """
    first, second = (_resampled(np.asarray(nats), np.asarray(n_bytes), _SEED + i) for i in (0, 1))
    return float(np.quantile(np.abs(first - second), 0.95))


def change(
    before: Sequence[float] | Numbers, after: Sequence[float] | Numbers, n_bytes: Sequence[float] | Numbers
) -> tuple[float, list[float]]:
    """Return after minus before in bits per byte, and its 95 % interval; the items stay paired."""
    gaps = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    low, high = np.quantile(_resampled(gaps, np.asarray(n_bytes), _SEED), (0.025, 0.975))
    return bits_per_byte(gaps, n_bytes), [float(low), float(high)]


def _resampled(nats: Numbers, n_bytes: Numbers, seed: int) -> Numbers:
    draws = np.random.default_rng(seed).integers(0, len(nats), (RESAMPLES, len(nats)))
    found: Numbers = nats[draws].sum(1) / math.log(2) / n_bytes[draws].sum(1)
    return found


def matrix(stages: Sequence[Stage]) -> Mapping[str, list[float]]:
    """Return the scores of each probe over the stages."""
    return {name: [stage.bits[name] for stage in stages] for name in (stages[0].bits if stages else ())}
