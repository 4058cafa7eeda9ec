"""Scores against a plain computation in float64, and against a validation loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from loquela.checkpoint.store import save_model
from loquela.data.batch import Batch
from loquela.data.batches import evaluation_blocks
from loquela.data.readers import Piece
from loquela.data.shards import build
from loquela.errors import DataError, LoquelaError, UsageError
from loquela.evaluation import perplexity
from loquela.evaluation.perplexity import score, score_ids, score_windows
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer
from loquela.training.validation import validate

WINDOW = 24
TEXT = "The cat sat on the mat; the dog sat on the log. Ärger, 猫と犬 🐈🐕.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", [TEXT * 20], 300)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def network(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Network:
    fields = {
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": WINDOW,
        },
        "gpt2": {"n_positions": WINDOW, "n_embd": 32, "n_layer": 2, "n_head": 4},
    }[request.param]
    module = architecture(request.param)
    raw = {"model_type": request.param, "vocab_size": tokenizer.vocab_size, **fields}
    network: Network = module.NETWORK(module.CONFIG.from_dict(raw))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
    return network.eval()


def plain(network: Network, ids: list[int], window: int, stride: int) -> list[float]:
    """Token by token: its window is the last to start at a multiple of the stride that ends a stride or less later."""
    exact = copy.deepcopy(network).double()
    result = []
    for target in range(1, len(ids)):
        start = 0
        while target > start + window:
            start += stride
        with torch.no_grad():
            row = exact(torch.tensor([ids[start:target]]))[0, -1].log_softmax(-1)
        result.append(float(row[ids[target]]))
    return result


@pytest.mark.parametrize(("window", "stride"), [(24, 24), (24, 12), (24, 1), (10, 7), (1, 1)])
def test_equal_to_a_computation_in_float64(network: Network, tokenizer: Tokenizer, window: int, stride: int) -> None:
    ids = tokenizer.encode(TEXT * 2)
    expected = plain(network, ids, window, stride)
    np.testing.assert_allclose(score_ids(network, ids, window=window, stride=stride), expected, atol=2e-5)
    exact = copy.deepcopy(network).double()
    np.testing.assert_allclose(score_ids(exact, ids, window=window, stride=stride), expected, atol=1e-10)
    result = score(network, tokenizer, TEXT * 2, window=window, stride=stride)
    given = len(tokenizer.decode(ids[:1]).encode())
    assert result.tokens == len(ids) - 1
    assert result.log_prob == pytest.approx(sum(expected), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    assert result.n_bytes == len((TEXT * 2).encode()) - given
    assert result.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / result.n_bytes, rel=1e-5)


@settings(max_examples=30)
@given(length=st.integers(2, 80), window=st.integers(1, WINDOW), data=st.data())
def test_every_token_is_scored_once(network: Network, length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    result = score_ids(network, list(range(length)), window=window, stride=stride)
    assert result.shape == (length - 1,)
    assert np.isfinite(result).all()
    assert (result < 0).all()


def test_logits_a_few_rows_at_a_time_change_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(60))
    expected = score_ids(network, ids, window=24, stride=12)
    monkeypatch.setattr(perplexity, "_HEAD_ROWS", 5)
    np.testing.assert_allclose(score_ids(network, ids, window=24, stride=12), expected, atol=1e-5)


def test_equal_to_the_trainers_validation_when_the_stride_is_the_window(
    network: Network, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20)
    corpus = build(tmp_path / "text.txt", tokenizer, tmp_path / "data")
    blocks = evaluation_blocks(corpus.validation.tokens, WINDOW, 4)
    batches = (Batch(inputs, labels) for inputs, labels in blocks)
    trainers = validate(network, batches, corpus.validation.n_bytes)
    assert trainers is not None
    ids = corpus.validation.tokens.astype(np.int64).tolist()
    ours = score_ids(network, ids, window=WINDOW, stride=WINDOW)
    assert len(ours) == trainers.tokens
    assert -ours.mean() == pytest.approx(trainers.loss, rel=1e-6)
    result = score(network, tokenizer, tokenizer.decode(ids), stride=WINDOW)
    assert -result.log_prob / result.tokens == pytest.approx(trainers.loss, rel=1e-6)
    whole = result.n_bytes + len(tokenizer.decode(ids[:1]).encode())  # the trainer counts the first token's bytes too
    assert result.bits_per_byte * result.n_bytes / whole == pytest.approx(trainers.bits_per_byte, rel=1e-6)


def test_more_context_is_the_default(network: Network, tokenizer: Tokenizer) -> None:
    result = score(network, tokenizer, TEXT)
    assert (result.window, result.stride) == (WINDOW, WINDOW // 2)
    assert result.notes == ("the first token is given, not scored: this tokenizer has no BOS to predict it from",)
    assert math.isnan(result.log_probs[0])
    assert math.fsum(result.log_probs[1:]) == result.log_prob
    assert result.ids.tolist() == tokenizer.encode(TEXT)


def test_a_bos_token_predicts_the_first(network: Network) -> None:
    tokenizer = Tokenizer.train("char", [TEXT], special_tokens=("<bos>", "<|endoftext|>"))
    result = score(network, tokenizer, "The cat")
    assert result.tokens == 7
    assert result.n_bytes == 7
    assert result.ids.tolist() == [tokenizer.bos_id, *tokenizer.encode("The cat")]
    assert result.notes == ()
    unknown = score(network, tokenizer, "The Q cat")
    assert unknown.notes == ("1 tokens are unknown to this tokenizer; what they hid costs nothing here",)


def test_pieces_are_one_text_and_documents_stand_apart(network: Network, tokenizer: Tokenizer) -> None:
    def pieces(ends: bool) -> Iterator[Piece]:
        yield Piece("", False)
        yield Piece("The cat sat.\n", ends)
        yield Piece("The dog sat.\n", True)
        yield Piece("", True)

    whole = score(network, tokenizer, "The cat sat.\nThe dog sat.\n")
    assert score(network, tokenizer, pieces(False)).ids.tolist() == whole.ids.tolist()
    apart = score(network, tokenizer, pieces(True))
    assert apart.ids.tolist().count(tokenizer.eos_id) == 1
    assert apart.n_bytes == whole.n_bytes


def test_what_cannot_be_scored_is_said(network: Network, tokenizer: Tokenizer) -> None:
    for text in ("", "T"):
        with pytest.raises(DataError, match="a token to score"):
            score(network, tokenizer, text)
    with pytest.raises(UsageError, match="window must be from 1 to the context window of 24, but is 25"):
        score(network, tokenizer, TEXT, window=25)
    with pytest.raises(UsageError, match="stride must be from 1 to the window of 24, but is 0"):
        score(network, tokenizer, TEXT, stride=0)
    damaged = copy.deepcopy(network)
    with torch.no_grad():
        next(damaged.parameters()).fill_(math.nan)
    with pytest.raises(LoquelaError, match="damaged"):
        score(damaged, tokenizer, TEXT)


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 63), (48, 17)])
def test_equal_to_the_sliding_window_that_transformers_documents(
    window: int, stride: int, shared_data: Path, tmp_path: Path
) -> None:
    """WikiText-2 under a random GPT-2, as the page "Perplexity of fixed-length models" computes it.

    A window of theirs holds the last token that is predicted, ours does not: their 64 are our 63. Their sum counts the
    mean of every window but the first for one token fewer than it has; so is the sum of ours here.
    """
    text = (shared_data / "lm" / "wikitext2_valid.txt").read_text(encoding="utf-8")[:5000]
    tokenizer = Tokenizer.train("bpe", [text], 400)
    module = architecture("gpt2")
    raw = {"model_type": "gpt2", "vocab_size": tokenizer.vocab_size, "n_positions": 64, "n_embd": 32, "n_layer": 2}
    ours = module.NETWORK(module.CONFIG.from_dict({**raw, "n_head": 4})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2, generator=generator)
    save_model(ours, tokenizer, tmp_path / "model")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()

    ids = torch.tensor([tokenizer.encode(text)])
    nats, exact, counted, previous = 0.0, 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        targets = ids[:, begin:end].clone()
        targets[:, : -(end - previous)] = -100
        with torch.no_grad():
            loss = float(theirs(ids[:, begin:end], labels=targets).loss)
        valid = int((targets != -100).sum())
        nats, counted = nats + loss * (valid - 1), counted + valid - 1
        exact += loss * int((targets[:, 1:] != -100).sum())
        previous = end
        if end == ids.shape[1]:
            break

    parts = [part for _, part in score_windows(ours, ids[0].tolist(), window=window - 1, stride=stride)]
    weights = [len(part) - (number > 0) for number, part in enumerate(parts)]
    documented = -sum(part.mean() * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
    assert sum(weights) == counted
    assert math.exp(documented) == pytest.approx(math.exp(nats / counted), rel=1e-5)
    result = score(ours, tokenizer, text, window=window - 1, stride=stride)
    assert result.perplexity == pytest.approx(math.exp(exact / (ids.shape[1] - 1)), rel=1e-5)
