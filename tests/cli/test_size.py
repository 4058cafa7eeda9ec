from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
RECIPE = """
model: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}
tokenizer: {kind: bpe, vocab_size: 1000}
data: shakespeare
block_size: 96
output_dir: runs/x
"""


def test_a_directory_and_its_config_say_the_same(loquela: Any, model_directory: Path) -> None:
    first = loquela("size", model_directory, "--json")
    assert first.code == 0
    printed = json.loads(first.out)
    assert printed["parameters"]["total"] == sum(n for part, n in printed["parameters"].items() if part != "total")
    assert set(printed["memory_bytes"]) == {"run", "tune_full", "tune_lora", "train"}
    assert loquela("size", model_directory / "config.json", "--json").out == first.out


def test_a_config_without_weights(loquela: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(LLAMA))
    result = loquela("size", tmp_path / "c.json")
    assert result.code == 0
    for part in ("llama, 210,240 parameters", "feed forward", "tune lora", "head"):
        assert part in result.out
    short = json.loads(loquela("size", tmp_path / "c.json", "--tokens", 16, "--json").out)
    assert short["tokens"] == 16


def test_a_recipe(loquela: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = loquela("size", tmp_path / "r.yaml", "--json")
    assert result.code == 0
    assert "a vocabulary of 1,000" in result.err
    printed = json.loads(result.out)
    assert printed["tokens"] == 96
    assert printed["parameters"]["embedding"] == 64_000


def test_a_recipe_that_goes_on_from_a_model(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"model: {model_directory}\ndata: shakespeare\nblock_size: 32\noutput_dir: x\n")
    printed = json.loads(loquela("size", tmp_path / "r.yaml", "--json").out)
    assert printed["parameters"] == json.loads(loquela("size", model_directory, "--json").out)["parameters"]


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("none.json", None, 1, "does not exist"),
        ("c.json", "[1]", 1, "must be a JSON object"),
        ("c.json", "{}", 1, "must say its model_type"),
        ("c.json", json.dumps({**LLAMA, "hiden_size": 3}), 1, "did you mean 'hidden_size'?"),
        ("c.json", json.dumps({**LLAMA, "num_hidden_layers": 10**9}), 1, "at most 10,000"),
        ("r.yaml", RECIPE.replace("block_size", "blok_size"), 2, "did you mean 'block_size'?"),
        ("r.yaml", RECIPE.replace(", vocab_size: 1000", ""), 2, "model.vocab_size or tokenizer.vocab_size"),
    ],
)
def test_refusals_are_one_line(
    loquela: Any, tmp_path: Path, name: str, content: str | None, code: int, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    result = loquela("size", tmp_path / name)
    assert result.code == code
    assert said in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""
