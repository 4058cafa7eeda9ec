"""`loquela convert --quantize`: what is written is what was rounded, and what that costs is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loquela.api import load
from loquela.checkpoint.store import load_model, save_model
from loquela.checkpoint.tensors import read_tensors, write_tensors
from loquela.cli.rounding import round_model
from loquela.engine.decoder import CompiledNetwork
from loquela.engine.quantize import quantised
from loquela.errors import CheckpointError, ConfigError, UsageError
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer

FIELDS = {
    "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def made(model_type: str, place: Path, **more: object) -> Path:
    tokenizer = Tokenizer.train("bpe", ["The cat sat on the mat; the dog sat on the log.\n" * 20], 300)
    module = architecture(model_type)
    fields = {"model_type": model_type, "vocab_size": tokenizer.vocab_size, **FIELDS, **more}
    network = module.NETWORK(module.CONFIG.from_dict(fields))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=generator)
    save_model(network, tokenizer, place)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("llama", tmp_path_factory.mktemp("round") / "model")


@pytest.fixture(scope="module", params=["int8", "int4"])
def rounded(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("rounded")
    text = place / "text.txt"
    text.write_text("The cat sat on the log. " * 20)
    return request.param, place / "model", round_model(model, place / "model", request.param, text)


def test_the_values_are_those_of_codes_and_scales(model: Path, rounded: Any) -> None:
    quantize, place, result = rounded
    assert result["parity"]["max_abs_logit_diff"] <= result["parity"]["bound"] == 1e-5
    before: Any = load_model(model).network
    after: Any = load_model(place).network
    for name, module in before.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = quantised(module.weight, int(quantize[3:])).dequantised()
            assert torch.equal(after.get_submodule(name).weight, expected)
    assert torch.equal(before.token_embedding.weight, after.token_embedding.weight)
    assert result["bytes"]["after"] < result["bytes"]["before"] * (0.55 if quantize == "int8" else 0.45)


def test_what_is_lost_is_said(rounded: Any) -> None:
    quantize, _, result = rounded
    perplexity = result["perplexity"]
    assert perplexity["tokens"] > 50
    assert abs(perplexity["change"]) < (0.05 if quantize == "int8" else 0.5)
    assert perplexity["after"] / perplexity["before"] - 1 == pytest.approx(perplexity["change"])


def test_opened_it_runs_in_its_width_with_the_same_codes(model: Path, rounded: Any) -> None:
    quantize, place, _ = rounded
    small = load(place)
    assert isinstance(small.network, CompiledNetwork)
    ids = torch.arange(30)[None]
    assert torch.equal(small.logits(ids), load(model, quantize=quantize).logits(ids))
    assert not isinstance(load(place, engine="torch").network, CompiledNetwork)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_routers_are_stored_as_they_are(quantize: str, tmp_path: Path) -> None:
    few = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    plain = made("qwen2_moe", tmp_path / "plain", **few, shared_expert_intermediate_size=24)
    round_model(plain, tmp_path / "rounded", quantize, None)
    ids = torch.arange(30)[None]
    stored, at_load = load(tmp_path / "rounded"), load(plain, quantize=quantize)
    assert torch.equal(stored.logits(ids), at_load.logits(ids))


def test_a_config_or_scales_that_lie(rounded: Any, tmp_path: Path) -> None:
    import shutil

    _, place, _ = rounded
    shutil.copytree(place, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    weights = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.read() for name, tensor in read_tensors(weights).items()}
    name = next(name for name in tensors if name.endswith("_scale"))
    weights.unlink()
    write_tensors(weights, {**tensors, name: tensors[name][:, :1].contiguous()}, {"format": "pt"})
    with pytest.raises(CheckpointError, match="bfloat16 for every row"):
        load_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"]["bits"] = 3
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="bits of 8 or 4"):
        load_model(tmp_path / "model")


def test_what_it_refuses(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a new path"):
        round_model(model, tmp_path, "int8", None)
    with pytest.raises(UsageError, match="model directories"):
        round_model(model, tmp_path / "model.gguf", "int8", None)
