"""Adapters in the compiled engine: what torch computes, and the same bits whatever others wear."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from test_compiled import LONG, TINY, make, tokens

from loquela import peft
from loquela.engine.decoder import CompiledNetwork, compiled
from loquela.errors import ContextWindowError, UsageError
from loquela.generation.decode import generate_ids
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.peft.base import Part

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 4, "target_modules": "all-linear"}),
    "two": ("lora", {"r": 8}),
    "rslora": ("lora", {"r": 20, "use_rslora": True, "lora_bias": True}),
    "dora": ("lora", {"r": 3, "use_dora": True, "target_modules": "all-linear"}),
    "ia3": ("ia3", {}),
    "adapter": ("adapter", {"bottleneck_size": 7}),
    "parallel": ("adapter", {"is_parallel": True, "bottleneck_size": 33, "non_linearity": "gelu", "scaling": 1.5}),
    "half": ("adapter", {"mh_adapter": False, "bottleneck_size": 16, "non_linearity": "tanh"}),
    "inputs": ("ia3", {"target_modules": ["v_proj"], "feedforward_modules": ["v_proj"]}),
    "prompt": ("prompt", {"num_virtual_tokens": 5}),
    "prefix": ("prefix", {"num_virtual_tokens": 37}),
    "norms": ("selective", {"tune": ["norms", "biases"]}),
    "whole": ("selective", {"tune": ["attention", "embeddings"]}),
    "saved": ("lora", {"r": 4, "target_modules": "all-linear", "modules_to_save": ["q_proj", "lm_head"]}),
}


def dress(network: Network, methods: dict[str, tuple[str, dict[str, Any]]] = METHODS) -> Network:
    """Put an adapter of each kind on, none of which leaves the network as it was."""
    embeddings = ["wte", "wpe"] if network.config.model_type == "gpt2" else ["embed_tokens"]
    with_embeddings = methods | {"embeddings": ("lora", {"r": 3, "target_modules": [*embeddings, "lm_head"]})}
    generator = torch.Generator().manual_seed(1)
    fused = {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(network.config.model_type, "q_proj")
    for name, (method, settings) in with_embeddings.items():
        settings = settings | ({"modules_to_save": [fused, "lm_head"]} if "modules_to_save" in settings else {})
        if fused != "q_proj":
            settings = {key: [fused] if value == ["v_proj"] else value for key, value in settings.items()}
        peft.attach(network, peft.config_for(method, **settings), name, seed=0)
        with torch.no_grad():
            for parameter in peft.trainable(network, name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


NAMES = [*METHODS, "embeddings"]


@pytest.fixture(scope="module", params=sorted(TINY))
def network(request: pytest.FixtureRequest) -> Network:
    return dress(make(request.param))


@pytest.fixture(scope="module")
def llama() -> Network:
    return dress(make("llama"))


@torch.no_grad()
def test_each_is_what_torch_computes(network: Network) -> None:
    engine, ids = compiled(network), tokens(2, 70)
    base = engine(ids)
    for name in NAMES:
        with peft.wearing(network, name):
            expected, found = network(ids), engine(ids)
            assert engine.context_length == network.context_length
        assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
        assert (found - base).abs().max() > 1e-2 * base.abs().max()
    assert torch.equal(engine(ids), base)


@torch.no_grad()
def test_rows_of_a_batch_wear_different_ones(network: Network) -> None:
    engine, each = compiled(network), [None, *NAMES, "lora"]
    ids = tokens(len(each), 20)
    with peft.wearing(network, each):
        expected, found = network(ids), engine(ids)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_the_base_keeps_its_bits(network: Network) -> None:
    """Adapters on the network change nothing for those who wear none."""
    plain = copy.deepcopy(network)
    for name in NAMES:
        peft.detach(plain, name)
    ids = tokens(1, 50)
    for quantize in (None, "int8"):
        engine = compiled(network, quantize=quantize)  # type: ignore[arg-type]
        names = [name for name in NAMES if engine.refusal(name) is None]
        with peft.wearing(engine, [None, *names]):
            among = engine(ids.expand(1 + len(names), -1))
        assert torch.equal(among[0], compiled(plain, quantize=quantize)(ids)[0])  # type: ignore[arg-type]


def mixes(engine: CompiledNetwork, alone: list[torch.Tensor], texts: list[Any], seed: int) -> None:
    """Feed texts with their adapters in random pieces, beside each other at random; bits must be those alone."""
    chance = random.Random(seed)
    caches, done = [engine.new_cache() for _ in texts], [0] * len(texts)
    while any(at < len(text) for at, (_, text) in zip(done, texts, strict=True)):
        going = [i for i, (_, text) in enumerate(texts) if done[i] < len(text) and chance.random() < 0.7]
        chance.shuffle(going)
        pieces = [texts[i][1][done[i] : done[i] + chance.choice((1, 1, 1, 2, 5, 33, 300))] for i in going]
        if not going:
            continue
        worn = [texts[i][0] for i in going]
        found = engine.hidden_rows(pieces, [caches[i] for i in going], worn)
        logits = engine.logits_rows(torch.stack([states[-1] for states in found]), worn)
        for i, piece, states, row in zip(going, pieces, found, logits, strict=True):
            assert torch.equal(states, alone[i][done[i] : done[i] + len(piece)])
            assert (engine.logits_rows(states[-1:], [texts[i][0]])[0] == row).all()
            done[i] += len(piece)
            if chance.random() < 0.2:
                caches[i] = copy.deepcopy(caches[i])


def run_mixes(name: str, quantize: Any, count: int) -> None:
    network = dress(make(name))
    engines = [compiled(network, quantize=quantize, threads=threads) for threads in (1, 2)]
    chance, texts = random.Random(0), []
    for length in (3, 20, 41, 130, 300, 7, 7, 7, 64, 64):
        texts.append((chance.choice([None, *NAMES, "lora", "lora"]), tokens(length, seed=length)))
    texts = [(worn, text.tolist()) for worn, text in texts]
    alone = [engines[0].hidden_rows([text], [engines[0].new_cache()], [worn])[0] for worn, text in texts]
    for seed in range(count):
        mixes(engines[seed % 2], alone, texts, seed)


@pytest.mark.parametrize(("name", "quantize"), [("llama", None), ("llama", "int8"), ("gpt2", "int4"), ("qwen3", None)])
def test_in_any_mix_the_bits_are_the_same(name: str, quantize: Any) -> None:
    run_mixes(name, quantize, 2)


@pytest.mark.soak
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_hundreds_of_mixes_of_adapters(name: str, quantize: Any) -> None:
    run_mixes(name, quantize, 60)


@torch.no_grad()
def test_over_rounded_weights_an_adapter_adds_what_it_adds_over_all() -> None:
    """What LoRA adds is not rounded: over rounded weights the logits are as near as the base's own."""
    ids, network = tokens(1, 70), dress(make("llama"))
    engine = compiled(network, quantize="int8")
    errors = {}
    for name in (None, *peft.adapters(network)):
        with peft.wearing(network, name), peft.wearing(engine, name):
            expected, found = network(ids), engine(ids)
        errors[name] = float((found - expected).square().mean() / expected.square().mean()) ** 0.5
    assert all(0 < error < 0.03 for error in errors.values()), errors
    peft.detach(engine.base, "lora")  # the network that was rounded is another one
    assert "lora" in peft.adapters(network)
    assert "lora" not in peft.adapters(engine)


@torch.no_grad()
def test_put_on_changed_and_taken_off_while_it_runs() -> None:
    network, ids = make("llama"), tokens(1, 30)
    engine = compiled(network)
    base = engine(ids)
    peft.attach(network, peft.config_for("lora", r=4, init_lora_weights=False), "a", seed=0)
    with peft.wearing(network, "a"):
        first = engine(ids)
        assert (first - network(ids)).abs().max() < 2e-5 * first.abs().max()
        for parameter in peft.trainable(network, "a").values():
            parameter.mul_(0.5)
        second = engine(ids)
        assert (second - network(ids)).abs().max() < 2e-5 * second.abs().max()
    peft.attach(network, peft.config_for("adapter"), "b", seed=0)  # it reaches where nothing was reached before
    with peft.wearing(network, ["a", "b"]):
        both = engine(ids.expand(2, -1))
    assert torch.equal(both[0], second[0])
    peft.detach(network, "a")
    with pytest.raises(UsageError, match="no adapter 'a'"):
        engine.hidden_rows([[1]], [engine.new_cache()], ["a"])
    peft.attach(network, peft.config_for("lora", r=2, init_lora_weights=False), "a", seed=3)
    with peft.wearing(network, "a"):
        third = engine(ids)
        assert (third - network(ids)).abs().max() < 2e-5 * third.abs().max()
    assert not torch.equal(third, second)
    assert torch.equal(engine(ids), base)


@pytest.mark.parametrize("name", NAMES)
def test_the_decode_loop_wears_what_is_worn(name: str, llama: Network) -> None:
    engine, greedy = compiled(llama), GenerationSettings(temperature=0, max_new_tokens=12)
    with peft.wearing(llama, name):
        expected = [step.id for step in generate_ids(llama, tokens(12).tolist(), greedy)]
        assert [step.id for step in generate_ids(engine, tokens(12).tolist(), greedy)] == expected


def test_a_soft_prompt_and_its_cache(llama: Network) -> None:
    engine = compiled(llama)
    cache = engine.new_cache()
    engine.hidden_rows([[1, 2]], [cache], ["prompt"])
    assert (cache.length, cache.virtual) == (7, 5)
    with pytest.raises(UsageError, match="begun with 5"):
        engine.hidden_rows([[3]], [cache], [None])
    with pytest.raises(ContextWindowError, match="fit the 395"):
        engine.hidden_rows([[3] * 394], [cache], ["prompt"])
    cache.truncate(0)
    again = engine.hidden_rows([[3]], [cache], [None])[0]
    assert torch.equal(again, engine.hidden(torch.tensor([[3]]))[0])
    with peft.wearing(llama, [None, "lora"]), pytest.raises(UsageError, match="worn by 2 rows"):
        engine.hidden(tokens(3, 4))


@pytest.mark.parametrize("length", [4, 30, 60])
@torch.no_grad()
def test_virtual_positions_of_texts_that_grow_long(length: int) -> None:
    """They count as the text's own, and turn with it: after each step as if all had been read at once."""
    network, long = make("phi3", LONG), 50 - length
    for method in ("prompt", "prefix"):
        peft.attach(network, peft.config_for(method, num_virtual_tokens=length), method, seed=2)
    each = [None, "prompt", "prefix", "prompt"]
    engines, text = [compiled(network, threads=threads) for threads in (1, 2)], tokens(1, 90)
    steps = sorted({1, 10, *range(max(1, long - 2), max(1, long + 3)), 48, 50, 51, 53, 90})
    caches, done = [engines[1].new_cache() for _ in each], 0
    for end in steps:
        piece = text[0, done:end].tolist()
        found, done = engines[1].hidden_rows([piece] * len(each), caches, each), end
        for name, states in zip(each, found, strict=True):
            with peft.wearing(network, name):
                expected, again = network(text[:, :end]), engines[0](text[:, :end])
                assert (again - expected).abs().max() < 2e-5 * expected.abs().max()
                assert torch.equal(states[-1], engines[0].hidden(text[:, :end])[0, -1])
        assert {cache.virtual for cache in caches} == {0, length}
    for cache in caches:
        cache.truncate(length + 3)
    found = engines[1].hidden_rows([[7, 8]] * len(each), caches, each)
    again = torch.tensor([[*text[0, :3], 7, 8]])
    for name, states in zip(each[1:], found[1:], strict=True):
        with peft.wearing(network, name):
            assert torch.equal(states, engines[0].hidden(again)[0, -2:])


@torch.no_grad()
def test_a_prefix_in_a_narrow_cache(llama: Network) -> None:
    for cache_dtype, bound in (("float16", 2e-3), ("int8", 3e-2)):
        engine, ids = compiled(llama, cache_dtype=cache_dtype), tokens(1, 40)  # type: ignore[arg-type]
        for name in ("prefix", "prompt"):
            with peft.wearing(llama, name):
                expected, found = llama(ids), engine(ids)
            assert 0 < (found - expected).square().mean() < bound**2 * expected.square().mean()


def test_what_it_does_not_know_it_says() -> None:
    class Odd(Part):
        """A method of tomorrow."""

    network = make("llama")
    for name in ("lora", "odd"):
        peft.attach(network, peft.config_for("lora"), name)
    engine, parts = compiled(network), network.wardrobe.adapters["odd"].parts  # type: ignore[union-attr]
    parts |= {place: Odd(dict(part.tensors)) for place, part in parts.items()}
    assert engine.refusal("lora") is None
    assert "what an adapter of kind Odd does" in str(engine.refusal("odd"))
    with peft.wearing(network, "odd"), pytest.raises(UsageError, match="use the torch engine"):
        engine(tokens(1, 3))


@torch.no_grad()
def test_biases_by_distance_are_tuned() -> None:
    network = make("t5", {"vocab_size": 139, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4})
    settings = {"r": 3, "target_modules": ["relative_attention_bias", "q"], "init_lora_weights": False}
    peft.attach(network, peft.config_for("lora", **settings), "bias")
    engine, source, target = compiled(network), tokens(1, 50), tokens(1, 30, seed=1)
    base = network(target, source=source)
    with peft.wearing(network, "bias"):
        expected, found = network(target, source=source), engine(target, source=source)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (found - base).abs().max() > 1e-2 * base.abs().max()


@pytest.mark.parametrize("quantize", [None, "int8"])
@torch.no_grad()
def test_tensors_of_one_s_own_are_all_that_is_there_twice(quantize: Any) -> None:
    network, ids = make("llama"), tokens(1, 30)
    peft.attach(network, peft.config_for("selective", target_modules=["layers.1.mlp.up_proj"]), "a", seed=0)
    value = next(iter(peft.trainable(network, "a").values()))
    engine = compiled(network, quantize=quantize)
    before = engine(ids)
    with peft.wearing(engine, "a"):
        same = engine(ids)
        assert (same - before).abs().max() < (1e-5 if quantize is None else 0.03) * before.abs().max()
        own = engine._closet.outfit("a", fresh=False).runs.built.program
        assert own.weight_bytes == value.numel() * (8 if quantize is None else 4)  # gate_proj is read in place
        assert own._buffers is engine._program._buffers
    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    with peft.wearing(engine, "a"), peft.wearing(network, "a"):
        changed, expected = engine(ids), network(ids)
    bound = 1e-5 if quantize is None else 0.04
    assert (changed - expected).square().mean() < bound**2 * expected.square().mean()
    assert (changed - same).abs().max() > 1e-2 * same.abs().max()
    assert torch.equal(engine(ids), before)
