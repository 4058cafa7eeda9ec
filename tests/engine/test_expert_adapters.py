"""Adapters of single experts of a mixture, and of rounded matrices, in the compiled engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_compiled import make, tokens

from loquela import peft
from loquela.engine.decoder import compiled
from loquela.engine.quantize import laid_out, quantised, read_back, together
from loquela.models.base import Network

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def methods(gate: str, down: str, up: str) -> dict[str, tuple[str, dict[str, Any]]]:
    ends = [gate, down, up]
    some = [f"experts.{i}.{end}" for i in (0, 1, 3) for end in ends]
    inputs = [f"experts.{i}.{gate}" for i in (0, 2, 3)]
    return {
        "all": ("lora", {"r": 4, "target_modules": ends}),
        "some": ("lora", {"r": 20, "use_rslora": True, "lora_bias": True, "target_modules": some}),
        "dora": ("lora", {"r": 3, "use_dora": True, "target_modules": ends}),
        "outputs": ("ia3", {"target_modules": some, "feedforward_modules": []}),
        "narrow": ("ia3", {"target_modules": [down], "feedforward_modules": [down]}),
        "inputs": ("ia3", {"target_modules": inputs, "feedforward_modules": inputs}),
        "tuned": ("selective", {"target_modules": some[:5]}),
        "saved": ("lora", {"target_modules": some[:3], "modules_to_save": ["experts.3"]}),
    }


def dressed(name: str) -> Network:
    """A mixture with an adapter of each kind on its experts, all of which the texts use."""
    ends = ("w1", "w2", "w3") if name == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    network, generator = make(name), torch.Generator().manual_seed(1)
    for other, (method, settings) in methods(*ends).items():
        peft.attach(network, peft.config_for(method, **settings), other, seed=0)
        with torch.no_grad():
            for parameter in peft.trainable(network, other).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_each_is_what_torch_computes_beside_whatever_others(name: str) -> None:
    network = dressed(name)
    engine, names = compiled(network, threads=2), peft.adapters(network)
    each = [None, *names, "some", "dora"]
    ids = tokens(len(each), 40)
    with peft.wearing(engine, each):
        found = engine(ids)
    base = network(ids)
    for row, worn in enumerate(each):
        with peft.wearing(network, worn):  # torch cannot let rows of a batch wear different ones here
            expected = network(ids[row : row + 1])[0]
        assert (found[row] - expected).abs().max() < 2e-5 * expected.abs().max()
        assert worn is None or (found[row] - base[row]).abs().max() > 1e-3 * base.abs().max()


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_beside_others_the_bits_are_those_alone(name: str, quantize: Any) -> None:
    network = dressed(name)
    one, two = (compiled(network, quantize=quantize, threads=threads) for threads in (1, 2))
    each = [None, *peft.adapters(network), "some", None, "narrow"]
    texts = [tokens(length, seed=length).tolist() for length in range(31, 31 + len(each))]
    together_ = two.hidden_rows(texts, [two.new_cache() for _ in each], each)
    for worn, text, found in zip(each, texts, together_, strict=True):
        cache = one.new_cache()
        pieces = [text[:17], text[17:18], text[18:]]
        alone = torch.cat([one.hidden_rows([piece], [cache], [worn])[0] for piece in pieces])
        assert torch.equal(alone, found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(33, 70), (16, 64), (5, 31), (100, 1)])
def test_a_matrix_of_few_bits_is_read_back(bits: int, shape: tuple[int, int]) -> None:
    parts = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    tiles, tile_bytes, padded, work = laid_out(parts, bits)
    together(work, 1)
    for start, part in zip((0, shape[0]), parts, strict=True):
        found = read_back(tiles, bits, tile_bytes, padded, slice(start, start + shape[0]), shape[1])
        assert torch.equal(found, quantised(part, bits).dequantised())


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("method", ["dora", "inputs"])
@torch.no_grad()
def test_over_rounded_weights_it_is_that_of_these(method: str, quantize: Any) -> None:
    """The lengths of DoRA, and inputs that several matrices share: over a base that is what the rounded one stands
    for, the logits differ by no more than what the rounding of activations costs the base itself."""
    network = make("qwen2")
    plain, factors = ["q_proj", "k_proj", "up_proj", "down_proj"], ["v_proj", "up_proj", "gate_proj"]
    settings: dict[str, Any] = {"r": 3, "use_dora": True, "target_modules": plain}
    if method == "inputs":
        settings = {"target_modules": factors, "feedforward_modules": factors}
    peft.attach(network, peft.config_for("lora" if method == "dora" else "ia3", **settings), "a", seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in peft.trainable(network, "a").values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    engine, ids = compiled(network, quantize=quantize), tokens(1, 70)
    for name in engine._program.sites:
        if isinstance(layer := network.get_submodule(name), torch.nn.Linear):
            layer.weight.copy_(engine._program.matrix(name))
    errors = {}
    for worn in (None, "a"):
        with peft.wearing(network, worn), peft.wearing(engine, worn):
            expected, found = network(ids), engine(ids)
        errors[worn] = float((found - expected).square().mean() / expected.square().mean()) ** 0.5
    assert 0 < errors["a"] < 1.5 * errors[None] < 0.03, errors
