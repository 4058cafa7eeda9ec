"""Recurrent language models as models: cut, padded, saved, opened, trained, generated from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError, UsageError
from loquela.generation.decode import generate_ids
from loquela.generation.sampling import GenerationSettings
from loquela.layers.cache import Cache
from loquela.models import architecture, config_from_dict
from loquela.models.base import Network

TYPES = ("rnn", "lstm", "gru")


def make(model_type: str, **settings: Any) -> Network:
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, **settings}
    network: Network = architecture(model_type).NETWORK(config_from_dict({"model_type": model_type, **shape}))
    network.initialise()
    return network.eval()


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("settings", [{}, {"embedding_size": 10}, {"tie_word_embeddings": True}])
def test_saved_and_opened_bit_for_bit(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    network = make(model_type, **settings)
    save_model(network, None, tmp_path / "model")
    again = load_model(tmp_path / "model").network
    assert type(again) is type(network)
    assert again.config == network.config or again.config.to_dict().items() >= network.config.to_dict().items()
    for (name, a), (other, b) in zip(network.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    tokens = torch.randint(0, 31, (2, 9))
    with torch.no_grad():
        assert torch.equal(network(tokens), again(tokens))
    tied = again.get_parameter("token_embedding.weight")
    assert (again.state_dict()["lm_head.weight"].data_ptr() == tied.data_ptr()) == bool(
        settings.get("tie_word_embeddings")
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_token_by_token_is_the_whole(model_type: str) -> None:
    network, tokens = make(model_type), torch.randint(0, 31, (3, 11))
    cache = network.new_cache()
    with torch.no_grad():
        whole = network(tokens)
        steps = torch.cat([network(token, cache=cache) for token in tokens.split(1, dim=1)], 1)
    assert cache.length == 11
    assert (whole - steps).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model_type: str, side: str) -> None:
    network = make(model_type)
    tokens, real = torch.randint(0, 31, (2, 8)), torch.ones(2, 8, dtype=torch.bool)
    real[1, slice(0, 5) if side == "left" else slice(3, 8)] = False
    cache, more = network.new_cache(), torch.randint(0, 31, (2, 2))
    with torch.no_grad():
        together = network(tokens, padding=real, cache=cache)
        alone = network(torch.cat((tokens[1:, real[1]], more[1:]), 1))[0]
        assert (together[1, real[1]] - alone[:3]).abs().max() < 1e-6
        after = network(more, padding=torch.cat((real, torch.ones(2, 2, dtype=torch.bool)), 1), cache=cache)
        assert (after[1] - alone[3:]).abs().max() < 1e-6


@pytest.mark.parametrize("model_type", TYPES)
def test_generation_goes_on_from_the_state(model_type: str) -> None:
    network = make(model_type)
    settings = GenerationSettings(max_new_tokens=12, temperature=0)
    steps = [step.id for step in generate_ids(network, [1, 2, 3], settings)]
    text = [1, 2, 3]
    for _ in range(12):
        with torch.no_grad():
            text.append(int(network(torch.tensor([text]))[0, -1].argmax()))
    assert steps == text[3:]


@pytest.mark.parametrize("model_type", TYPES)
def test_learns_what_only_a_memory_can(model_type: str) -> None:
    """After `a … b` comes the token that stood before them: four tokens must be carried along."""
    network = make(model_type, vocab_size=8, hidden_size=32, num_hidden_layers=1).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> torch.Tensor:
        first = torch.randint(2, 8, (n, 1), generator=generator)
        return torch.cat((first, torch.zeros(n, 3, dtype=torch.int64), torch.ones(n, 1, dtype=torch.int64), first), 1)

    for _ in range(250):
        tokens = batch(32)
        loss = F.cross_entropy(network(tokens[:, :-1])[:, -1], tokens[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens = batch(64)
    with torch.no_grad():
        assert (network(tokens[:, :-1])[:, -1].argmax(-1) == tokens[:, -1]).float().mean() > 0.9


def test_an_open_forget_gate() -> None:
    network = make("lstm")
    bias = network.get_parameter("recurrent.cells.bias_ih_l1")
    assert bias.tolist() == [0.0] * 24 + [1.0] * 24 + [0.0] * 48


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="embedding_size must be hidden_size"):
        make("gru", embedding_size=8, tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="embedding_size must be a positive"):
        make("gru", embedding_size=-1)
    with pytest.raises(UsageError, match="new_cache"):
        make("rnn").hidden(torch.zeros(1, 1, dtype=torch.int64), cache=Cache(2))
