from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loquela.training.log import Row, read_rows

if TYPE_CHECKING:
    from conftest import Loquela as Run

KEYS = """model train_loss val_loss val_bits_per_byte val_tokens tokens seconds tokens_per_second steps
    parameters""".split()
RECIPE = """
model: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 1}
tokenizer: {kind: char}
data: text.txt
block_size: 16
per_device_train_batch_size: 2
max_steps: 8
save_steps: 3
sample_steps: 4
eval_steps: 4
output_dir: out
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    choose = random.Random(0)
    words = [choose.choice(["sea", "wind", "ship", "night"]) for _ in range(400)]
    (tmp_path / "text.txt").write_text(" ".join(words))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipe.yaml"


def test_json_is_one_object_with_its_keys_and_nothing_else(loquela: Run, recipe: Path) -> None:
    done = loquela("train", recipe, "seed=3", "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    result = json.loads(done.out)
    assert set(KEYS) <= result.keys()
    assert (result["model"], result["steps"], result["tokens"]) == ("out", 8, 8 * 2 * 16)
    assert result["sample"]["text"]
    again = loquela("train", recipe, "seed=3", "--json")
    assert json.loads(again.out) == result
    assert "finished: nothing is left to train" in again.err


def test_a_person_sees_what_happens_and_the_curve(loquela: Run, recipe: Path) -> None:
    done = loquela("train", recipe)
    assert done.code == 0, done.err
    assert "bits per byte on the held-out text" in done.out
    assert "loquela chat -m out" in done.out
    for said in ("step 4: ", "step 4 writes: ", "saved out/checkpoint-3", "loss, nats per token, over 8 steps"):
        assert said in done.err, said


def test_the_recipe_that_a_run_leaves_repeats_it(loquela: Run, recipe: Path) -> None:
    loquela("train", recipe, "seed=5")
    done = loquela("train", "out/recipe.yaml", "output_dir=again")
    assert done.code == 0, done.err
    assert read_rows(Path("again/loss.csv")) == read_rows(Path("out/loss.csv"))
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["recipe.yaml", "max_step=3"], 2, "unknown key 'max_step'; did you mean 'max_steps'?"),
        (["none.yaml"], 2, "none.yaml cannot be read"),
        (["recipe.yaml", "data=none.txt"], 1, "'none.txt' does not exist"),
        (["recipe.yaml", "data=empty.txt"], 1, "empty"),
        (["recipe.yaml", "data=latin.txt"], 1, "byte 0"),
        (["recipe.yaml", "block_size=4000", "model.max_position_embeddings=4000"], 1, "at least 4,001 tokens"),
        (["recipe.yaml", "output_dir=text.txt"], 1, "text.txt cannot be used"),
    ],
)
def test_what_cannot_be_is_one_line(loquela: Run, recipe: Path, arguments: list[str], code: int, said: str) -> None:
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("éa".encode("latin-1") * 400)
    done = loquela("train", *arguments)
    assert done.code == code
    assert said in done.err
    assert [line for line in done.err.splitlines() if line.startswith("loquela: ")] == done.err.splitlines()[-1:]
    assert done.out == ""


def test_the_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    from loquela.cli.progress import curve

    rows = [
        Row(step, step, 4.0 - step / 50, 4.2 - step / 50 if step % 50 == 0 else None, 0.1, 1.0)
        for step in range(1, 101)
    ]
    lines = curve(rows, width=40, height=6).plain.splitlines()
    assert len(lines) == 7
    assert lines[0].strip().startswith("3.98")
    assert lines[5].strip().startswith("2.00")
    edges = [len(line.rstrip()) for line in lines[:6]]
    assert edges == sorted(edges)
    single = curve([Row(1, 1, 2.0, None, 0.1, 1.0)])
    assert "2.00" in single.plain
