from __future__ import annotations

import pytest
import torch

from loquela.errors import RecipeError
from loquela.models import config_from_dict
from loquela.models.base import Network, architecture
from loquela.training.layerwise import layers, recompute_layers


def network_of(model_type: str = "gpt2", **changes: object) -> Network:
    raw: dict[str, object] = {"model_type": model_type, "vocab_size": 24}
    if model_type == "gpt2":
        raw |= {"n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.2}
    torch.manual_seed(0)
    network: Network = architecture(model_type).NETWORK(config_from_dict(raw | changes))
    network.initialise()
    return network.train()


def gradients(network: Network) -> list[torch.Tensor]:
    torch.manual_seed(5)
    tokens = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(1))
    network(tokens).square().sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_computed_again_the_gradients_are_the_same_bits_dropout_included() -> None:
    kept, again = network_of(), network_of()
    recompute_layers(again)
    calls: list[int] = []
    for layer in layers(again):
        layer.feedforward.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(gradients(kept), gradients(again), strict=True))
    assert len(calls) == 6, "each of three layers twice"
    calls.clear()
    with torch.no_grad():
        again(torch.zeros(1, 4, dtype=torch.int64))
    assert len(calls) == 3


def test_a_network_without_layers_says_so() -> None:
    network = network_of("ngram", order=2)
    with pytest.raises(RecipeError, match="gradient_checkpointing must have layers to work on"):
        recompute_layers(network)
