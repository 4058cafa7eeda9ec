"""The compiled network is the torch one, and a request never notices what is computed beside it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from loquela.engine.decoder import CompiledNetwork, compiled
from loquela.errors import UsageError
from loquela.generation.beam import beam_search
from loquela.generation.decode import generate_ids
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network, architecture, architectures
from loquela.models.position_switch import POSITIONS

LLAMA = {
    "vocab_size": 139,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
}
EXPERTS = {"num_experts": 21, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
TINY: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "tie_word_embeddings": True},
    "llama one head": {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 50, "mlp_bias": True},
    "mistral": {**LLAMA, "sliding_window": 21},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 24},
    "smollm3": {**LLAMA, "no_rope_layer_interval": 2},
    "gpt2": {"vocab_size": 139, "n_positions": 400, "n_embd": 72, "n_layer": 2, "n_head": 4},
    "gemma2": {
        **LLAMA,
        "head_dim": 20,
        "sliding_window": 21,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 3,
    },
    "gemma2 no caps": {**LLAMA, "head_dim": 12, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text": {
        **LLAMA,
        "head_dim": 12,
        "sliding_window": 21,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": {**LLAMA, "sliding_window": 21},
    "olmo2": {**LLAMA, "attention_bias": True},
    **{f"position_switch {way}": {**LLAMA, "position": way} for way in POSITIONS},
    "position_switch sinusoidal": {**LLAMA, "position": "sinusoidal", "tie_word_embeddings": True},
    "mixtral": {**LLAMA, "num_local_experts": 5, "sliding_window": 21},
    "qwen2_moe": {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
    "qwen3_moe": {**LLAMA, **EXPERTS, "head_dim": 12, "norm_topk_prob": True},
}
LONG = {
    **LLAMA,
    "original_max_position_embeddings": 50,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.3, 1.1],
        "long_factor": [2.0, 4.5, 3.0],
    },
}
"""Phi-3 that turns texts of more than 50 tokens otherwise, from their beginning."""
OTHERS = [
    name
    for name in architectures()
    if architecture(name).NETWORK.kind == "decoder" and name not in {tiny.split()[0] for tiny in TINY}
]


def make(name: str, fields: dict[str, Any] | None = None) -> Network:
    module = architecture(name.split()[0])
    fields = TINY[name] if fields is None else fields
    network: Network = module.NETWORK(module.CONFIG.from_dict({"model_type": name.split()[0], **fields}))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=generator)
            else:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module", params=sorted(TINY))
def network(request: pytest.FixtureRequest) -> Network:
    return make(request.param)


@pytest.fixture(scope="module")
def llama() -> Network:
    return make("llama")


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 139, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_logits_are_those_of_torch(network: Network) -> None:
    engine, ids = compiled(network), tokens(2, 70)
    expected = network(ids)
    assert (engine(ids) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_weights_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    network = make("qwen3").to(dtype)
    ids = tokens(1, 40)
    engine = compiled(network)
    expected = make("qwen3").to(dtype).float()(ids)
    assert (engine(ids) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(("cache_dtype", "bound", "smaller"), [("float16", 1e-3, 2.0), ("int8", 2e-2, 2.3)])
@torch.no_grad()
def test_a_narrow_cache_costs_little(cache_dtype: Any, bound: float, smaller: float, network: Network) -> None:
    engine, narrow, ids = compiled(network), compiled(network, cache_dtype=cache_dtype), tokens(1, 70)
    exact, found = engine(ids), narrow(ids)
    assert narrow.page_bytes * smaller <= engine.page_bytes
    assert 0 < (found - exact).square().mean() < bound**2 * exact.square().mean()


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_a_narrow_cache_keeps_its_bits_in_any_mix(cache_dtype: Any) -> None:
    engine = compiled(make("qwen3"), threads=2, cache_dtype=cache_dtype)
    texts = [tokens(length, seed=length).tolist() for length in (3, 40, 41, 130)]
    alone = [engine.hidden_rows([text], [engine.new_cache()])[0] for text in texts]
    for seed in range(2):
        mixes(engine, alone, texts, seed)


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.03), ("int4", 0.3)])
@torch.no_grad()
def test_quantised_logits_are_near(quantize: Any, bound: float, network: Network) -> None:
    ids = tokens(1, 70)
    exact, near = network(ids), compiled(network, quantize=quantize)(ids)
    assert 0 < (near - exact).square().mean() < bound**2 * exact.square().mean()


def mixes(engine: CompiledNetwork, alone: list[torch.Tensor], texts: list[list[int]], seed: int) -> None:
    """Feed the texts in random pieces, beside each other at random; every state must have the bits it has alone."""
    chance = random.Random(seed)
    caches, done = [engine.new_cache() for _ in texts], [0] * len(texts)
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        going = [i for i, text in enumerate(texts) if done[i] < len(text) and chance.random() < 0.7]
        pieces = [texts[i][done[i] : done[i] + chance.choice((1, 1, 1, 2, 5, 17, 64, 300))] for i in going]
        if not going:
            continue
        found = engine.hidden_rows(pieces, [caches[i] for i in going])
        for i, piece, states in zip(going, pieces, found, strict=True):
            assert torch.equal(states, alone[i][done[i] : done[i] + len(piece)])
            done[i] += len(piece)
            if chance.random() < 0.2 and done[i] > 1:  # rewind a little, and read it again
                done[i] -= chance.randint(1, min(3, done[i]))
                caches[i].truncate(done[i])
            elif chance.random() < 0.2:
                caches[i] = copy.deepcopy(caches[i])


def run_mixes(name: str, quantize: Any, count: int) -> None:
    network = make(name)
    engines = [compiled(network, quantize=quantize, threads=threads) for threads in (1, 2)]
    texts = [tokens(length, seed=length).tolist() for length in (3, 20, 40, 41, 130, 390)]
    alone = [engines[0].hidden(torch.tensor([text]))[0] for text in texts]
    logits = engines[0].logits_rows(torch.cat(alone))
    assert all(
        (engines[1].head(row).numpy() == logits[i]).all() for i, row in enumerate(torch.cat(alone)[::7]) if not i
    )
    for seed in range(count):
        mixes(engines[seed % 2], alone, texts, seed)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "qwen2_moe", "position_switch relative"])
def test_alone_or_beside_others_the_bits_are_the_same(name: str, quantize: Any) -> None:
    run_mixes(name, quantize, 4)


@pytest.mark.soak
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_hundreds_of_mixes(name: str, quantize: Any) -> None:
    run_mixes(name, quantize, 100)


@torch.no_grad()
def test_a_text_that_grows_long_is_turned_anew() -> None:
    """In pieces, one by one, beside others and rewound: after each step as if the whole text had been read at once."""
    network = make("phi3", LONG)
    engines, text = [compiled(network, threads=threads) for threads in (1, 2)], tokens(1, 130)
    for length in (49, 50, 51, 130):
        expected = network(text[:, :length])
        assert (engines[0](text[:, :length]) - expected).abs().max() < 2e-5 * expected.abs().max()
    for seed in range(4):
        chance, engine = random.Random(seed), engines[seed % 2]
        caches, done = [engine.new_cache() for _ in range(3)], [0] * 3
        while min(done) < 130:
            going = [i for i in range(3) if done[i] < 130 and chance.random() < 0.7]
            pieces = [text[0, done[i] : done[i] + chance.choice((1, 1, 2, 17, 64))].tolist() for i in going]
            found = engine.hidden_rows(pieces, [caches[i] for i in going]) if going else []
            for i, piece, states in zip(going, pieces, found, strict=True):
                done[i] += len(piece)
                assert len(states) == len(piece)
                assert torch.equal(states[-1], engines[0].hidden(text[:, : done[i]])[0, -1])
                if chance.random() < 0.2 and done[i] > 10:
                    done[i] -= chance.randint(1, 10)
                    caches[i].truncate(done[i])
                elif chance.random() < 0.2:
                    caches[i] = copy.deepcopy(caches[i])


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_last_states_alone_have_the_bits_that_they_have_among_all(network: Network, quantize: Any) -> None:
    engine, r = compiled(network, quantize=quantize, threads=2), random.Random(3)
    for _ in range(6):
        texts = [[r.randrange(network.vocab_size) for _ in range(r.randint(1, 120))] for _ in range(r.randint(1, 7))]
        wanted = [r.randint(0, len(text)) for text in texts]
        held = [[r.randrange(network.vocab_size) for _ in range(r.choice((0, 5, 33)))] for _ in texts]
        all_caches, caches = ([engine.new_cache() for _ in texts] for _ in range(2))
        for begun in (all_caches, caches):
            for text, cache in zip(held, begun, strict=True):
                if text:
                    engine.hidden_rows([text], [cache])
        states = engine.hidden_rows(texts, all_caches)
        found = engine.hidden_rows(texts, caches, wanted=wanted)
        assert [len(part) for part in found] == wanted
        assert all(torch.equal(s[len(s) - n :], f) for s, n, f in zip(states, wanted, found, strict=True))
        further = [[7]] * len(texts)
        pairs = zip(engine.hidden_rows(further, all_caches), engine.hidden_rows(further, caches), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_rows_of_logits_are_those_of_each(llama: Network) -> None:
    engine = compiled(llama, quantize="int8", threads=2)
    hidden = engine.hidden(tokens(1, 37))[0]
    together = engine.logits_rows(hidden)
    assert all((engine.head(row).numpy() == logits).all() for row, logits in zip(hidden, together, strict=True))


def test_padded_rows_are_as_alone(llama: Network) -> None:
    engine, ids = compiled(llama), tokens(2, 9)
    padding = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    states = engine.hidden(ids, padding=padding)
    assert torch.equal(states[1, 4:], engine.hidden(ids[1:, 4:])[0])
    assert torch.equal(states[0], engine.hidden(ids[:1])[0])


def test_the_one_decode_loop_and_beam_search_run_on_it(network: Network) -> None:
    engine = compiled(network)
    greedy = GenerationSettings(temperature=0, max_new_tokens=40)
    prompt = tokens(12).tolist()
    expected = [step.id for step in generate_ids(network, prompt, greedy)]
    assert [step.id for step in generate_ids(engine, prompt, greedy)] == expected
    beams = GenerationSettings(num_beams=3, max_new_tokens=12, do_sample=False)
    found, expected_ids = (beam_search(which, torch.tensor([prompt]), beams) for which in (engine, network))
    assert [list(h.ids) for h in found[0]] == [list(h.ids) for h in expected_ids[0]]


def test_copies_of_a_cache_go_their_own_ways(llama: Network) -> None:
    engine, text = compiled(llama), tokens(90).tolist()
    cache = engine.new_cache()
    engine.hidden_rows([text[:40]], [cache])
    copies = [copy.deepcopy(cache) for _ in range(3)]
    assert copies[0].rows[0].pages[0] is cache.rows[0].pages[0]
    for i, other in enumerate(copies):
        engine.hidden_rows([[i] * 30], [other])
    states = engine.hidden_rows([text[40:]], [cache])[0]
    assert torch.equal(states, engine.hidden(torch.tensor([text]))[0, 40:])


def test_a_crew_that_slept_wakes(llama: Network) -> None:
    import time

    engine, ids = compiled(llama, threads=2), tokens(1, 60)
    expected = engine.hidden(ids)
    for _ in range(3):
        time.sleep(0.1)
        assert torch.equal(engine.hidden(ids), expected)


@pytest.mark.parametrize("model_type", OTHERS)
def test_every_other_decoder_is_refused_by_a_brick_that_the_engine_does_not_know(model_type: str) -> None:
    """One that compiles has only bricks that it knows: give it a shape in TINY."""
    module = architecture(model_type)
    fields = {name: value for name, value in LLAMA.items() if name in module.CONFIG.__dataclass_fields__}
    network = module.NETWORK(module.CONFIG.from_dict({"model_type": model_type, **fields}))
    with pytest.raises(UsageError, match=r"does not know .* use the torch engine"):
        compiled(network)


def test_what_it_refuses(llama: Network) -> None:
    engine = compiled(llama)
    with pytest.raises(UsageError, match="from 0 to 138"):
        engine.hidden(torch.tensor([[139]]))
    with pytest.raises(UsageError, match="that it made"):
        engine.hidden(tokens(1, 3), cache=llama.new_cache())
    with pytest.raises(UsageError, match="int8 or int4"):
        compiled(llama, quantize="int2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be trained"):
        engine.initialise()
    with pytest.raises(UsageError, match=r"torch\.float64"):
        compiled(copy.deepcopy(llama).double())
