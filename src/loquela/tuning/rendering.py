"""From examples to what is computed with: token ids, and which of them are to be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loquela.data.batch import IGNORED, Sample
from loquela.data.pairs import Conversation, Example, Examples, Labelled, Pair, Tagged, Text
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.generation.completion import prompt_ids
from loquela.generation.tagging import encode_words
from loquela.models.base import EncoderDecoder, Network
from loquela.prompting.templates import fill
from loquela.text.chat import Rendered, join, render, render_turns
from loquela.text.tokenizer import Tokenizer
from loquela.tuning.templates import Templates

__all__ = ["Item", "Renderer", "end_id"]

_SHOWN = 3
"""Rows that an error names; it counts the rest."""


@dataclass(frozen=True)
class Item:
    """A sample that the network can be trained on or scored by, and what its row was.

    `n_bytes` are the UTF-8 bytes of what is learnt; `rejected` is the sample of the worse answer to the same prompt;
    `label` the number of a classifier's label; `tagged` says that each label is one of a word.
    """

    row: int
    sample: Sample
    n_bytes: int
    rejected: Sample | None = None
    label: int | None = None
    task: int = 0
    tagged: bool = False

    @property
    def length(self) -> int:
        """Positions that the sample takes up."""
        source = 0 if self.sample.source is None else len(self.sample.source)
        return max(len(self.sample.inputs), source)


def end_id(tokenizer: Tokenizer, network: Network) -> int | None:
    """Return the token that ends a text: the tokenizer's EOS, else the first that the config names."""
    if tokenizer.eos_id is not None:
        return tokenizer.eos_id
    named = network.config.extra.get("eos_token_id")
    return named[0] if isinstance(named, list) else named


@dataclass
class Renderer:
    """Renders the examples of one file for one model. After `items`, `notes` has what is to be said aloud."""

    network: Network
    tokenizer: Tokenizer
    templates: Templates
    limit: int
    """Tokens of a sample."""
    too_long: str = "error"
    labels: Sequence[str] = ()
    task: int = 0
    notes: list[str] = field(default_factory=list)
    wordless: int = 0
    """Words of which the tokenizer keeps nothing: what label they have cannot be learnt."""

    def items(self, examples: Examples) -> list[Item]:
        """Render all examples; raises `DataError` that names what cannot be, `ContextWindowError` for long samples."""
        items: list[Item] = []
        empty: list[int] = []
        same: list[int] = []
        long: list[tuple[int, int]] = []
        for example in examples.rows:
            try:
                made = self._items(example)
            except (UsageError, DataError) as error:
                raise type(error)(f"{examples.path}, row {example.row}: {error}") from None
            for item in made:
                if (item.sample.labels == IGNORED).all():
                    empty.append(item.row)
                elif item.rejected is not None and np.array_equal(item.sample.inputs, item.rejected.inputs):
                    same.append(item.row)
                elif item.length > self.limit:
                    long.append((item.row, item.length))
                    if self.too_long == "truncate":
                        items.append(self._cut(item, examples))
                else:
                    items.append(item)
        if empty:
            raise DataError(f"{examples.path}, {_rows(empty)} must have something to learn, but every token is masked")
        if same:
            self.notes.append(
                f"{examples.path.name}: {len(same):,} of {len(examples):,} pairs have one answer twice and nothing to "
                f"prefer; they are left out ({_rows(same)})"
            )
        if long:
            self._say_long(long, examples)
        if self.wordless:
            self.notes.append(f"{examples.path.name}: {self.wordless:,} words have no token; their tags are left out")
            self.wordless = 0
        if not items:
            why = "".join(f"; {note}" for note in self.notes)
            raise DataError(f"{examples.path} must have samples to learn from, but none is left{why}")
        return items

    def prompt(self, example: Example) -> list[int]:
        """Return the ids that generation would start from, to have this example's answer written."""
        meaning = example.meaning
        if isinstance(meaning, Conversation):
            return render(meaning.messages[:-1], self._chat(), self.tokenizer)
        if isinstance(meaning, Pair | Labelled):
            return self._prompt(meaning)
        return prompt_ids(self.tokenizer, "")

    # -- one row

    def _items(self, example: Example) -> list[Item]:
        meaning = example.meaning
        if isinstance(meaning, Labelled) and self.network.kind == "encoder":
            return [self._classified(example.row, meaning)]
        if isinstance(meaning, Tagged):
            return [self._tagged(example.row, meaning)]
        if isinstance(meaning, Text):
            return self._pieces(example.row, meaning.text)
        if isinstance(self.network, EncoderDecoder):
            return [self._from_source(example.row, meaning)]
        if self.network.kind != "decoder":
            raise UsageError(
                f"an {self.network.kind} model must be tuned on texts with labels (text, label) or on words with tags "
                "(tokens, tags), but the rows are neither"
            )
        if isinstance(meaning, Conversation):
            return self._conversation(example.row, meaning)
        completion = meaning.label if isinstance(meaning, Labelled) else meaning.completion
        whole = join(self._prompt(meaning), self._completion(completion))
        rejected = None
        if isinstance(meaning, Pair) and meaning.rejected is not None:
            rejected = _shifted(join(self._prompt(meaning), self._completion(meaning.rejected)))
        return [Item(example.row, _shifted(whole), len(completion.encode()), rejected, task=self.task)]

    def _conversation(self, row: int, talk: Conversation) -> list[Item]:
        turns = render_turns(talk.messages, self._chat(), self.tokenizer)
        if talk.rejected is not None:  # of a preference, only the last answer is learnt
            worse = [*talk.messages[:-1], {"role": "assistant", "content": talk.rejected}]
            pair = [_last_turn(rows[-1]) for rows in (turns, render_turns(worse, self._chat(), self.tokenizer))]
            return [
                Item(
                    row,
                    _shifted(pair[0]),
                    len(talk.messages[-1]["content"].encode()),
                    _shifted(pair[1]),
                    task=self.task,
                )
            ]
        written = [len(m["content"].encode()) for m in talk.messages if m["role"] == "assistant"]
        if len(turns) == 1:
            return [Item(row, _shifted(turns[0]), sum(written), task=self.task)]
        if len(turns) != len(written):
            return [Item(row, _shifted(turn), max(1, self._bytes(turn)), task=self.task) for turn in turns]
        return [Item(row, _shifted(t), n, task=self.task) for t, n in zip(turns, written, strict=True)]

    def _prompt(self, meaning: Pair | Labelled) -> list[int]:
        fields = meaning.fields if isinstance(meaning, Pair) else {"text": meaning.text}
        text = fill(self.templates.prompt or "{prompt}", fields)
        if self.templates.chat is not None:
            return render([{"role": "user", "content": text}], self.templates.chat, self.tokenizer)
        ids = prompt_ids(self.tokenizer, text)
        bos = self.tokenizer.bos_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids  # the text brought its own

    def _completion(self, text: str) -> list[int]:
        end = end_id(self.tokenizer, self.network)
        ids = self.tokenizer.encode_continuations([text])[0]
        return ids if end is None else [*ids, end]

    def _classified(self, row: int, meaning: Labelled) -> Item:
        if meaning.label not in self.labels:
            raise DataError(f"the label must be one of {', '.join(self.labels)}, but is {meaning.label!r}")
        ids = np.array(self.tokenizer.encode(meaning.text), dtype=np.int64)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        labels[0] = number = self.labels.index(meaning.label)
        return Item(row, Sample(ids, labels), len(meaning.label.encode()), label=number, task=self.task)

    def _tagged(self, row: int, meaning: Tagged) -> Item:
        """Each word is labelled at its first token; the others are read, not learnt."""
        if self.network.kind != "encoder":
            raise UsageError(
                f"words with tags need an encoder-only model, but this is an {self.network.kind}: take a BERT"
            )
        encoded = encode_words(self.tokenizer, meaning.words)
        labels = np.full(len(encoded.ids), IGNORED, dtype=np.int64)
        for tag, place in zip(meaning.tags, encoded.places, strict=True):
            if tag not in self.labels:
                raise DataError(f"a tag must be one of {', '.join(self.labels)}, but is {tag!r}")
            if place is None:
                self.wordless += 1
            else:
                labels[place] = self.labels.index(tag)
        n_bytes = sum(len(tag.encode()) for tag in meaning.tags)
        return Item(row, Sample(np.array(encoded.ids, dtype=np.int64), labels), n_bytes, task=self.task, tagged=True)

    def _from_source(self, row: int, meaning: Conversation | Pair | Labelled) -> Item:
        assert isinstance(self.network, EncoderDecoder)
        if isinstance(meaning, Conversation):
            source = "\n".join(message["content"] for message in meaning.messages[:-1])
            completion = meaning.messages[-1]["content"]
        else:
            fields = meaning.fields if isinstance(meaning, Pair) else {"text": meaning.text}
            source = fill(self.templates.prompt or "{prompt}", fields)
            completion = meaning.label if isinstance(meaning, Labelled) else meaning.completion
        target = self.tokenizer.encode(completion)
        end = end_id(self.tokenizer, self.network)
        if end is not None and target[-1:] != [end]:
            target.append(end)
        labels = np.array(target, dtype=np.int64)
        inputs = np.array([self.network.start_token_id, *target[:-1]], dtype=np.int64)
        ids = np.array(self.tokenizer.encode(source), dtype=np.int64)
        return Item(row, Sample(inputs, labels, source=ids), len(completion.encode()), task=self.task)

    def _pieces(self, row: int, text: str) -> list[Item]:
        """A text is learnt whole; one that is longer than a sample becomes several, side by side."""
        if self.network.kind != "decoder":
            raise UsageError(f"a plain text can be learnt by a decoder only, but the model is an {self.network.kind}")
        end = end_id(self.tokenizer, self.network)
        ids = prompt_ids(self.tokenizer, text) + ([] if end is None else [end])
        step = self.limit
        cuts = [ids[first : first + step + 1] for first in range(0, len(ids) - 1, step)]
        if len(cuts) > 1 and not any("is longer than" in note for note in self.notes):
            self.notes.append(f"a text (row {row}) is longer than {step} tokens; such texts become several samples")
        share = len(text.encode()) / max(1, len(ids) - 1)
        return [
            Item(
                row,
                _shifted(Rendered(cut, [False] + [True] * (len(cut) - 1))),
                max(1, round(share * (len(cut) - 1))),
                task=self.task,
            )
            for cut in cuts
        ]

    def _chat(self) -> str:
        if self.templates.chat is None:
            raise UsageError("a conversation needs a chat template, but there is none; give one with --template")
        return self.templates.chat

    def _bytes(self, turn: Rendered) -> int:
        ids = [i for i, learnt in zip(turn.ids, turn.written, strict=True) if learnt]
        return len(self.tokenizer.decode(ids).encode())

    # -- samples that are too long

    def _cut(self, item: Item, examples: Examples) -> Item:
        """Cut a labelled text at its end, before its last token; a prompt at its start; an answer at its end."""
        sample, limit = item.sample, self.limit
        if item.label is not None or item.tagged:
            ids = np.concatenate([sample.inputs[: limit - 1], sample.inputs[-1:]])
            return _with(item, Sample(ids, np.concatenate([sample.labels[: limit - 1], sample.labels[-1:]])))
        if sample.source is not None:
            source = sample.source
            if len(source) > limit:
                source = np.concatenate([source[: limit - 1], source[-1:]])
            return _with(item, Sample(sample.inputs[:limit], sample.labels[:limit], source=source))
        kept = [_window(part, limit) for part in (sample, item.rejected) if part is not None]
        return _with(item, *kept)

    def _say_long(self, long: list[tuple[int, int]], examples: Examples) -> None:
        counted = f"{len(long):,} of {len(examples):,} samples are longer than {self.limit} tokens"
        if self.too_long == "error":
            raise ContextWindowError(
                f"{examples.path}: {counted}: "
                + "; ".join(f"row {row} has {length}" for row, length in long[:_SHOWN])
                + (f"; and {len(long) - _SHOWN:,} more" if len(long) > _SHOWN else "")
                + "; cut them (--truncate), leave them out (--drop-long), or give a larger max_seq_length if the "
                "context window allows"
            )
        what = "cut, prompts at their start and answers at their end" if self.too_long == "truncate" else "left out"
        self.notes.append(f"{examples.path.name}: {counted}; they are {what}")


def _shifted(row: Rendered) -> Sample:
    """Each position predicts the next token; where that one is not to be learnt, there is no loss."""
    ids = np.array(row.ids, dtype=np.int64)
    labels = np.where(np.array(row.written[1:], dtype=bool), ids[1:], IGNORED)
    return Sample(ids[:-1], labels)


def _last_turn(row: Rendered) -> Rendered:
    last = len(row.written) - 1 - row.written[::-1].index(False)
    return Rendered(row.ids, [index > last for index in range(len(row.ids))])


def _window(sample: Sample, limit: int) -> Sample:
    """Return `limit` positions: the last ones, but where the answer alone is longer, its first ones."""
    learnt = np.flatnonzero(sample.labels != IGNORED)
    first = min(max(0, len(sample.inputs) - limit), int(learnt[0]))
    return Sample(sample.inputs[first : first + limit], sample.labels[first : first + limit])


def _with(item: Item, sample: Sample, rejected: Sample | None = None) -> Item:
    return replace(item, sample=sample, rejected=rejected)


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (
        f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    )
