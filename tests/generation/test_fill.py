"""Masks filled by a masked language model, beside transformers' own pipeline."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import transformers

from loquela.checkpoint.store import load_model
from loquela.errors import ContextWindowError, DataError, TokenizerError, UsageError
from loquela.generation.completion import Usage
from loquela.generation.fill import fill
from loquela.models import architecture, config_from_dict
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "the cat sat on the mat and the dog sat on the log; a frog in a bog saw the dog and the cat on the log"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with large random weights, so that its guesses differ."""
    directory = tmp_path_factory.mktemp("masked")
    tokenizer = Tokenizer.train("wordpiece", [TEXT], 80, special_tokens=SPECIAL)
    tokenizer.save(directory)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


def opened(directory: Path) -> tuple[Network, Tokenizer]:
    loaded = load_model(directory)
    assert loaded.tokenizer is not None
    return loaded.network, loaded.tokenizer


def test_same_guesses_as_the_pipeline(directory: Path) -> None:
    pipeline = transformers.pipeline("fill-mask", str(directory), device="cpu")
    network, tokenizer = opened(directory)
    text = "the [MASK] sat on the [MASK]"
    filling = fill(network, tokenizer, text, top=4)
    theirs = pipeline(text, top_k=4)
    assert len(filling.tokens) == len(theirs) == 2
    for piece, expected in zip(filling.tokens, theirs, strict=True):
        assert [other.id for other in piece.top] == [e["token"] for e in expected]
        probabilities = [math.exp(other.log_prob) for other in piece.top]
        assert probabilities == pytest.approx([e["score"] for e in expected], rel=1e-4)
        assert (piece.id, piece.text, piece.log_prob) == astuple(piece.top[0])
        assert piece.text in filling.text
    assert "[MASK]" not in filling.text
    assert filling.usage == Usage(prompt_tokens=len(tokenizer.encode(text)), completion_tokens=2)


def test_all_candidates_together_are_certain(directory: Path) -> None:
    network, tokenizer = opened(directory)
    (piece,) = fill(network, tokenizer, "a [MASK]", top=10_000).tokens
    assert len(piece.top) == network.vocab_size
    log_probs = [other.log_prob for other in piece.top]
    assert sum(map(math.exp, log_probs)) == pytest.approx(1)
    assert log_probs == sorted(log_probs, reverse=True)
    assert fill(network, tokenizer, "a [MASK]", top=0).tokens[0].top == ()


def test_errors_say_the_way_out(directory: Path) -> None:
    network, tokenizer = opened(directory)
    with pytest.raises(DataError, match=r"mask token \[MASK\]"):
        fill(network, tokenizer, "no gap here")
    with pytest.raises(ContextWindowError, match="24 tokens"):
        fill(network, tokenizer, "the cat " * 20 + "[MASK]")
    with pytest.raises(TokenizerError, match="mask token"):
        fill(network, Tokenizer.train("char", [TEXT]), "the cat")
    decoder = architecture("gpt2").NETWORK(
        config_from_dict({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 90})
    )
    with pytest.raises(UsageError, match="gpt2"):
        fill(decoder, tokenizer, "a [MASK]")
