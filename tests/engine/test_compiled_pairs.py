"""Encoder-decoders compiled: the function is torch's, and a request never notices what is computed beside it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loquela import peft
from loquela.api import load
from loquela.engine.choosing import Engine
from loquela.engine.decoder import CompiledNetwork, compiled
from loquela.engine.requests import Request
from loquela.engine.scheduler import Scheduler
from loquela.errors import UsageError
from loquela.generation.beam import beam_search
from loquela.generation.completion import choices
from loquela.generation.decode import generate_ids
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network, architecture, architectures
from loquela.text.tokenizer import Tokenizer

PAIR = {
    "vocab_size": 320,
    "d_model": 72,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 90,
    "decoder_ffn_dim": 100,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "max_position_embeddings": 400,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": 320,
    "d_model": 72,
    "d_kv": 20,
    "d_ff": 100,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TINY: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5 gated": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": T5,
    "bart": PAIR,
    "mbart": PAIR,
    "marian": {**PAIR, "vocab_size": 330, "decoder_vocab_size": 320, "share_encoder_decoder_embeddings": False},
    "transformer": PAIR,
    "transformer gelu": {**PAIR, "activation_function": "gelu", "scale_embedding": False},
}


def make(name: str) -> Network:
    module = architecture(name.split()[0])
    network: Network = module.NETWORK(module.CONFIG.from_dict({"model_type": name.split()[0], **TINY[name]}))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for place, parameter in network.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in place else 0.0, 0.3, generator=generator)
            else:  # T5 scales no score: its queries must be small, else all looks at one key
                std = 0.2 if "t5" not in name else 0.03 if "q_proj" in place else 0.12
                parameter.normal_(std=std, generator=generator)
        if hasattr(network, "final_logits_bias"):
            network.final_logits_bias.normal_(std=0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module", params=sorted(TINY))
def network(request: pytest.FixtureRequest) -> Network:
    return make(request.param)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 320, shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found: Tensor, expected: Tensor, bound: float = 2e-5) -> None:
    assert (found - expected).abs().max() < bound * expected.abs().max()


def test_every_encoder_decoder_is_here() -> None:
    kinds = {name for name in architectures() if architecture(name).NETWORK.kind == "encoder-decoder"}
    assert kinds == {name.split()[0] for name in TINY}


@pytest.mark.parametrize("length", [1, 43, 300])  # 300: more than what goes through a layer at once
@torch.no_grad()
def test_logits_are_those_of_torch(network: Network, length: int) -> None:
    source, target = tokens(2, length, seed=3), tokens(2, 70)
    expected = network(target, source=source)  # type: ignore[call-arg]
    assert expected.std() > 0.1
    assert_near(compiled(network)(target, source=source), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_sources_are_as_alone(network: Network, side: str) -> None:
    engine, source, target = compiled(network), tokens(3, 30, seed=3), tokens(3, 9)
    real = torch.arange(30) < torch.tensor([30, 12, 1])[:, None]
    real = real if side == "right" else real.flip(1)
    found = engine(target, source=source, source_padding=real)
    assert_near(found, network(target, source=source, source_padding=real))  # type: ignore[call-arg]
    for row in range(3):
        alone = engine(target[row : row + 1], source=source[row : row + 1, real[row]])
        assert torch.equal(found[row], alone[0])


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.04), ("int4", 0.5)])
@torch.no_grad()
def test_quantised_logits_are_near(quantize: Any, bound: float, network: Network) -> None:
    source, target = tokens(1, 43, seed=3), tokens(1, 70)
    exact = network(target, source=source)  # type: ignore[call-arg]
    near = compiled(network, quantize=quantize)(target, source=source)
    assert 0 < (near - exact).square().mean() < bound**2 * exact.square().mean()


@pytest.mark.parametrize(("cache_dtype", "bound"), [("float16", 2e-3), ("int8", 4e-2)])
@torch.no_grad()
def test_a_narrow_cache_costs_little(cache_dtype: Any, bound: float, network: Network) -> None:
    source, target = tokens(1, 43, seed=3), tokens(1, 70)
    exact, narrow = compiled(network), compiled(network, cache_dtype=cache_dtype)
    expected, found = exact(target, source=source), narrow(target, source=source)
    assert 0 < (found - expected).square().mean() < bound**2 * expected.square().mean()
    sizes = [engine.start(source)[0].bytes for engine in (exact, narrow)]  # type: ignore[attr-defined]
    assert sizes[1] * 1.9 < sizes[0]


def test_the_one_decode_loop_and_beam_search_run_on_it(network: Network) -> None:
    engine, prompt = compiled(network), tokens(12).tolist()
    greedy = GenerationSettings(temperature=0, max_new_tokens=40)
    expected = [step.id for step in generate_ids(network, prompt, greedy)]
    assert [step.id for step in generate_ids(engine, prompt, greedy)] == expected
    beams = GenerationSettings(num_beams=3, max_new_tokens=12, do_sample=False)
    found, wanted = (beam_search(which, torch.tensor([prompt]), beams) for which in (engine, network))
    assert [list(h.ids) for h in found[0]] == [list(h.ids) for h in wanted[0]]


def mixes(engine: CompiledNetwork, alone: list[Tensor], sources: list[list[int]], target: list[int], seed: int) -> None:
    """Read sources together at random, write targets in random pieces; every state must have the bits it has alone."""
    chance = random.Random(seed)
    caches: list[Any] = [None] * len(sources)
    while any(cache is None for cache in caches):
        several = [i for i, cache in enumerate(caches) if cache is None and chance.random() < 0.7]
        if not several:
            continue
        width = max(len(sources[i]) for i in several)
        padded = [[0] * (width - len(sources[i])) + sources[i] for i in several]
        real = torch.tensor([[j >= width - len(sources[i]) for j in range(width)] for i in several])
        together, _ = engine.start(torch.tensor(padded), padding=real)
        for row, i in enumerate(several):
            caches[i] = copy.deepcopy(together)
            caches[i].select(torch.tensor([row]))
    done = [0] * len(sources)
    while min(done) < len(target):
        going = [i for i in range(len(sources)) if done[i] < len(target) and chance.random() < 0.7]
        if not going:
            continue
        pieces = [target[done[i] : done[i] + chance.choice((1, 1, 1, 2, 5, 17, 64))] for i in going]
        found = engine.hidden_rows(pieces, [caches[i] for i in going])
        for i, piece, states in zip(going, pieces, found, strict=True):
            assert torch.equal(states, alone[i][done[i] : done[i] + len(piece)])
            done[i] += len(piece)
            if chance.random() < 0.2:
                caches[i] = copy.deepcopy(caches[i])


def run_mixes(name: str, count: int, **options: Any) -> None:
    network = make(name)
    engines = [compiled(network, threads=threads, **options) for threads in (1, 2)]
    sources = [tokens(length, seed=length).tolist() for length in (1, 9, 40, 41, 130, 390)]
    target = tokens(90).tolist()
    alone = [engines[0].hidden(torch.tensor([target]), source=torch.tensor([source]))[0] for source in sources]
    for seed in range(count):
        mixes(engines[seed % 2], alone, sources, target, seed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t5", {}),
        ("bart", {}),
        ("transformer", {"quantize": "int8"}),
        ("t5 gated", {"quantize": "int4", "cache_dtype": "int8"}),
        ("marian", {"cache_dtype": "float16"}),
    ],
)
def test_alone_or_beside_others_the_bits_are_the_same(name: str, options: dict[str, Any]) -> None:
    run_mixes(name, 4, **options)


@pytest.mark.soak
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_hundreds_of_mixes(name: str, quantize: Any) -> None:
    run_mixes(name, 60, quantize=quantize)


@pytest.mark.parametrize("name", ["t5", "transformer"])
def test_the_scheduler_serves_many_together(name: str, tokenizer: Tokenizer, serve: Callable[..., Scheduler]) -> None:
    engine = compiled(make(name), threads=2)
    dice = random.Random(0)
    requests = [
        Request(
            tuple(dice.randrange(3, 320) for _ in range(dice.choice([1, 7, 40, 200]))),
            GenerationSettings(
                max_new_tokens=dice.randint(1, 20), temperature=dice.choice([0, 0.9]), seed=i, n=dice.choice([1, 1, 2])
            ),
            frozenset(dice.sample(range(320), 8)),
        )
        for i in range(12)
    ]
    alone = [choices(engine, tokenizer, r.prompt, r.settings, end_ids=r.end_ids) for r in requests]
    scheduler = serve(engine, slots=7, queue=20)
    tickets = [scheduler.submit(request) for request in requests]
    assert [ticket.result() for ticket in tickets] == alone


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
@pytest.mark.parametrize("quantize", [None, "int8"])
@torch.no_grad()
def test_adapters_reach_both_halves(name: str, quantize: Any) -> None:
    network = make(name)
    for adapter, method, settings in (
        ("all", "lora", {"target_modules": "all-linear", "r": 5, "init_lora_weights": False}),
        ("words", "lora", {"target_modules": ["shared"] if name != "marian" else ["embed_tokens"], "r": 3}),
        ("ia3", "ia3", {}),
        ("thin", "adapter", {}),
        ("norms", "selective", {"tune": ["norms", "biases"]}),
        ("halves", "selective", {"tune": ["attention", "embeddings"]}),
        ("head", "lora", {"r": 3, "modules_to_save": ["lm_head"], "target_modules": "all-linear"}),
    ):
        peft.attach(network, peft.config_for(method, **settings), adapter, seed=len(adapter))
        for _, tensor in network.wardrobe.adapters[adapter].tensors():  # type: ignore[union-attr, attr-defined]
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    engine = compiled(network, quantize=quantize)
    source, target = tokens(1, 20, seed=5), tokens(1, 15)
    plain = network(target, source=source)  # type: ignore[call-arg]
    for adapter in peft.adapters(network):
        with peft.wearing(network, adapter):
            expected = network(target, source=source)  # type: ignore[call-arg]
        assert (expected - plain).abs().max() > 1e-2 * plain.abs().max()
        with peft.wearing(engine, adapter):
            found = engine(target, source=source)
        if quantize is None:
            assert_near(found, expected)
        else:
            assert (found - expected).square().mean() < 0.1**2 * expected.square().mean()


@torch.no_grad()
def test_rows_that_wear_different_things() -> None:
    network = make("transformer")
    for name in ("a", "b"):
        config = peft.config_for("lora", target_modules="all-linear", r=4, init_lora_weights=False)
        peft.attach(network, config, name, seed=ord(name))
    peft.attach(network, peft.config_for("selective", tune=["feedforward"]), "c", seed=1)
    with torch.no_grad():
        for parameter in peft.trainable(network, "c").values():
            parameter.mul_(1.5)
    engine, source, target = compiled(network, threads=2), tokens(6, 20, seed=5), tokens(6, 15)
    worn = ["c", None, "a", "c", "b", "a"]
    with peft.wearing(engine, worn):
        together = engine(target, source=source)
    for row, name in enumerate(worn):
        with peft.wearing(engine, name):
            alone = engine(target[row : row + 1], source=source[row : row + 1])
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("length", [1, 43, 300])
@pytest.mark.parametrize("quantize", [None, "int8"])
@torch.no_grad()
def test_virtual_positions_before_sources_and_targets(length: int, quantize: Any, network: Network) -> None:
    network = copy.deepcopy(network)
    for name, count in (("prompt", 5), ("prefix", 37)):
        peft.attach(network, peft.config_for(name, num_virtual_tokens=count), name, seed=count)
        for _, tensor in network.wardrobe.adapters[name].tensors():  # type: ignore[union-attr, attr-defined]
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    engine, source, target = compiled(network, quantize=quantize), tokens(1, length, seed=5), tokens(1, 15)
    plain, alone = engine(target, source=source), {}
    for name in ("prompt", "prefix"):
        with peft.wearing(network, name), peft.wearing(engine, name):
            expected, found = network(target, source=source), engine(target, source=source)  # type: ignore[call-arg]
            assert engine.context_length == network.context_length
            steps = [engine.hidden(target[:, :1], cache=(cache := engine.start(source)[0]))]
            steps += [engine.hidden(target[:, i : i + 1], cache=cache) for i in range(1, 15)]
            assert torch.equal(torch.cat(steps, dim=1), engine.hidden(target, source=source))
        if quantize is None:
            assert_near(found, expected)
            assert (found - plain).abs().max() > 1e-2 * plain.abs().max()
        else:
            assert (found - expected).square().mean() < 0.1**2 * expected.square().mean()
        alone[name] = found
    worn = ["prefix", None, "prompt", "prefix"]
    with peft.wearing(engine, worn):
        together = engine(target.expand(4, -1), source=source.expand(4, -1))
    assert torch.equal(together, torch.cat([alone["prefix"], plain, alone["prompt"], alone["prefix"]]))


def test_the_house_translator_says_the_same() -> None:
    """A real one, trained: greedy and by beams, in float32; rounded, it says nearly so."""
    model = load("translator", engine="torch")
    runs = Engine("compiled").of(model.network)
    assert isinstance(runs, CompiledNetwork)
    sentences = ["Where is the train station?", "I would like a cup of coffee.", "Tom doesn't know what to do."]
    for sentence in sentences:
        ids = model.tokenizer.encode(sentence)
        for settings in (
            GenerationSettings(temperature=0, max_new_tokens=40),
            GenerationSettings(num_beams=4, do_sample=False, max_new_tokens=40),
        ):
            texts = [
                choices(network, model.tokenizer, ids, settings, end_ids=model.end_ids)[0].text
                for network in (model.network, runs)
            ]
            assert texts[0] == texts[1]
            assert texts[0]
    rounded = load("translator", quantize="int8")
    assert isinstance(rounded.network, CompiledNetwork)
    assert rounded.generate(sentences[0], temperature=0).text == model.generate(sentences[0], temperature=0).text


def test_what_it_refuses(tokenizer: Tokenizer) -> None:
    network = make("bart")
    engine = compiled(network)
    with pytest.raises(UsageError, match="holds its source"):
        engine.new_cache()
    with pytest.raises(UsageError, match="holds its source"):
        engine.hidden(tokens(1, 3))
    with pytest.raises(UsageError, match="but a source has 401"):
        engine.start(tokens(1, 401))
    with pytest.raises(UsageError, match="from 0 to 319"):
        engine.start(torch.tensor([[320]]))
    with pytest.raises(UsageError, match="one is empty"):
        engine.start(tokens(2, 3), padding=torch.tensor([[True] * 3, [False] * 3]))
    peft.attach(network, peft.config_for("prompt", num_virtual_tokens=3), "prompt")
    with peft.wearing(engine, "prompt"), pytest.raises(UsageError, match="but a source has 401"):
        engine.start(tokens(1, 398))
