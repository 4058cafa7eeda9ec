"""Pseudo-perplexity of masked models against a plain computation with transformers (arXiv:1910.14659)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import TEXT, make
from tokenizers.processors import BertProcessing
from transformers import AutoTokenizer, BertForMaskedLM

from loquela.checkpoint.store import save_model
from loquela.data.readers import Piece
from loquela.errors import DataError, UsageError
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.perplexity import score
from loquela.evaluation.pseudo import prepare_lines, pseudo_log_probs, pseudo_score
from loquela.evaluation.run import evaluate
from loquela.text.tokenizer import Tokenizer

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
LINES = (
    "The cat sat on the mat.\n\n  the dog sat on the log; yes or no?  \nno\nwhat sat on the mat: the dog or the cat\n"
)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    trained = Tokenizer.train("wordpiece", [TEXT], 300, special_tokens=SPECIAL)
    around = [(name, trained.id_of(name)) for name in ("[SEP]", "[CLS]")]
    trained.backend.post_processor = BertProcessing(*around)  # as BERT's has it
    return Tokenizer(trained.backend, roles=trained.roles)


@pytest.fixture(scope="module")
def bert(words: Tokenizer) -> Any:
    return make("bert", words)


@pytest.fixture(scope="module")
def plain(bert: Any, words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[float]]:
    """One forward pass a token, in float64, by transformers."""
    directory = tmp_path_factory.mktemp("bert")
    save_model(bert.network, words, directory)
    model = BertForMaskedLM.from_pretrained(directory).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def log_probs(line: str) -> list[float]:
        ids = tokenizer(line, return_tensors="pt")["input_ids"][0]
        found = []
        for place in range(1, len(ids) - 1):
            hidden = ids.clone()
            hidden[place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=hidden[None]).logits[0, place]
            found.append(float(logits.log_softmax(-1)[ids[place]]))
        return found

    return log_probs


def test_equal_to_a_plain_computation_with_transformers(
    bert: Any, words: Tokenizer, plain: Callable[[str], list[float]]
) -> None:
    lines = [line.strip() for line in LINES.split("\n") if line.strip()]
    expected = [plain(line) for line in lines]
    found = score(bert.network, words, LINES)
    flat = [value for line in expected for value in line]
    np.testing.assert_allclose(found.log_probs, flat, atol=2e-5)
    assert found.pseudo
    assert found.tokens == len(flat)
    assert found.perplexity == pytest.approx(math.exp(-sum(flat) / len(flat)), rel=1e-5)
    assert found.n_bytes == sum(len(line.encode()) for line in lines)
    assert any("pseudo-perplexity" in note for note in found.notes)
    pieces = [Piece(LINES[:10], False), Piece(LINES[10:40], False), Piece(LINES[40:], True)]
    assert (score(bert.network, words, iter(pieces)).log_probs == found.log_probs).all()


def test_long_lines_are_cut_and_that_is_said(bert: Any, words: Tokenizer, plain: Callable[[str], list[float]]) -> None:
    line = "the cat sat on the mat and the dog sat on the log"
    ids = words.encode(line, add_special_tokens=False)
    lines = prepare_lines(bert.network, words, line, window=5)
    assert [token for block in lines.blocks for token in block] == ids
    assert all(len(block) <= 5 for block in lines.blocks)
    assert sum(lines.n_bytes) == len(line)
    assert any("1 lines are longer" in note for note in lines.notes)
    first = next(iter(pseudo_log_probs(bert.network, words, lines.blocks)))[1]
    assert first.tolist() == pytest.approx(plain(words.decode(ids[:5])), abs=2e-5)
    whole = prepare_lines(bert.network, words, TEXT.replace("\n", " "))
    assert whole.window == 126
    assert max(map(len, whole.blocks)) == 126


def test_as_a_task(bert: Any, words: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(LINES * 3)
    subject = LocalSubject(bert, "bert")
    found = evaluate(subject, tmp_path / "text.txt").results["text"]
    whole = pseudo_score(bert.network, words, LINES * 3)
    assert found.metric == "pseudo_bits_per_byte"
    assert found.scores["pseudo_perplexity"] == pytest.approx(whole.perplexity, rel=1e-9)
    assert found.score == pytest.approx(whole.bits_per_byte, rel=1e-9)
    assert found.n == whole.tokens
    few = evaluate(subject, tmp_path / "text.txt", limit=5)
    kept = {record["item"]: record["log_prob"] for record in found.records}
    assert len(few.results["text"].records) == 5
    assert all(kept[record["item"]] == record["log_prob"] for record in few.results["text"].records)
    log = tmp_path / "log.jsonl"
    evaluate(subject, tmp_path / "text.txt", log=log)
    again = log.read_bytes()
    log.write_bytes(again[: again.rstrip().rfind(b"\n") - 3])  # an interruption
    assert evaluate(subject, tmp_path / "text.txt", log=log).results["text"].scores == found.scores


def test_what_cannot_be_asked_is_said(bert: Any, words: Tokenizer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="must have a token"):
        score(bert.network, words, " \n\n")
    with pytest.raises(UsageError, match="leave the stride out"):
        score(bert.network, words, LINES, stride=3)
    with pytest.raises(UsageError, match="window must be from 1 to the 126 tokens"):
        score(bert.network, words, LINES, window=127)
    with pytest.raises(UsageError, match="a model with a language head"):
        pseudo_score(make("llama", tokenizer).network, tokenizer, LINES)
