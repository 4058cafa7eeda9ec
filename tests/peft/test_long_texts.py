"""Virtual positions before texts that turn otherwise when they grow long (Phi-3's LongRoPE)."""

from __future__ import annotations

import copy

import pytest
import torch

from loquela import peft
from loquela.models.base import Network, architecture

FIELDS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.3, 1.1],
        "long_factor": [2.0, 4.5, 3.0],
    },
}


def phi3(original: int = 16) -> Network:
    module = architecture("phi3")
    config = module.CONFIG.from_dict({"model_type": "phi3", **FIELDS, "original_max_position_embeddings": original})
    network: Network = module.NETWORK(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
    network = network.double().eval()
    for name, length in (("prompt", 5), ("prefix", 3)):
        peft.attach(network, peft.config_for(name, num_virtual_tokens=length), name, seed=1)
    return network


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@torch.no_grad()
def test_a_text_is_turned_as_long_as_it_is_with_them(name: str) -> None:
    """With a window that is all short, or all long, the rotation never changes: those are the two that there are."""
    network, virtual = phi3(), 5 if name == "prompt" else 3
    short, long = phi3(64), phi3(2)
    for other in (short, long):
        other.rotary_scale = network.rotary_scale
    text, cache, done = ids(1, 30), None, 0
    for end in (4, 16 - virtual, 17 - virtual, 18, 30):
        other = short if end + virtual <= 16 else long
        with peft.wearing(network, name), peft.wearing(other, name):
            expected = other(text[:, :end])
            assert torch.allclose(network(text[:, :end]), expected)
            cache = network.new_cache() if cache is None else cache
            found = network(text[:, done:end], cache=cache)
        assert torch.allclose(found, expected[:, done:])
        done = end
        assert (cache.length, cache.virtual) == (end + virtual, virtual)
        cache = copy.deepcopy(cache)


@torch.no_grad()
def test_rows_that_wear_different_ones_beside_none() -> None:
    network, each = phi3(), ["prompt", None, "prefix", "prompt"]
    text, cache, done = ids(4, 20), network.new_cache(), 0
    for end in (2, 11, 12, 13, 14, 16, 17, 20):
        with peft.wearing(network, each):
            found = network(text[:, done:end], cache=cache)
        for row, name in enumerate(each):
            with peft.wearing(network, name):
                alone = network(text[row : row + 1, :end])[0, done:]
            assert torch.allclose(found[row], alone)
        done = end


def test_they_are_tuned_across_the_edge() -> None:
    network = phi3()
    for name in ("prompt", "prefix"):
        parameter = next(iter(peft.train_only(network, name).values()))
        with peft.wearing(network, name):

            def loss(network: Network = network) -> torch.Tensor:
                return network(ids(1, 20)).square().mean()

            loss().backward()
            assert parameter.grad is not None
            gradient = parameter.grad.norm()
            step, losses = 1e-4 * parameter.grad / gradient, []
            with torch.no_grad():
                for ahead in (step, -2 * step):
                    parameter += ahead
                    losses.append(float(loss()))
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(gradient), rel=1e-4)
