"""`loquela tune`, as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loquela.checkpoint.store import save_model
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer
from loquela.tuning import race as races

Loquela = Callable[..., Any]
QUICK = ["--max-steps", 6, "--probe-tokens", 30, "--learning-rate", 0.02]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Say the cat.", "input": "", "output": "the cat sat"}] * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT."""
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer = Tokenizer.train("wordpiece", ["good bad cat dog fine poor\n"] * 9, 100, special_tokens=special)
    module = architecture("bert")
    raw = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(1)
    network = module.NETWORK(module.CONFIG.from_dict(raw))
    network.initialise()
    directory = tmp_path_factory.mktemp("models") / "reader"
    save_model(network, tokenizer, directory)
    return directory


def test_the_command_of_the_convention(loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = loquela(
        "tune", "--model", model_directory, "--data", data, "--method", "lora", "--output", out, "--json", *QUICK
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    named = """model train_loss val_loss val_bits_per_byte val_tokens tokens seconds tokens_per_second steps parameters
    method trainable_parameters adapter metrics forgetting peak_memory_bytes"""
    assert set(named.split()) <= result.keys()
    assert (result["model"], result["adapter"]) == (str(model_directory), str(out))
    assert "rows.jsonl: 20 rows, format alpaca" in done.err
    assert "the base writes 30 tokens" in done.err
    assert (out / "adapter_model.safetensors").is_file()

    again = loquela("tune", "-m", model_directory, "-d", data, "--method", "lora", "-o", out, *QUICK)
    assert "nothing is left to tune" in again.err
    assert result["verdict"]["sentence"] in again.out


def test_labels_make_a_classifier(loquela: Loquela, reader: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("good cat\t1\nbad dog\t0\n" * 15)
    done = loquela(
        *("tune", "--model", reader, "--data", tmp_path / "rows.tsv", "--method", "lora", "--r", 4, "--json"),
        *("--output", tmp_path / "out", "--max-steps", 30, "--learning-rate", 0.03),
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert {"accuracy", "macro_f1", "majority"} <= result["metrics"].keys()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4


def test_the_mask_is_shown(loquela: Loquela, model_directory: Path, data: Path) -> None:
    done = loquela("tune", "-m", model_directory, "-d", data, "--show-mask")
    assert done.code == 0, done.err
    assert "### Response:\n⟦the cat sat<|endoftext|>⟧" in done.out
    assert "row 1: " in done.out
    assert "tokens are learnt" in done.out


def test_a_verdict_can_be_required(loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path) -> None:
    command = ["tune", "-m", model_directory, "-d", data, "--require-verdict", "--probe-tokens", 200, "--json"]
    good = loquela(*command, "-o", tmp_path / "good", "--max-steps", 6, "--learning-rate", 0.02)
    assert (good.code, json.loads(good.out)["verdict"]["good"]) == (0, True)
    idle = loquela(*command, "-o", tmp_path / "idle", "--max-steps", 1, "--learning-rate", 0)
    assert (idle.code, json.loads(idle.out)["verdict"]["better"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lerning-rate", 1], "did you mean 'learning_rate'"),
        (["--method", "lorra"], "did you mean 'lora'"),
        (["stray"], "must be a recipe"),
        (["--truncate", "--drop-long"], "cut or left out"),
        (["--race", "lora,lorra"], "names lorra"),
        (["--data-curve", "10,many"], "numbers of examples"),
        (["--data-curve", "10"], "at least two sizes"),
        (["--base-bits", 4, "--method", "full"], "leaves the base frozen"),
    ],
)
def test_wrong_usage_is_one_line(
    loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path, arguments: list[Any], reason: str
) -> None:
    done = loquela("tune", "-m", model_directory, "-d", data, "-o", tmp_path / "out", *arguments)
    assert done.code == 2
    assert reason in done.err
    assert done.out == ""


def test_a_recipe_is_yaml_and_flags_win(loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"model: {model_directory}\ndata: {data}\noutput_dir: {tmp_path / 'out'}\nmax_steps: 9\nprobe_tokens: 20\n"
    )
    done = loquela("tune", tmp_path / "r.yaml", "max_steps=2", "--r", 2, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 2


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Python for each leg is what takes the time."""
    monkeypatch.setattr(races, "_apart", lambda function, recipe: function(recipe))


@pytest.mark.usefixtures("in_this_process")
def test_methods_race(loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path) -> None:
    done = loquela(
        *("tune", "-m", model_directory, "-d", data, "-o", tmp_path / "race", "--race", "full,lora,prompt"),
        *("--cpu-seconds", 0.3, "--probe-tokens", 20, "--json"),
    )
    assert done.code == 0, done.err
    legs = json.loads(done.out)["race"]
    assert {leg["method"] for leg in legs} == {"full", "lora", "prompt"}
    assert [leg["gain"] for leg in legs] == sorted((leg["gain"] for leg in legs), reverse=True)
    for leg in legs:
        assert leg["steps"] >= 1
        assert leg["adapter_bytes"] == 4 * leg["trainable_parameters"]
        assert isinstance(leg["forgetting"], float)
    assert (tmp_path / "race" / "race.html").is_file()


@pytest.mark.usefixtures("in_this_process")
def test_quality_against_examples(loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path) -> None:
    command = ["tune", "-m", model_directory, "-d", data, "-o", tmp_path / "curve", "--data-curve", "2,4,8"]
    done = loquela(*command, "--probe-tokens", 20, "--learning-rate", 0.01, "--num-train-epochs", 4)
    assert done.code == 0, done.err
    assert "8 examples  loss" in done.out
    assert "More examples would" in done.out
    found = json.loads((tmp_path / "curve" / "data_curve.json").read_text())
    assert [row["examples"] for row in found["data_curve"]] == [2, 4, 8]
    assert found["data_curve"][0]["val_loss"] > found["data_curve"][-1]["val_loss"]


@pytest.mark.soak
def test_each_leg_of_a_race_has_a_process_of_its_own(
    loquela: Loquela, model_directory: Path, data: Path, tmp_path: Path
) -> None:
    done = loquela(
        *("tune", "-m", model_directory, "-d", data, "-o", tmp_path / "race", "--race", "full,lora"),
        *("--cpu-seconds", 0.5, "--probe-tokens", 20, "--json"),
    )
    assert done.code == 0, done.err
    assert all(leg["peak_memory_bytes"] > 50 << 20 for leg in json.loads(done.out)["race"])
