"""config.json of decoders: the spelling of older files, what is written back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loquela.checkpoint.store import load_model
from loquela.errors import ConfigError, UsageError
from loquela.layers.cache import Cache
from loquela.models.base import Network, architecture, config_from_dict

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.3], "long_factor": [2.0, 4.5]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}

# As transformers 4 wrote them, and as they lie on the Hub.
OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaMA 2": ("llama", {"rope_scaling": None, "pretraining_tp": 1, "torch_dtype": "float32"}),
    "LLaMA 3": ("llama", {"rope_theta": 500000.0, "rope_scaling": None, "mlp_bias": False}),
    "LLaMA 3.1": ("llama", {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    "Vicuna 16k": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "SmolLM2": ("llama", {"rope_theta": 100000, "rope_interleaved": False, "is_llama_config": True}),
    "Mistral": ("mistral", {"rope_theta": 10000.0, "sliding_window": 7}),
    "Mixtral": ("mixtral", {"rope_theta": 1e6, "num_local_experts": 4, "output_router_logits": False}),
    "Qwen2.5": (
        "qwen2",
        {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 7, "max_window_layers": 2},
    ),
    "Qwen2.5, long": (
        "qwen2",
        {"rope_theta": 1e6, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"}},
    ),
    "Qwen3": ("qwen3", {"rope_theta": 1e6, "head_dim": 8, "sliding_window": 5, "use_sliding_window": True}),
    "Qwen1.5-MoE": ("qwen2_moe", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "Qwen3-MoE": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "mlp_only_layers": [], "max_window_layers": 4}),
    "SmolLM3": ("smollm3", {"rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0], "max_window_layers": 28}),
    "Phi-3": ("phi3", {"sliding_window": 7, "rope_theta": 10000.0, "attention_bias": False}),
    "Phi-4-mini": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32, "partial_rotary_factor": 0.5},
    ),
    "Gemma 2": (
        "gemma2",
        {
            "head_dim": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "cache_implementation": "hybrid",
            "rope_theta": 10000.0,
            "sliding_window": 7,
        },
    ),
    "Gemma 3": (
        "gemma3_text",
        {
            "head_dim": 12,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 7,
            "sliding_window_pattern": 2,
        },
    ),
}


@pytest.mark.parametrize("name", OLD)
@torch.no_grad()
def test_files_of_transformers_4(name: str, tmp_path: Path) -> None:
    """The same weights under the old spelling and under today's: the numbers that transformers makes of them."""
    model_type, special = OLD[name]
    old = {**BASE, **special}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **old)).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 97, (2, 48), generator=torch.Generator().manual_seed(1))
    expected = model(ids).logits
    for spelling in (json.loads((tmp_path / "config.json").read_text()), {**old, "model_type": model_type}):
        (tmp_path / "config.json").write_text(json.dumps(spelling))
        network = load_model(tmp_path).network
        assert float((network(ids) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        # what is written is both spellings, and reads as the same
        written = network.config.to_dict()
        assert config_from_dict(written).to_dict() == written
        older = {key: value for key, value in written.items() if key != "rope_parameters"}
        assert config_from_dict(older).to_dict() == written


def test_the_window_that_yarn_stretches() -> None:
    network = small("qwen2", rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    assert network.context_length == 256
    assert small("qwen2").context_length == 64


def test_the_first_name_of_longrope() -> None:
    """Phi-3 called it `su`; transformers 5 does not read that any more."""
    first, now = (
        config_from_dict({**BASE, "model_type": "phi3", "partial_rotary_factor": 0.5, "rope_scaling": scaling})
        for scaling in ({**LONGROPE, "type": "su"}, LONGROPE)
    )
    assert first == now


def small(model_type: str, **special: Any) -> Network:
    network: Network = architecture(model_type).NETWORK(config_from_dict({**BASE, "model_type": model_type, **special}))
    return network


@pytest.mark.parametrize(
    ("model_type", "wrong", "says"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "which a cache cannot follow"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a positive number"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor must be a positive number"),
        ("llama", {"rope_scaling": [1]}, "rope_scaling must be an object"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "does not know partial_rotary_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "unknown key 'partial_rotary_factor'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5}, "rope_theta must be the same"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "must be less than"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("llama", {"sliding_window": 4}, "unknown key 'sliding_window'"),
        ("llama", {"attention_bias": "no"}, "attention_bias must be true or false"),
        ("llama", {"attention_dropout": 1.5}, "attention_dropout must be a share"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
        ("llama", {"num_hidden_layers": 2**30}, "num_hidden_layers must be at most"),
        ("llama", {"head_dim": 7}, "head_dim must be even"),
        ("llama", {"hidden_act": "softsign"}, "hidden_act must be one of"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a positive"),
        ("mistral", {"sliding_window": True}, "sliding_window must be a positive"),
        ("qwen2", {"layer_types": ["full_attention"]}, "each of the 4 hidden layers"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "where sliding_window is None"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "must be full_attention"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 1, 2, 0]}, "no_rope_layers"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "at most num_local_experts"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("mixtral", {"output_router_logits": True}, "output_router_logits"),
        ("qwen3_moe", {"num_experts": 4, "num_local_experts": 5, **EXPERTS}, "num_experts must be num_local_experts"),
        ("qwen3_moe", {"num_experts": 1, **EXPERTS}, "at most num_experts"),
        (
            "phi3",
            {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}, "partial_rotary_factor": 0.5},
            "long_factor must be",
        ),
        ("phi3", {"rope_scaling": {**LONGROPE, "factor": -1.0}}, "factor must be a positive"),
        ("phi3", {"partial_rotary_factor": 0.4}, "an even part of a head"),
        ("phi3", {"partial_rotary_factor": 2.0}, "an even part of a head"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type must be one of default, longrope"),
        ("phi3", {"embd_pdrop": 0.1}, "embd_pdrop"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_act": "gelu", "hidden_activation": "relu"}, "hidden_act must be hidden_activation"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping must be a positive number"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be a positive"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters must have full_attention"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model_type: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_from_dict({**BASE, "model_type": model_type, **wrong})


class TestLongPhi3:
    """A text that outgrows the original window is rotated in another way from its first token on."""

    def network(self) -> Network:
        network = small(
            "phi3", rope_scaling=LONGROPE, original_max_position_embeddings=32, partial_rotary_factor=0.5
        ).eval()
        torch.manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
        return network

    @torch.no_grad()
    def test_rows_outgrow_it_one_after_the_other(self) -> None:
        network, ids = self.network(), torch.randint(0, 97, (2, 44), generator=torch.Generator().manual_seed(0))
        real = torch.arange(44) >= torch.tensor([[0], [6]])
        memory = network.new_cache()
        network(ids[:, :28], cache=memory, padding=real[:, :28])
        for end in range(29, 45):
            step = network(ids[:, end - 1 : end], cache=memory, padding=real[:, :end])
            for row in range(2):
                alone = network(ids[row : row + 1, :end][:, real[row, :end]])
                torch.testing.assert_close(step[row, -1], alone[0, -1], rtol=0, atol=1e-4)

    @torch.no_grad()
    def test_and_back_again(self) -> None:
        network, ids = self.network(), torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(0))
        memory = network.new_cache()
        network(ids, cache=memory)
        memory.truncate(20)
        torch.testing.assert_close(network(ids[:, 20:25], cache=memory), network(ids[:, :25])[:, 20:])
        assert memory.length == 25

    def test_a_cache_that_cannot_follow_is_refused(self) -> None:
        with pytest.raises(UsageError, match="new_cache"):
            self.network()(torch.zeros(1, 3, dtype=torch.long), cache=Cache(4))
