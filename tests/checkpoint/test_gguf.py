"""GGUF files: round trips, proofs, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loquela.checkpoint.convert import convert
from loquela.checkpoint.store import load_model, save_model
from loquela.errors import LoquelaError
from loquela.text.tokenizer import Tokenizer


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_there_and_back(make: Any, tokenizer: Tokenizer, tmp_path: Path, model_type: str, dtype: str) -> None:
    network = make(model_type)
    save_model(network, tokenizer, tmp_path / "a")
    there = convert(tmp_path / "a", tmp_path / "m.gguf", dtype=dtype)["parity"]
    assert there["max_abs_logit_diff"] <= there["bound"]
    convert(tmp_path / "m.gguf", tmp_path / "b")
    back = load_model(tmp_path / "b").network.state_dict()
    if dtype == "f32":
        assert all(torch.equal(value, back[name]) for name, value in network.state_dict().items())


def test_a_damaged_file_is_refused_and_nothing_is_left(make: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make(), tokenizer, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for length in range(0, len(data), len(data) // 40):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(LoquelaError):
            convert(tmp_path / "cut.gguf", tmp_path / "b")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "cut.gguf", "m.gguf"]
