"""Words with tags make an encoder a model that tags words: rows, files of CoNLL's form, methods, and what it says."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loquela
from loquela.checkpoint.store import save_model
from loquela.data.pairs import Tagged, read_examples
from loquela.errors import DataError, UsageError
from loquela.evaluation.spans import entity_f1
from loquela.generation.tagging import encode_words, tag
from loquela.models.base import architecture
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer
from loquela.tuning.run import tune

Write = Callable[..., Path]
WORDS = "red blue green one two three cat dog bird yes no good bad".split()
KINDS = {"red": "COL", "blue": "COL", "green": "COL", "cat": "PET", "dog": "PET", "bird": "PET"}


def sentences(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Runs of colours and of animals are entities; the tag of a word hangs on the one before it."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(3, 9))]
        kinds = [KINDS.get(word, "") for word in words]
        tags = [
            "O" if not kind else f"{'I' if before == kind else 'B'}-{kind}"
            for before, kind in zip(["", *kinds], kinds, strict=False)
        ]
        found.append({"tokens": words, "tags": tags})
    return found


def settings(encoder: Path, data: Path, output: Path, method: str = "full", **more: Any) -> dict[str, Any]:
    base = {"learning_rate": 3e-3 if method == "full" else 1e-2, "num_train_epochs": 6}
    return {"model": str(encoder), "data": str(data), "method": method, "output_dir": str(output), **base, **more}


def test_a_tagger_learns_opens_in_transformers_and_is_scored(encoder: Path, rows: Write, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said: list[str] = []
    data = rows(sentences(240))
    result = tune(
        settings(encoder, data, tmp_path / "out", max_steps=90),
        on_event=lambda e: said.append(getattr(e, "message", "")),
    )
    assert any("format tagging (tokens, tags; detected)" in line for line in said)
    assert result.metrics["accuracy"] > 0.9 > result.metrics["majority"]
    assert result.metrics["entity_f1"] > 0.8
    assert result.val_bits_per_byte is None
    assert result.good
    assert "words of 24 held-out sentences" in result.verdict["sentence"]
    with (tmp_path / "out" / "evidence" / "held_out.csv").open(newline="") as file:
        held = list(csv.DictReader(file))
    gold, predicted = ([row[key].split() for row in held] for key in ("label", "predicted"))
    assert result.metrics["entity_f1"] == entity_f1(gold, predicted)
    pairs = [pair for a, b in zip(gold, predicted, strict=True) for pair in zip(a, b, strict=True)]
    assert result.metrics["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))

    model = loquela.load(result.model)
    assert isinstance(model.network, EncoderOnly)
    assert model.network.labels == ("O", "B-COL", "I-COL", "B-PET", "I-PET")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(result.model).eval()
    assert theirs.config.id2label[1] == "B-COL"
    ids = torch.tensor([model.tokenizer.encode("red blue cat no dog")])
    with torch.no_grad():
        assert torch.allclose(model.logits(ids), theirs(ids).logits, atol=1e-5)
    found = tag(model.network, model.tokenizer, "red blue, cat")
    assert (found[0].word, found[0].tag) == ("red", "B-COL")
    assert found[0].log_prob > -0.7
    assert [one.word for one in found] == ["red", "blue", ",", "cat"]
    with pytest.raises(UsageError, match="token classification"):
        tag(loquela.load(encoder).network, model.tokenizer, "red")


@pytest.mark.parametrize("method", ["adapter", "ia3", "lora", "prompt", "selective"])
def test_every_method_tags_and_is_loaded_again(encoder: Path, rows: Write, tmp_path: Path, method: str) -> None:
    data = rows(sentences(120))
    result = tune(settings(encoder, data, tmp_path / "out", method, max_steps=24))
    assert result.adapter is not None
    assert result.val_loss < result.metrics["before"]["loss"]
    model = loquela.load(encoder, adapter=result.adapter)
    held = {int(row["row"]): row for row in csv.DictReader((tmp_path / "out/evidence/held_out.csv").open(newline=""))}
    examples = {e.row: e.meaning for e in read_examples(data).rows}
    for row in held.values():
        meaning = examples[int(row["row"])]
        assert isinstance(meaning, Tagged)
        with model.wearing():
            found = tag(model.network, model.tokenizer, meaning.words)
        assert " ".join(one.tag for one in found) == row["predicted"]


def test_files_of_a_word_and_a_tag_in_a_line(tmp_path: Path) -> None:
    made = sentences(30)
    text = "".join("".join(f"{w}\t{t}\n" for w, t in zip(*row.values(), strict=True)) + "\n" for row in made)
    for name in ("train.tsv", "train.txt", "train.conll"):
        (tmp_path / name).write_text(text)
        found = read_examples(tmp_path / name)
        assert found.form == "tagging"
        assert [e.meaning for e in found.rows] == [Tagged(tuple(r["tokens"]), tuple(r["tags"])) for r in made]
    four = "-DOCSTART- -X- -X- O\n\nU.N. NNP I-NP I-ORG\nsaid VBD I-VP O\n\n\nEkeus NNP I-NP I-PER\n"
    (tmp_path / "conll2003.bio").write_text(four)
    assert [e.meaning for e in read_examples(tmp_path / "conll2003.bio").rows] == [
        Tagged(("U.N.", "said"), ("I-ORG", "O")),
        Tagged(("Ekeus",), ("I-PER",)),
    ]
    (tmp_path / "labels.tsv").write_text("good\t1\nbad\t0\n" * 10)
    assert read_examples(tmp_path / "labels.tsv").form == "classification"
    (tmp_path / "bad.conll").write_text("red B-COL\n\nblue B-COL\ncat\n\ndog B-PET\n")
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used: row 2 must have a word and a tag .* line 4"):
        read_examples(tmp_path / "bad.conll")
    assert len(read_examples(tmp_path / "bad.conll", skip_bad_rows=True)) == 2


def test_names_of_fields_and_rows_that_are_wrong(rows: Write) -> None:
    path = rows([{"tokens": ["a", "b"], "ner_tags": [0, 3]}, {"words": ["c"], "labels": ["X"]}])
    assert [e.meaning for e in read_examples(path).rows] == [Tagged(("a", "b"), ("0", "3")), Tagged(("c",), ("X",))]
    wrong = [
        {"tokens": ["a"], "tags": ["X", "Y"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a", ""], "tags": ["X", "Y"]},
    ]
    with pytest.raises(DataError, match="3 of 3 rows cannot be used: row 1 must have a tag for each of its 1 words"):
        read_examples(rows(wrong))


def test_only_encoders_tag_and_not_beside_labels(decoder: Path, encoder: Path, rows: Write, tmp_path: Path) -> None:
    data = rows(sentences(20))
    with pytest.raises(UsageError, match="words with tags need an encoder-only model, but this is an decoder"):
        tune(settings(decoder, data, tmp_path / "a"))
    other = rows([{"text": "red", "label": "a"}, {"text": "blue", "label": "b"}] * 5, "others.jsonl")
    with pytest.raises(DataError, match="labels texts or words"):
        tune(settings(encoder, data, tmp_path / "b") | {"data": [str(data), str(other)]})
    with pytest.raises(DataError, match=r"rows have another label than O, B-COL \(row 1 has"):
        tune(settings(encoder, data, tmp_path / "c", labels=["O", "B-COL"]))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_word_is_labelled_at_its_first_token(kind: str) -> None:
    text = "Äpfel don't 東京 naïve-re ... I'm x"
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer = Tokenizer.train(kind, [text * 5, "apfel tokyo im do not"], 400, special_tokens=special)
    words = text.split()
    found = encode_words(tokenizer, words)
    assert found.ids == tokenizer.encode(text)
    assert found.words == tuple(words)
    offsets = tokenizer.offsets(text)
    start = 0
    for word, place in zip(words, found.places, strict=True):
        begin = text.index(word, start)
        own = [
            i for i, (a, b) in enumerate(offsets) if b > a and a < begin + len(word) and b > begin and text[a:b].strip()
        ]
        assert place == own[0]
        start = begin + len(word)
    assert sorted(set(found.places)) == found.places  # type: ignore[type-var]


@pytest.mark.soak
def test_names_in_real_sentences_are_told_by_the_words_around_them(
    tmp_path: Path, rows: Write, shared_data: Path
) -> None:
    """Names lose their capitals, and a small encoder finds them again: encyclopaedia text, its first words left out."""
    text = (shared_data / "lm" / "wikipedia_en_30_articles.txt").read_text(encoding="utf-8")
    made = []
    for sentence in re.split(r"(?<=[.])\s+", text)[:900]:
        words = sentence.split()[1:40]
        is_name = [word[:1].isupper() for word in words]
        tags = [
            "O" if not named else "I-NAME" if before else "B-NAME"
            for before, named in zip([False, *is_name], is_name, strict=False)
        ]
        if len(words) > 3:
            made.append({"tokens": [word.lower() for word in words], "tags": tags})
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer = Tokenizer.train("wordpiece", [" ".join(row["tokens"]) for row in made], 3000, special_tokens=special)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    module = architecture("bert")
    network = module.NETWORK(module.CONFIG.from_dict({"vocab_size": tokenizer.vocab_size, **shape}))
    torch.manual_seed(0)
    network.initialise()
    save_model(network, tokenizer, tmp_path / "base")
    result = tune(settings(tmp_path / "base", rows(made), tmp_path / "out", max_steps=200, learning_rate=2e-3))
    assert result.metrics["accuracy"] > result.metrics["majority"] + 0.02
    assert result.metrics["entity_f1"] > 0.25
    assert result.verdict["better"]
