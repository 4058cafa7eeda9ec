from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loquela.checkpoint.flops import forward_flops, peak_flops, training_flops
from loquela.checkpoint.known import known_config
from loquela.checkpoint.skeleton import skeleton
from loquela.models import config_from_dict
from loquela.models.base import architecture

COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY = COMMON | {"num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 32}
CONFIGS = {
    "llama": ROTARY,
    "qwen3": ROTARY | {"head_dim": 16, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
}


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_the_formula_is_what_torch_counts(model_type: str) -> None:
    torch.manual_seed(0)
    network = architecture(model_type).NETWORK(config_from_dict({"model_type": model_type, **CONFIGS[model_type]}))
    tokens = torch.randint(50, (3, 16))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(tokens)
    assert counter.get_total_flops() == forward_flops(network, 16) * tokens.numel()
    assert training_flops(network, 16) == 3 * forward_flops(network, 16)


def test_of_a_mixture_the_chosen_experts_count() -> None:
    config = {"model_type": "mixtral", **ROTARY, "num_local_experts": 8, "num_experts_per_tok": 2}
    many = skeleton(config_from_dict(config))
    few = skeleton(config_from_dict({**config, "num_local_experts": 2}))
    routers = 2 * 6 * 32  # two layers, six more experts to choose from
    assert forward_flops(many, 16) == forward_flops(few, 16) + 2 * routers


def test_six_n_is_most_of_it() -> None:
    network = skeleton(known_config("gpt2-xl"))
    count = network.parameter_count()
    assert 6 * count < training_flops(network, 1024) < 6 * count * 1.2


def test_a_processor_is_measured() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None
    assert peak > 1e8
