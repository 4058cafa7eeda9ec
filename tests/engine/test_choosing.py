"""Which engine generates, and what is said about it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from strange import estrange

from loquela import peft
from loquela.api import LanguageModel, load
from loquela.checkpoint.store import save_model
from loquela.engine import choosing
from loquela.engine.choosing import Engine
from loquela.engine.decoder import CompiledNetwork, compiled
from loquela.errors import UsageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer


def test_auto_compiles_what_is_large_enough(llama: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine().of(llama) is llama
    monkeypatch.setattr(choosing, "WORTH_IT", 1000)
    engine = Engine()
    assert isinstance(engine.of(llama), CompiledNetwork)
    assert engine.of(llama) is engine.of(llama)


def test_what_is_worn_is_compiled_where_the_engine_knows_it(llama: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "WORTH_IT", 1000)
    engine, network = Engine(), copy.deepcopy(llama)
    peft.attach(network, peft.config_for("lora"), "lora")
    peft.attach(network, peft.config_for("ia3"), "strange")
    estrange(network, "strange")
    with peft.wearing(network, "lora"):
        assert isinstance(engine.of(network), CompiledNetwork)
    assert engine.note is None
    with peft.wearing(network, "strange"):
        assert engine.of(network) is network
    assert "use the torch engine" in (engine.note or "")


def test_auto_leaves_to_torch_what_the_engine_does_not_know(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "WORTH_IT", 1000)
    engine = Engine()
    runs = engine.of(network)
    known = network.config.model_type != "lstm"
    assert isinstance(runs, CompiledNetwork) == known
    if not known:
        assert "use the torch engine" in (engine.note or "")
    if not known:
        with pytest.raises(UsageError):
            Engine("compiled").of(network)
    assert Engine("torch").of(network) is network


def test_new_weights_are_compiled_anew(llama: Network) -> None:
    engine = Engine("compiled")
    before, ids = engine.of(llama), torch.arange(5)[None]
    old = llama.decoder.norm.weight.detach().clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        llama.decoder.norm.weight.mul_(2)  # type: ignore[union-attr, operator]
        after = engine.of(llama)
        assert after is not before
        assert (after(ids) - llama(ids)).abs().max() < 1e-3
        llama.decoder.norm.weight.copy_(old)  # type: ignore[union-attr, operator]


def test_a_model_generates_the_same_in_each_engine(llama: Network, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(llama, tokenizer, tmp_path / "model")
    texts = {
        engine: load(tmp_path / "model", engine=engine).generate("The cat", temperature=0, max_new_tokens=20).text
        for engine in choosing.ENGINES
    }
    assert len(set(texts.values())) == 1
    small = load(tmp_path / "model", quantize="int8")
    assert isinstance(small.network, CompiledNetwork)
    assert small.generate("The cat", temperature=0, max_new_tokens=5).usage.completion_tokens == 5
    assert small.score("The cat sat on the mat").perplexity > 1


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_narrow_cache_is_asked_for(quantize: Any, llama: Network, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(llama, tokenizer, tmp_path / "model")
    sizes = {}
    for cache_dtype in ("float32", "float16", "int8"):
        model = load(tmp_path / "model", engine="compiled", quantize=quantize, cache_dtype=cache_dtype)  # type: ignore[arg-type]
        assert model.generate("The cat", temperature=0, max_new_tokens=20).usage.completion_tokens == 20
        runs = model.engine.of(model.network)
        assert isinstance(runs, CompiledNetwork)
        sizes[cache_dtype] = runs.page_bytes
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    small = load(tmp_path / "model", cache_dtype="int8")  # auto compiles it, small as it is
    assert isinstance(small.engine.of(small.network), CompiledNetwork)
    with pytest.raises(UsageError, match="cache of int8 needs the compiled engine"):
        load(tmp_path / "model", engine="torch", cache_dtype="int8")
    with pytest.raises(UsageError, match="float32, float16, int8, but is 'int3'"):
        compiled(llama, cache_dtype="int3")  # type: ignore[arg-type]


def test_what_cannot_be(llama: Network, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(llama, tokenizer, tmp_path / "model")
    with pytest.raises(UsageError, match="but is 'fast'"):
        load(tmp_path / "model", engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need the compiled engine"):
        load(tmp_path / "model", engine="torch", quantize="int8")
    dora = copy.deepcopy(llama)
    peft.attach(dora, peft.config_for("lora", use_dora=True), "dora")
    peft.save_adapter(dora, "dora", tmp_path / "dora")
    assert load(tmp_path / "model", adapter=tmp_path / "dora", quantize="int8").adapters
    monkeypatch.setattr(CompiledNetwork, "refusal", lambda self, name: "nobody knows its kind")
    with pytest.raises(UsageError, match=r"weights of int8 cannot wear .* merge it first"):
        load(tmp_path / "model", adapter=tmp_path / "dora", quantize="int8")
    with pytest.raises(UsageError, match="cannot be saved"):
        LanguageModel(load(tmp_path / "model", quantize="int4").network, tokenizer).save(tmp_path / "other")


def test_adapters_over_rounded_weights(llama: Network, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """From directories, chosen per call; the kept width of a directory is no other than the one asked for."""
    save_model(llama, tokenizer, tmp_path / "model")
    network = copy.deepcopy(llama)
    for name, settings in (("a", {"r": 4}), ("b", {"r": 9, "target_modules": "all-linear"})):
        peft.attach(network, peft.config_for("lora", init_lora_weights=False, **settings), name, seed=len(settings))
        peft.save_adapter(network, name, tmp_path / name)
    model = load(tmp_path / "model", {name: tmp_path / name for name in "ab"}, quantize="int8")
    assert isinstance(model.network, CompiledNetwork)
    assert model.adapters == ("a", "b")
    near = load(tmp_path / "model", {name: tmp_path / name for name in "ab"})
    ids = torch.arange(1, 20)
    for name in (None, "a", "b"):
        expected, found = near.logits(ids, adapter=name), model.logits(ids, adapter=name)
        assert 0 < (expected - found).square().mean() < 0.1**2 * expected.square().mean()
    texts = model.generate(["The cat"] * 3, adapter=[None, "a", "b"], temperature=0, max_new_tokens=12)
    assert [t.text for t in texts] == [
        model.generate("The cat", adapter=name, temperature=0, max_new_tokens=12).text for name in (None, "a", "b")
    ]
    assert len({t.text for t in texts}) == 3
    assert load(tmp_path / "model", tmp_path / "a", quantize="int4").generate("The", max_new_tokens=3).text
