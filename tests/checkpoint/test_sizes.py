from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.checkpoint.sizes import PARTS, _measured, kept_per_token, size
from loquela.models.base import architecture, architectures, config_from_dict

LLAMA_7B = {"model_type": "llama"}
PUBLISHED = {  # parameters as their papers and model cards count them
    "gpt2": ({"model_type": "gpt2"}, 124_439_808),
    "gpt2-xl": ({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    "llama-7b": (LLAMA_7B, 6_738_415_616),
    "llama-2-70b": (
        {
            **LLAMA_7B,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        68_976_648_192,
    ),
    "qwen3-0.6b": (
        {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        596_049_920,
    ),
    "mixtral-8x7b": ({"model_type": "mixtral"}, 46_702_792_704),
}
ONE_TRILLION = {
    **LLAMA_7B,
    "vocab_size": 128256,
    "hidden_size": 24576,
    "intermediate_size": 65536,
    "num_hidden_layers": 160,
    "num_attention_heads": 192,
    "num_key_value_heads": 16,
    "max_position_embeddings": 131072,
}


def measure(raw: dict[str, Any], **settings: Any) -> Any:
    return size(config_from_dict(raw), **settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    raw, expected = PUBLISHED[name]
    assert measure(raw).parameters["total"] == expected


def small(model_type: str) -> dict[str, Any]:
    sizes = dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2)
    names = architecture(model_type).CONFIG.__dataclass_fields__
    return {"model_type": model_type, **{name: value for name, value in sizes.items() if name in names}}


@pytest.mark.parametrize("model_type", architectures())
def test_parts_of_every_architecture(model_type: str) -> None:
    """A newcomer's parameters have a part each, and the parts are all there is."""
    result = measure(small(model_type))
    parts = {name: count for name, count in result.parameters.items() if name != "total"}
    assert set(parts) <= set(PARTS)
    assert sum(parts.values()) == result.parameters["total"] > 0
    assert "other" not in parts or model_type.startswith("ngram")  # a table of counts is no part of a network
    assert all(isinstance(count, int) for count in (*parts.values(), *result.memory_bytes.values()))
    assert result.memory_bytes["run"] >= 4 * result.parameters["total"]


def test_parts_of_a_model_whose_head_is_tied_or_its_own() -> None:
    raw = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 20, "n_embd": 8, "n_layer": 3, "n_head": 2}
    tied, own = measure(raw).parameters, measure({**raw, "tie_word_embeddings": False}).parameters
    assert tied == {
        "total": 960 + 3 * (288 + 552) + 112,
        "embedding": 120 * 8,
        "attention": 3 * (8 * 24 + 24 + 8 * 8 + 8),
        "feed_forward": 3 * (2 * 8 * 32 + 32 + 8),
        "norms": 7 * 16,
    }
    assert own == {**tied, "total": tied["total"] + 800, "head": 800}


def test_memory_is_the_formula_of_the_help() -> None:
    raw = {**LLAMA_7B, "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
    raw |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512}
    result = measure(raw, tokens=100)
    total, memory = result.parameters["total"], result.memory_bytes
    linears = 3 * ((64 + 64) * 2 + (64 + 16) * 2 + (64 + 160) * 3)
    activations = 4 * 100 * (linears + 7 * 64 + 1064 + 1000)
    assert memory == {
        "run": 4 * total + 4 * 2 * 3 * 16 * 512,
        "tune_full": 16 * total + activations,
        "tune_lora": 4 * total + 16 * 16 * linears + activations,
        "train": 16 * total + 8 * activations,
    }
    assert measure(raw).tokens == 512
    assert measure({**raw, "max_position_embeddings": 4096}).tokens == 2048


def kept(network: torch.nn.Module, ids: Tensor) -> float:
    """Numbers per token that autograd really saves for the backward pass of a training step."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}
    alive = []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or the next tensor might take its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        F.cross_entropy(network(ids).flatten(0, 1), ids.flatten())
    return sum(saved.values()) / 4 / ids.numel()


DENSE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "gpt2", "n_embd": 96, "n_layer": 4, "n_head": 4, **NO_DROPOUT},
        {"model_type": "llama", **DENSE},
        {"model_type": "llama", **DENSE, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"model_type": "qwen3", **DENSE, "num_key_value_heads": 2, "head_dim": 24},
        {"model_type": "gru"},
        {
            "model_type": "mixtral",
            **DENSE,
            "num_key_value_heads": 2,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ],
    ids=lambda raw: raw["model_type"],
)
def test_activations_are_within_a_third_of_what_autograd_keeps(raw: dict[str, Any]) -> None:
    config = config_from_dict({"vocab_size": 500, **raw})
    torch.manual_seed(0)
    network = architecture(config.model_type).NETWORK(config)
    network.initialise()
    real = kept(network, torch.randint(0, 500, (4, 64)))
    assert 2 / 3 <= (kept_per_token(network) + network.vocab_size) / real <= 4 / 3


@pytest.mark.parametrize("model_type", [name for name in architectures() if "moe" in name or name == "mixtral"])
@pytest.mark.parametrize("experts", [5, 12])
def test_many_experts_are_counted_as_if_each_were_laid_out(model_type: str, experts: int) -> None:
    key = "num_local_experts" if model_type == "mixtral" else "num_experts"
    config = config_from_dict({**small(model_type), key: experts, "num_experts_per_tok": 2})
    assert size(config) == _measured(config, None)


def test_a_trillion_parameters_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = measure(ONE_TRILLION)
    assert 9.8e11 < result.parameters["total"] < 1e12
    assert result.memory_bytes["run"] == 4 * result.parameters["total"] + 4 * 131072 * 160 * 2 * 16 * 128
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_layers_that_differ_are_counted_one_by_one() -> None:
    raw = {**small("qwen3_moe"), "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [1]}
    dense, mixed = measure({**raw, "mlp_only_layers": [0, 1]}), measure(raw)
    sparse = measure({**raw, "mlp_only_layers": []})
    ones = [result.parameters["feed_forward"] for result in (dense, mixed, sparse)]
    assert ones[1] - ones[0] == ones[2] - ones[1] > 0
