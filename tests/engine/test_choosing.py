"""Which engine generates, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loquela.api import LanguageModel, load
from loquela.checkpoint.store import save_model
from loquela.engine import choosing
from loquela.engine.choosing import Engine
from loquela.engine.decoder import CompiledNetwork
from loquela.errors import UsageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer


def test_auto_compiles_what_is_large_enough(llama: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine().of(llama) is llama
    monkeypatch.setattr(choosing, "WORTH_IT", 1000)
    engine = Engine()
    assert isinstance(engine.of(llama), CompiledNetwork)
    assert engine.of(llama) is engine.of(llama)
    assert engine.of(llama, dressed=True) is llama
    assert "adapter" in (engine.note or "")


def test_auto_leaves_to_torch_what_the_engine_does_not_know(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "WORTH_IT", 1000)
    engine = Engine()
    runs = engine.of(network)
    known = network.config.model_type in ("llama", "gpt2")
    assert isinstance(runs, CompiledNetwork) == known
    if not known and network.kind == "decoder":
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


def test_what_cannot_be(llama: Network, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(llama, tokenizer, tmp_path / "model")
    with pytest.raises(UsageError, match="but is 'fast'"):
        load(tmp_path / "model", engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need the compiled engine"):
        load(tmp_path / "model", engine="torch", quantize="int8")
    with pytest.raises(UsageError, match="merge it first"):
        load(tmp_path / "model", adapter="somewhere", quantize="int8")
    with pytest.raises(UsageError, match="cannot be saved"):
        LanguageModel(load(tmp_path / "model", quantize="int4").network, tokenizer).save(tmp_path / "other")
