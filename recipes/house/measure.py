"""What the cards say of the models, measured on text that no training saw, with the files that are shipped."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import sacrebleu
import torch

from loquela.api import LanguageModel
from loquela.generation.decode import evaluating

sys.path.insert(0, str(Path(__file__).parent))
from prepare import DOG, held_out, held_out_apart, rows, words_prompt

__all__ = ["MEASURES", "Figures"]

Figures = dict[str, str]
SAMPLED, NEW = 20, 160
"""Completions of a measurement of what a model writes, and the most tokens of each; at the default settings."""


def decoder(model: LanguageModel, name: str, work: Path) -> Figures:
    """How well held-out texts are expected, and how much of what is written stands in the training text."""
    file = work / ("stories.jsonl" if name == "recurrent" else f"{name}.jsonl")
    texts = held_out(file)[:150]
    written = _written(model, [first_words(text) for text in texts], None)
    eights = {gram for text in held_out_apart(file)[0] for gram in _grams(text)}
    own = [gram for text, _ in written for gram in _grams(text)]
    ended = sum(end == "stop" for _, end in written)
    return _expected(model, texts) | {
        "eight words in a row that the training text has too": f"{sum(g in eights for g in own) / len(own):.0%}",
        f"of {len(written)} stories that it ended itself within {NEW} tokens": f"{ended}",
    }


def encoder(model: LanguageModel, name: str, work: Path) -> Figures:
    """How often a hidden word is found, words of one piece, one at a time."""
    rng, first, five, asked = random.Random(0), 0, 0, 0
    tokenizer = model.tokenizer
    for text in held_out(work / "stories.jsonl")[:250]:
        ids = tokenizer.encode(text)[:64]
        whole = [
            i
            for i in range(1, len(ids) - 1)
            if tokenizer.token(ids[i]).isalpha() and not tokenizer.token(ids[i + 1]).startswith("##")
        ]
        for place in rng.sample(whole, min(4, len(whole))):
            hidden = [*ids]
            hidden[place] = int(tokenizer.mask_id or 0)
            with evaluating(model.network):
                best = model.logits(torch.tensor(hidden))[0, place].topk(5).indices.tolist()
            first, five, asked = first + (best[0] == ids[place]), five + (ids[place] in best), asked + 1
    return {
        "hidden words found": f"{first / asked:.1%} of {asked:,}",
        "among the five most probable": f"{five / asked:.1%}",
    }


def translator(model: LanguageModel, name: str, work: Path) -> Figures:
    """BLEU and chrF, one reference for each sentence."""
    test = rows(work / f"{name}-test.jsonl")
    sources, references = [row["source"] for row in test], [[row["target"] for row in test]]
    figures: Figures = {}
    for how, beams in (("greedy", 1), ("4 beams", 4)):
        answers = [model.generate(s, max_new_tokens=60, num_beams=beams, do_sample=False).text.strip() for s in sources]
        bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
        figures[f"BLEU, {how}"] = f"{bleu.corpus_score(answers, references).score:.1f}"
        figures[f"chrF, {how}"] = f"{chrf.corpus_score(answers, references).score:.1f}"
    same = sum(answer == target for answer, target in zip(answers, references[0], strict=True))
    return figures | {"word for word as the reference": f"{same / len(test):.1%}", "sentences": f"{len(test):,}"}


def words(model: LanguageModel, name: str, work: Path) -> Figures:
    """How often what was asked for comes up, in what the adapter and what the base writes."""
    heroes = Counter(re.split("[:,.] ?", row["prompt"])[1] for row in rows(work / f"{name}.jsonl"))
    asked = sorted(hero for hero, times in heroes.items() if times > 4)
    random.Random(1).shuffle(asked)
    asked = asked[:SAMPLED]
    shares = []
    for adapter in (None, name):
        told = _written(model, [words_prompt([hero]) for hero in asked], adapter)
        used = sum(bool(re.search(rf"\b{hero}", text)) for hero, (text, _) in zip(asked, told, strict=True))
        shares.append(f"{used} of {len(asked)}")
    return _both(model, name, work, "completion") | _change("stories that speak of the one thing asked for", shares)


def dogs(model: LanguageModel, name: str, work: Path) -> Figures:
    """How often a dog comes into what is written, by the adapter and by the base."""
    openings = ["Once upon a time", "One day"] * (SAMPLED // 2)
    met = [
        f"{sum(bool(DOG.search(text)) for text, _ in _written(model, openings, adapter))} of {SAMPLED}"
        for adapter in (None, name)
    ]
    return _both(model, name, work, "text") | _change("stories with a dog", met)


def text(model: LanguageModel, name: str, work: Path) -> Figures:
    """How well held-out texts are expected."""
    return _both(model, name, work, "text")


MEASURES: dict[str, Callable[[LanguageModel, str, Path], Figures]] = {
    f.__name__: f for f in (decoder, encoder, translator, words, dogs, text)
}


def first_words(text: str, count: int = 4) -> str:
    """Return the beginning of a text."""
    return " ".join(text.split()[:count])


def _expected(model: LanguageModel, texts: Iterable[str]) -> Figures:
    scores = [model.score(text) for text in texts]
    tokens, log_prob = sum(s.tokens for s in scores), sum(s.log_prob for s in scores)
    bits = -log_prob / math.log(2)
    return {
        "bits per byte": f"{bits / sum(s.n_bytes for s in scores):.3f}",
        "perplexity per token": f"{2 ** (bits / tokens):.1f}",
        "texts, tokens": f"{len(scores):,}, {tokens:,}",
    }


def _both(model: LanguageModel, name: str, work: Path, field: str) -> Figures:
    """Bits per byte of the test rows, of the base and with the adapter; a prompt before them is given."""
    test = rows(work / f"{name}-test.jsonl")
    found = []
    for adapter in (None, name):
        bits, size = 0.0, 0
        for row in test:
            scored = model.score(row.get("prompt", "") + row[field], adapter=adapter)
            given = len(model.tokenizer.encode(row["prompt"])) if "prompt" in row else 1
            bits -= float(scored.log_probs[given:].sum()) / math.log(2)
            size += len(row[field].encode())
        found.append(f"{bits / size:.3f}")
    return _change("bits per byte", found) | {"texts": f"{len(test):,}"}


def _change(what: str, found: list[str]) -> Figures:
    return {f"{what}: stories alone → with the adapter": " → ".join(found)}


def _written(model: LanguageModel, prompts: list[str], adapter: str | None) -> list[tuple[str, str]]:
    """What is written after prompts, and how each ended."""
    some = [model.generate(p, max_new_tokens=NEW, seed=i, adapter=adapter) for i, p in enumerate(prompts[:SAMPLED])]
    return [(one.text, one.finish_reason) for one in some]


def _grams(text: str, n: int = 8) -> list[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return list(zip(*(found[i:] for i in range(n)), strict=False))
