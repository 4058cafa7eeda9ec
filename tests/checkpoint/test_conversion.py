"""Conversions and their proof: kept when the logits are those of the source, else nothing is left."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from loquela.checkpoint import convert as conversion
from loquela.checkpoint.convert import convert
from loquela.checkpoint.store import Loaded, load_model, save_model
from loquela.errors import CheckpointError, MismatchError, TokenizerError, UsageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

Make = Callable[..., Network]


@pytest.fixture
def source(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(make(), tokenizer, tmp_path / "source", generation_config={"temperature": 0.5})
    return tmp_path / "source"


def test_a_directory_to_a_directory(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("of the model")
    result = convert(source, tmp_path / "target")
    assert result["model"] == str(tmp_path / "target")
    assert result["parity"]["max_abs_logit_diff"] == 0
    assert result["parity"]["bound"] == 1e-5
    assert result["parity"]["tokens"] > 60
    assert result["tokenizer"]
    assert result["left_out"] == ["README.md"]
    before, after = load_model(source), load_model(tmp_path / "target")
    assert result["parameters"] == before.network.parameter_count()
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    assert before.tokenizer.fingerprint == after.tokenizer.fingerprint
    assert after.generation_config == {"temperature": 0.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_become_one_file_and_every_bit_stays(make: Make, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**make().config.to_dict())).to(dtype)
    theirs.save_pretrained(tmp_path / "source", max_shard_size="4KB")
    result = convert(tmp_path / "source", tmp_path / "target")
    assert not result["tokenizer"]
    assert result["left_out"] == []
    assert json.loads((tmp_path / "target" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    weights = load_file(tmp_path / "target" / "model.safetensors")
    for name, value in theirs.state_dict().items():
        assert weights[name].dtype == dtype
        assert torch.equal(weights[name], value)


def test_logits_that_differ_leave_nothing_on_the_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = conversion.load_model

    def shifted(path: Path, **settings: str) -> Loaded:
        loaded = original(path, **settings)
        if path != source:
            with torch.no_grad():
                loaded.network.get_parameter("lm_head.weight")[5, 3] += 0.01
        return loaded

    monkeypatch.setattr(conversion, "load_model", shifted)
    with pytest.raises(CheckpointError, match=r"may differ by 1e-05 from those of the source, but differ by .*nothing"):
        convert(source, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_logits_that_are_no_numbers_prove_nothing(make: Make, tmp_path: Path) -> None:
    network = make()
    with torch.no_grad():
        network.get_parameter("lm_head.weight")[0, 0] = float("nan")
    save_model(network, None, tmp_path / "source")
    with pytest.raises(CheckpointError, match="but differ by nan"):
        convert(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_that_differs_leaves_nothing_on_the_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = conversion.load_model

    def other(path: Path, **settings: str) -> Loaded:
        loaded = original(path, **settings)
        return loaded if path == source else dataclasses.replace(loaded, tokenizer=Tokenizer.train("char", ["abc"]))

    monkeypatch.setattr(conversion, "load_model", other)
    with pytest.raises(CheckpointError, match="must give the tokens of the source"):
        convert(source, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_not_known_is_refused_with_what_is(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(UsageError, match=r"one of: a model directory .*; a llama2\.c checkpoint .*none of them"):
        convert(tmp_path / "notes.md", tmp_path / "target")
    with pytest.raises(UsageError, match=r"one of: a model directory .*but is target\.safetensors"):
        convert(source, tmp_path / "target.safetensors")
    with pytest.raises(UsageError, match="must exist, but"):
        convert(tmp_path / "nothing", tmp_path / "target")
    with pytest.raises(UsageError, match="must be a new path"):
        convert(source, source)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="pickled weights"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "target")
    (tmp_path / "model.bin").write_bytes(_llama2c())
    with pytest.raises(TokenizerError, match="must lie beside it"):
        convert(tmp_path / "model.bin", tmp_path / "target")
    (source / "manifest.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 25}))
    with pytest.raises(MismatchError, match="6 misshapen"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def _llama2c() -> bytes:
    dim, hidden, layers, heads, kv_heads, vocabulary, context = 4, 4, 1, 1, 1, 300, 2
    count = vocabulary * dim + layers * (2 * dim + 4 * dim * dim + 3 * dim * hidden) + dim + context * dim
    return struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocabulary, context) + bytes(4 * count)
