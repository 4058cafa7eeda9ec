"""What the base could do, scored before, during and after: its own text by default, and files of texts or tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from loquela.data.batch import IGNORED, Sample
from loquela.data.pairs import Text, read_examples
from loquela.errors import DataError, UsageError
from loquela.evaluation.forgetting import (
    Forgetting,
    ProbeText,
    Stage,
    bits_per_byte,
    change,
    noise_floor,
    own_texts,
    score_texts,
    texts_of,
)
from loquela.generation.decode import evaluating
from loquela.tuning.batching import Assembler
from loquela.tuning.losses import Anchor
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.rendering import Item, Renderer
from loquela.tuning.scoring import score_items
from loquela.tuning.subject import Subject
from loquela.tuning.templates import templates_for

__all__ = ["OWN", "Probes", "probes_for"]

Numbers = npt.NDArray[np.float64]
OWN = "own text"
"""The name of the probe that the base writes."""
LENGTH = 32
"""Tokens of one text of a probe, at most: many short ones tell more surely what changed than a few long ones."""
LEAST = 8
"""Texts that the base writes at least: how much of a change is noise is told by how they differ."""
AT_MOST = 64
"""Items of one probe."""
_ROWS = 4
"""Texts that one step is anchored on."""


@dataclass
class Probes:
    """Texts and items by the name of their probe, and the scores of the base."""

    subject: Subject
    assembler: Assembler
    texts: dict[str, list[ProbeText]] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    anchors: list[ProbeText] = field(default_factory=list)
    """Texts of the same kinds that are not measured, for a run that must stay near the base."""
    similar: list[Item] = field(default_factory=list)
    """What an encoder's hidden states are compared on."""
    before: dict[str, Numbers] = field(default_factory=dict)
    tokens_before: dict[str, list[Numbers]] = field(default_factory=dict)

    def score(self) -> tuple[dict[str, Numbers], dict[str, list[Numbers]]]:
        """Return nats per item of each probe, and per token of each text, with what the network wears."""
        network = self.subject.network
        tokens = {name: score_texts(network, texts) for name, texts in self.texts.items()}
        found = {name: np.array([nats.sum() for nats in rows]) for name, rows in tokens.items()}
        for name, items in self.items.items():
            scores = score_items(network, items, self.assembler)
            assert scores is not None
            found[name] = scores.nats
        return found, tokens

    def score_base(self) -> None:
        """Score the base once."""
        if self.subject.is_adapter:
            with self.subject.untuned():
                self.before, self.tokens_before = self.score()
        else:
            self.before, self.tokens_before = self.score()

    def n_bytes(self, name: str) -> Numbers:
        """Return the bytes of each item of a probe."""
        items: Sequence[ProbeText | Item] = self.texts[name] if name in self.texts else self.items[name]
        return np.array([item.n_bytes for item in items], dtype=np.float64)

    def stage(self, step: int, nats: Mapping[str, Numbers]) -> Stage:
        """Return the scores in bits per byte."""
        return Stage(step, {name: bits_per_byte(found, self.n_bytes(name)) for name, found in nats.items()})

    def delta(self, nats: Mapping[str, Numbers]) -> float:
        """Return how many bits per byte of the first probe are lost."""
        name = next(iter(self.before))
        return bits_per_byte(nats[name] - self.before[name], self.n_bytes(name))

    def account(self, nats: Mapping[str, Numbers], stages: list[Stage]) -> Forgetting:
        """Return what was forgotten."""
        account = Forgetting(stages=stages)
        for index, (name, before) in enumerate(self.before.items()):
            n_bytes = self.n_bytes(name)
            delta, ci95 = change(before, nats[name], n_bytes)
            first, last = bits_per_byte(before, n_bytes), bits_per_byte(nats[name], n_bytes)
            noise = noise_floor(before, n_bytes)
            if index == 0:
                account.before, account.after, account.delta = first, last, delta
                account.ci95, account.noise, account.probe = ci95, noise, name
            else:
                account.tasks[name] = {"before": first, "after": last, "delta": delta, "ci95": ci95, "noise": noise}
        return account

    def anchor(self, step: int) -> Anchor:
        """Return the texts that a step is anchored on."""
        rows = [self.anchors[(step * _ROWS + i) % len(self.anchors)] for i in range(min(_ROWS, len(self.anchors)))]
        samples = []
        for text in rows:
            ids = np.array(text.ids[:-1], dtype=np.int64)
            samples.append(Sample(ids, np.full_like(ids, IGNORED), segments=np.zeros_like(ids)))
        batch = self.assembler.together(samples)
        return Anchor(batch.inputs, batch.labels, segments=batch.segments)

    def hidden_means(self) -> torch.Tensor:
        """Return the mean hidden state of each text that an encoder is compared on (n, dim)."""
        network = self.subject.network
        found = torch.zeros(len(self.similar), network.dim)
        with evaluating(network):
            for batch, numbers in self.assembler.numbered([item.sample for item in self.similar]):
                hidden = network.hidden(batch.inputs, **batch.arguments)
                real = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.padding is None else batch.padding
                found[numbers] = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return found


def probes_for(
    recipe: TuneRecipe, subject: Subject, assembler: Assembler, held: Sequence[Item], say: Callable[[str], None]
) -> Probes:
    """Make the probes of a recipe; raises `DataError` and `UsageError` for files that cannot be used."""
    probes = Probes(subject, assembler)
    kind = subject.network.kind
    length = max(2, min(LENGTH, subject.room - 1, recipe.probe_tokens // LEAST))
    with subject.untuned() as base:
        if kind == "encoder":
            probes.similar = list(held)[:AT_MOST]
            if recipe.probe:
                raise UsageError("a probe must be scored by a model that writes; an encoder is compared by its states")
            if recipe.max_forget is not None:
                raise UsageError(
                    "max_forget needs a model that writes, whose bits can be counted, but this is an encoder"
                )
            return probes
        for file in recipe.probe:
            _read(file, recipe, subject, probes, say)
        if kind == "decoder" and not recipe.probe:
            say(f"the base writes {recipe.probe_tokens} tokens, to see later what it has forgotten")
            probes.texts[OWN] = own_texts(
                base, subject.tokenizer, tokens=recipe.probe_tokens, length=length, seed=recipe.seed
            )
        if recipe.max_forget is not None and not probes.anchors:
            if kind != "decoder":
                raise UsageError("max_forget needs a model that writes from left to right, but this is an " + kind)
            probes.anchors = own_texts(
                base, subject.tokenizer, tokens=recipe.probe_tokens, length=length, seed=recipe.seed + 1
            )
    if not probes.texts and not probes.items:
        say("forgetting is not measured: this model has no text of its own to be probed with; give --probe FILE")
    return probes


def _read(file: str, recipe: TuneRecipe, subject: Subject, probes: Probes, say: Callable[[str], None]) -> None:
    """Read one file: texts, which are cut up, or rows of a task."""
    examples = read_examples(file, encoding=recipe.encoding, skip_bad_rows=recipe.skip_bad_rows)
    name = Path(file).name.split(".")[0]
    if name in probes.texts or name in probes.items:
        raise UsageError(f"each probe must have a file name of its own, but {name!r} is given twice")
    say(f"probe {name}: {examples.notes[0]}")
    if examples.form == "text":
        if subject.network.kind != "decoder":
            raise UsageError(f"the probe {file} must have prompts and completions, but is a plain text")
        per_row = max(1, 2 * AT_MOST // len(examples))
        cut = [
            part
            for row in examples.rows[: 2 * AT_MOST]
            if isinstance(row.meaning, Text)
            for part in texts_of(
                subject.tokenizer, row.meaning.text, length=min(LENGTH, subject.room - 1), at_most=per_row
            )
        ]
        if len(cut) < 2:
            raise DataError(f"the probe {file} must have at least two stretches of text, but has {len(cut)}")
        if recipe.max_forget is not None:  # what is measured is never what is anchored on
            probes.anchors += cut[1::2]
            cut = cut[0::2]
        probes.texts[name] = cut
        return
    templates = templates_for(examples, None, subject.tokenizer, bare=subject.network.kind != "decoder")
    renderer = Renderer(subject.network, subject.tokenizer, templates, subject.room, "drop")
    probes.items[name] = renderer.items(examples)[: 4 * AT_MOST]
    for note in renderer.notes:
        say(note)
