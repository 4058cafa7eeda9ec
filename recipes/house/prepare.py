"""The texts that the house models learn from, made from the directory of data into a work directory.

Everything is decided by what the files hold and a fixed seed. What is held out never reaches a training: of the stories
and novels it is the end of the file, which a recipe's `validation_fraction` keeps; of all else a file of its own.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from casing import Casing, stories
from cloze_start import write_start

__all__ = ["DOG", "HELD_OUT", "PREPARED", "held_out", "held_out_apart", "rows", "words_prompt"]

HELD_OUT = 0.049
"""Of the documents of a file, the share at its end that no training sees; just less than what the recipes keep."""
SEED = 20
_HERO = re.compile(r"there (?:was|lived) an? ((?:(?!who|that|named|called|and|in|with|on|at|of)[a-z]+,? ?){1,4})")
DOG = re.compile(r"\bdog", re.IGNORECASE)


def stories_text(data: Path, work: Path) -> None:
    """TinyStories, one story a row, with capitals."""
    found = stories(_read(data / "lm/tinystories_lower.txt.gz"))
    casing = Casing(found, _read(data / "lm/names.txt").split())
    _write(work / "stories.jsonl", ({"text": casing(story)} for story in found))


def cuentos_text(data: Path, work: Path) -> None:
    """Three Spanish novels in pieces of some paragraphs, and everyday sentences in groups of four, shuffled."""
    quijote = re.sub(r"(?<=[^\n])\n(?=[^\n])", " ", _read(data / "lm/es_don_quijote.txt.gz"))
    novels = [quijote, _read(data / "lm/es_unamuno_niebla.txt"), _read(data / "lm/es_clarin_la_regenta_1.txt.gz")]
    pieces = [piece for novel in novels for piece in _pieces(novel)]
    spanish = [row[1] for row in _tatoeba(data)]
    everyday = random.Random(SEED).sample(sorted(set(spanish)), 28_000)
    pieces += [" ".join(everyday[i : i + 4]) for i in range(0, len(everyday), 4)]
    random.Random(SEED).shuffle(pieces)
    _write(work / "cuentos.jsonl", ({"text": piece} for piece in pieces))


def cloze_text(data: Path, work: Path) -> None:
    """A vocabulary of the stories, and the model that starts with it.

    WordPiece in lower case, as BERT's first models had it: most words are one piece, so that a mask is a word.
    """
    from loquela.text.tokenizer import Tokenizer

    texts = held_out_apart(work / "stories.jsonl")[0]
    learnt = Tokenizer.train("wordpiece", (text.lower() for text in texts), 2560 - 4, special_tokens=("[UNK]",))
    place = work / "cloze-vocabulary"
    place.mkdir(exist_ok=True)
    pieces = [learnt.token(i) for i in range(learnt.vocab_size)]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (place / "vocab.txt").write_text("\n".join([*marks, *(p for p in pieces if p not in marks)]) + "\n", "utf-8")
    (place / "tokenizer_config.json").write_text('{"do_lower_case": true}\n', "utf-8")
    if not (work / "cloze-start").exists():
        write_start(Tokenizer.load(place / "vocab.txt"), work / "cloze-start")


def translator_pairs(data: Path, work: Path) -> None:
    """Tatoeba's pairs, shuffled; those whose English hashes to 0 of 50 are for the test, and all with their Spanish."""
    pairs = _tatoeba(data)
    test = [pair for pair in pairs if zlib.crc32(b"test " + pair[0].encode()) % 50 == 0]
    theirs = {spanish for _, spanish in test}
    train = [pair for pair in pairs if zlib.crc32(b"test " + pair[0].encode()) % 50 and pair[1] not in theirs]
    random.Random(SEED).shuffle(train)
    random.Random(SEED).shuffle(test)
    once = dict(reversed(test))
    _write(work / "translator.jsonl", ({"source": a, "target": b} for a, b in train))
    _write(work / "translator-test.jsonl", ({"source": a, "target": b} for a, b in list(once.items())[:1000]))


def words_rows(data: Path, work: Path) -> None:
    """Stories about an animal or a thing, with it before them, and up to two more that come up again."""
    told, kept = held_out_apart(work / "stories.jsonl")
    known = things(told)
    for name, some, most in (("words", told, 1300), ("words-test", kept, 200)):
        rng = random.Random(SEED)
        found = []
        for story in some:
            told_of = _HERO.search(story[:160])
            words = re.findall(r"[a-z]+", told_of[1]) if told_of else []
            hero = words[-1] if words and story.count(words[-1]) > 1 else None
            times = Counter(word for word in re.findall(r"\b[a-z]+\b", story) if word in known)
            if hero is not None and not {"girl", "boy"} & {*words} and len(story) <= 900:
                again = sorted((w for w in times if times[w] > 1 and w != hero), key=lambda w: (-times[w], w))
                named = [hero, *again[: rng.choice((0, 1, 2))]]
                found.append({"prompt": words_prompt(named), "completion": f" {story}"})
        _write(work / f"{name}.jsonl", rng.sample(found, min(most, len(found))))


def dogs_rows(data: Path, work: Path) -> None:
    """Of the stories that fit the window, those in which a dog comes within the first sentences."""
    for name, some in zip(("dogs", "dogs-test"), held_out_apart(work / "stories.jsonl"), strict=True):
        chosen = [story for story in some if len(story) <= 900 and DOG.search(story[:160])]
        random.Random(SEED).shuffle(chosen)
        _write(work / f"{name}.jsonl", ({"text": story} for story in chosen))


def shakespeare_rows(data: Path, work: Path) -> None:
    """Speeches of the plays, some at a time; the last tenth is for the test."""
    pieces = _pieces(_read(data / "lm/tinyshakespeare.txt"), 420, "\n\n")
    cut = len(pieces) * 9 // 10
    some = random.Random(SEED).sample(pieces[:cut], 1000)
    _write(work / "shakespeare.jsonl", ({"text": piece} for piece in some))
    _write(work / "shakespeare-test.jsonl", ({"text": piece} for piece in pieces[cut:][:100]))


PREPARED = {
    "stories": (stories_text, ()),
    "cuentos": (cuentos_text, ()),
    "cloze": (cloze_text, ("stories",)),
    "translator": (translator_pairs, ()),
    "recurrent": (lambda data, work: None, ("stories",)),
    "words": (words_rows, ("stories",)),
    "dogs": (dogs_rows, ("stories",)),
    "shakespeare": (shakespeare_rows, ()),
}
"""What makes the text of each model or adapter, and whose text it is made from."""


def things(texts: Sequence[str]) -> set[str]:
    """Return the words for things and animals that at least 1 in 200 texts has.

    What such a word is shows what stands before it: in four of ten places an article or a colour or a size.
    """
    before = "a an the big little small red blue green old new pretty shiny".split()
    pairs = Counter(
        pair for text in texts for pair in re.findall(r"\b([a-z]+) (?=([a-z]+)\b)", text) if pair[1] not in before
    )
    named, everywhere = Counter[str](), Counter[str]()
    for (first, second), times in pairs.items():
        everywhere[second] += times
        named[second] += times if first in before else 0
    having = Counter(word for text in texts for word in set(re.findall(r"\b[a-z]+\b", text)))
    return {
        word
        for word, times in named.items()
        if len(word) > 2 and times > 0.4 * everywhere[word] and len(texts) / 200 < having[word] < len(texts) / 8
    }


def words_prompt(words: Iterable[str]) -> str:
    """Return what the adapter `words` reads before it tells a story."""
    return f"Words: {', '.join(words)}. Story:"


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a prepared file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def held_out(file: Path) -> list[str]:
    """Return the texts at the end of a file that no training has seen."""
    return held_out_apart(file)[1]


def held_out_apart(file: Path) -> tuple[list[str], list[str]]:
    """Return the texts of a file, those that trainings may see and those at its end that they do not."""
    texts = [row["text"] for row in rows(file)]
    left = HELD_OUT * sum(map(len, texts))
    cut = len(texts)
    while (left := left - len(texts[cut - 1])) > 0:
        cut -= 1
    return texts[: cut - 1], texts[cut:]  # the one between is cut by the recipe


def _pieces(text: str, least: int = 900, between: str = "\n") -> list[str]:
    """Cut at the ends of paragraphs into pieces of at least so many characters."""
    pieces, piece = [], ""
    for paragraph in re.split(r"\n\n" if between == "\n\n" else r"\s*\n\s*", text):
        piece = f"{piece}{between}{paragraph.strip()}" if piece else paragraph.strip()
        if len(piece) >= least:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces


def _tatoeba(data: Path) -> list[tuple[str, str]]:
    lines = _read(data / "translation/tatoeba_en_es.tsv.gz").splitlines()
    return [(english, spanish) for english, spanish in (line.split("\t")[:2] for line in lines)]


def _read(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")


def _write(file: Path, content: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    if not file.exists() or file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")
