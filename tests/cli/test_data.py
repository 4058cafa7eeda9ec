"""`loquela data build` and `loquela data preview`, as a person calls them; and a run on what was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loquela.cli.data import app
from loquela.data.objectives import OBJECTIVES
from loquela.errors import DataError, UsageError
from loquela.text.tokenizer import Tokenizer
from loquela.training.recipe import Recipe
from loquela.training.run import train


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    lines = [{"text": f"document {n} says {n * n} and {n % 7}, which is new.\n" * 3} for n in range(90)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[3]]))
    return path


def test_the_vocabulary_is_learnt_from_what_is_built_the_same_column_the_same_rows_left_out(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"el zorro número {n} salta sobre {n * n} perros, y duerme" for n in range(40)]
    parquet.write_table(pyarrow.table({"cuerpo": texts, "id": list(range(40))}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("id,cuerpo\n" + "".join(f'{n},"{text}, dos"\n' for n, text in enumerate(texts)))
    (tmp_path / "c.jsonl").write_text(json.dumps({"cuerpo": texts[0] + "!"}) + '\n{"cuerpo": cut off\n')
    command = ["build", str(tmp_path / "*"), "-o", str(tmp_path / "out"), "--column", "cuerpo", "--vocab-size", "320"]
    with pytest.raises(DataError, match=r"c\.jsonl: row 2 must be JSON.*--skip-bad-rows"):
        call(*command)
    report = json.loads(call(*command, "--skip-bad-rows", "--near", "0", "--json").stdout)
    assert report["train_documents"] + report["val_documents"] == 81
    assert Tokenizer.load(tmp_path / "out" / "tokenizer").vocab_size == 320


def test_what_is_built_is_told_and_trained_on(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    printed = call("build", str(documents), "-o", str(out), "--vocab-size", "300", "--near", "0", "--json")
    report: dict[str, Any] = json.loads(printed.stdout)
    assert report["exact_duplicates"] == 1
    assert report["train_documents"] + report["val_documents"] == 90
    other = call("build", str(documents), "-o", str(tmp_path / "two"), "-t", str(out / "tokenizer"), "--near", "0")
    assert "1 exact and 0 near duplicates left out" in other.stdout
    recipe = {
        "model": {
            "model_type": "qwen3",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 32,
        },
        "block_size": 32,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "attend_across_documents": False,
    }
    result = train({**recipe, "data": str(out), "output_dir": str(tmp_path / "run")})
    assert result.val_tokens == report["val_tokens"] - 1
    assert result.val_bits_per_byte is not None
    mixed = [{"data": str(out), "weight": 3}, {"data": str(tmp_path / "two")}]
    result = train({**recipe, "data": mixed, "output_dir": str(tmp_path / "mixed")})
    assert result.val_tokens > report["val_tokens"]
    assert Recipe.load(tmp_path / "mixed" / "recipe.yaml").texts == [str(out), str(tmp_path / "two")]


@pytest.mark.parametrize("name", [name for name, made in OBJECTIVES.items() if not made.takes_pairs])
def test_each_objective_can_be_looked_at(name: str, documents: Path) -> None:
    printed = call("preview", "--objective", name, "--data", str(documents), "-n", "1", "--json")
    sample = json.loads(printed.stdout)["samples"][0]
    assert len(sample["inputs"]) == len(sample["labels"])
    assert sample["predicted"] == sum(label is not None for label in sample["labels"]) > 0
    drawn = call("preview", "--objective", name, "--data", str(documents), "-n", "1").stdout
    assert OBJECTIVES[name].summary in drawn
    assert f"{sample['predicted']} of {len(sample['labels'])} positions carry loss" in drawn
    assert drawn.count("‹") == sample["predicted"]


def test_a_preview_is_of_the_samples_that_training_sees(documents: Path, tmp_path: Path) -> None:
    pairs = {"source": tmp_path / "one", "target": tmp_path / "other"}
    pairs["source"].write_text("".join(f"source {n}\n" for n in range(60)))
    pairs["target"].write_text("".join(f"target {n}\n" for n in range(60)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"model_type": "t5", "d_model": 4, "num_heads": 1, "d_kv": 4, "num_layers": 1, "d_ff": 4},
                "tokenizer": {"kind": "byte"},
                "data": {key: str(path) for key, path in pairs.items()},
                "objective": "pairs",
                "block_size": 32,
                "output_dir": str(tmp_path / "run"),
            }
        )
    )
    printed = call("preview", str(recipe), "validation_fraction=0.2", "-n", "8", "--json")
    for sample in json.loads(printed.stdout)["samples"]:
        number = "".join(sample["source"]).removeprefix("source ")
        labels = [label for label in sample["labels"] if label is not None]
        assert "".join(labels) == f"target {number}<|endoftext|>"
        assert sample["inputs"][: len(labels)] == ["<|endoftext|>", *labels[:-1]]
    with pytest.raises(UsageError, match="one of the two"):
        call("preview")
    with pytest.raises(UsageError, match="needs sources and targets"):
        call("preview", "--objective", "pairs")
