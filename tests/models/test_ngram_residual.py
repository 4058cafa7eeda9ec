"""The decoder beside an n-gram model: it begins as that, and learns from a text as if each token were not counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ngram import VOCAB, Slow, Words

from loquela import peft
from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError, DataError, UsageError
from loquela.generation.decode import generate_ids
from loquela.generation.embed import embed
from loquela.generation.sampling import GenerationSettings
from loquela.layers.cache import Cache
from loquela.layers.counts import learnable
from loquela.models import ngram_residual
from loquela.models.base import Network, config_from_dict
from loquela.models.ngram_residual import NGramResidual
from loquela.text.tokenizer import Tokenizer

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
LSTM = {"model_type": "lstm", "hidden_size": 12}
TEXT = [0, 1, 2, 3, 1, 2, 4, 5, 1, 2, 3, 3, 0, 1, 2, 5, 2, 1, 2, 3]


def fitted(text: list[int], order: int, residual: dict[str, Any] = LSTM) -> NGramResidual:
    raw = {"model_type": "ngram_residual", "vocab_size": VOCAB, "order": order, "residual": residual}
    network = NGramResidual(config_from_dict(raw))  # type: ignore[arg-type]
    torch.manual_seed(0)
    network.initialise()
    network.fit(np.array(text, dtype=np.uint16))
    return network


def opinionated(network: Network) -> Network:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("ngram."):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network.eval()


class LessOne(Slow):
    """The counts of a text of which the token at one place was not counted; the discounts stay."""

    def without(self, text: list[int], place: int) -> LessOne:
        for n in range(len(self.counts), 0, -1):
            gram: Words = tuple(text[place - n + 1 : place + 1])
            self.counts[n - 1][gram] -= 1
            if self.counts[n - 1][gram]:
                break
            del self.counts[n - 1][gram]
        return self


@given(text=st.lists(st.integers(0, VOCAB - 1), min_size=6, max_size=30), order=st.integers(1, 5))
@settings(max_examples=40)
def test_each_token_counts_once_less_where_it_is_learnt(text: list[int], order: int) -> None:
    network = fitted(text, order).train()
    found = network(torch.tensor([text]))[0].double()
    for place in range(order - 1, len(text)):
        if place == 0:  # nothing predicts it
            continue
        slow, history = LessOne(text, order).without(text, place), tuple(text[place - order + 1 : place])
        expected = [slow.probability(word, history) for word in range(VOCAB)]
        assert torch.allclose(found[place - 1].exp(), torch.tensor(expected, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("residual", [LSTM, LLAMA], ids=lambda config: str(config["model_type"]))
@torch.no_grad()
def test_it_begins_as_the_n_gram_model(residual: dict[str, Any]) -> None:
    network, ids = fitted(TEXT, 3, residual).eval(), torch.tensor([TEXT[:9], TEXT[5:14]])
    assert torch.equal(network(ids), network.ngram(ids))
    assert not torch.equal(network.train()(ids), network.ngram(ids))


@pytest.mark.parametrize("residual", [LSTM, LLAMA], ids=lambda config: str(config["model_type"]))
@torch.no_grad()
def test_saved_opened_and_written_with_a_cache(residual: dict[str, Any], tmp_path: Path) -> None:
    network = opinionated(fitted(TEXT, 4, residual))
    save_model(network, None, tmp_path)
    again = load_model(tmp_path).network
    ids = torch.tensor([TEXT[:9], TEXT[5:14]])
    assert torch.equal(again(ids), network(ids))
    assert torch.equal(again.train()(ids), network(ids))  # who did not count meets other texts
    narrow = load_model(tmp_path, dtype="bfloat16").network.eval()
    assert (
        narrow(ids).float().log_softmax(-1) - network(ids).log_softmax(-1)
    ).abs().max() < 0.3  # histories would cost whole nats, were they rounded
    memory = network.new_cache()
    parts = [network(ids[:, :5], cache=memory)]
    memory.select(torch.tensor([1, 0, 1]))
    parts = [parts[0][[1, 0, 1]], *(network(ids[[1, 0, 1], i : i + 1], cache=memory) for i in range(5, 9))]
    assert torch.allclose(torch.cat(parts, 1), network(ids[[1, 0, 1]]), atol=1e-5)
    memory.truncate(0)
    assert torch.allclose(network(ids[[0, 0, 1]], cache=memory), network(ids[[0, 0, 1]]), atol=1e-5)
    with pytest.raises(UsageError, match="new_cache"):
        network(ids, cache=Cache(1))
    steps = generate_ids(network, [1, 2], GenerationSettings(max_new_tokens=20, temperature=0))
    text = [1, 2, *(step.id for step in steps)]
    assert text[2:] == network(torch.tensor([text]))[0, 1:-1].argmax(-1).tolist()


@pytest.mark.parametrize("method", ["selective", "lora"])
def test_adapters_change_what_is_learnt_and_never_the_counts(method: str) -> None:
    network, ids = opinionated(fitted(TEXT, 3)), torch.tensor([TEXT])
    settings = {"layers_to_transform": None, "target_modules": ["gate", "residual.recurrent.cells"]}
    peft.attach(network, peft.config_for(method, **(settings if method == "selective" else {})), "own")
    tuned = peft.train_only(network, "own")
    assert not any("ngram" in name for name in tuned)
    assert method == "lora" or any("gate" in name for name in tuned)
    before = network(ids)
    with peft.wearing(network, "own"):
        assert torch.allclose(network(ids), before, atol=1e-6)
        network(ids).square().mean().backward()
        assert any(p.grad is not None and p.grad.any() for p in tuned.values())
    assert {name for name in learnable(network) if name.startswith("ngram")} == set()


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(residual: Any) -> NGramResidual:
        return fitted(TEXT, 3, residual)

    for wrong, reason in [
        ({"hidden_size": 3}, "with its model_type"),
        ({"model_type": "ngram"}, "a decoder that learns"),
        ({"model_type": "ngram_residual"}, "a decoder that learns"),
        ({"model_type": "bert"}, "a decoder that learns"),
        ({**LSTM, "tie_word_embeddings": True}, "tie_word_embeddings false"),
        ({**LSTM, "vocab_size": 5}, "has 5 tokens"),
        ({**LSTM, "hiden_size": 5}, "hidden_size"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            made(wrong)
    with pytest.raises(UsageError, match="has no vector of a text"):
        embed(made(LSTM), Tokenizer.train("bpe", ["a"], 300), [[1, 2]])
    monkeypatch.setattr(ngram_residual, "_EXACT", 4)
    with pytest.raises(DataError, match="lower order"):
        made(LSTM)
