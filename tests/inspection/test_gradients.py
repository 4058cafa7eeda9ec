"""Gradient norms by distance, beside finite differences; and the picture of why, in numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.inspection.gradients import gradient_norms
from loquela.models import architecture, config_from_dict
from loquela.models.base import Network

SHAPES: dict[str, dict[str, Any]] = {
    "rnn": {"hidden_size": 12},
    "lstm": {"hidden_size": 12},
    "gru": {"hidden_size": 12},
    "gpt2": {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.5},
}


def make(model_type: str, vocab_size: int = 9, **settings: Any) -> Network:
    torch.manual_seed(0)
    config = {"model_type": model_type, "vocab_size": vocab_size, **SHAPES[model_type], **settings}
    network: Network = architecture(model_type).NETWORK(config_from_dict(config))
    network.initialise()
    return network


@pytest.mark.parametrize("model_type", SHAPES)
def test_equal_to_finite_differences(model_type: str) -> None:
    # every token its own: to move its row of the table is to move one place
    network = make(model_type).double()
    tokens = torch.tensor([[3, 1, 4, 7, 5, 2]])
    network.train()
    norms = gradient_norms(network, tokens)
    assert network.training
    network.eval()
    assert list(norms) == [1, 2, 3, 4, 5]
    table, step = network.get_parameter("token_embedding.weight"), 1e-5
    if model_type == "gpt2":  # tied: the head must not move along
        network.lm_head.weight = torch.nn.Parameter(table.detach().clone())

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(network(tokens[:, :-1])[:, -1], tokens[:, -1]).item()

    for k, norm in norms.items():
        token, gradient = tokens[0, -1 - k], torch.zeros(12, dtype=torch.float64)
        for i in range(12):
            old = table[token, i].item()
            with torch.no_grad():
                table[token, i] = old + step
                above = loss()
                table[token, i] = old - step
                gradient[i] = (above - loss()) / (2 * step)
                table[token, i] = old
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-4, abs=1e-12)


def test_a_plain_state_forgets_and_attention_does_not() -> None:
    torch.manual_seed(1)
    tokens = torch.randint(0, 9, (16, 41))
    kept = {}
    for model_type in ("rnn", "lstm", "gpt2"):
        norms = gradient_norms(make(model_type), tokens)
        kept[model_type] = norms[40] / norms[2]  # at 1 stands the token itself
    assert kept["rnn"] < 1e-6
    assert kept["rnn"] < kept["lstm"] < kept["gpt2"]
    assert kept["gpt2"] > 0.3


def test_what_has_no_gradients_by_distance_is_refused() -> None:
    ngram = architecture("ngram").NETWORK(config_from_dict({"model_type": "ngram", "vocab_size": 9}))
    with pytest.raises(UsageError, match="ngram"):
        gradient_norms(ngram, torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match="two tokens or more"):
        gradient_norms(make("rnn"), torch.zeros(1, 1, dtype=torch.int64))
