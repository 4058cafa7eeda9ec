"""Tuning from the rows to the result, by every method, on models that learn in seconds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loquela
from loquela.checkpoint.store import load_model
from loquela.checkpoint.tensors import read_tensors
from loquela.errors import (
    ContextWindowError,
    DataError,
    DirectoryInUseError,
    LoquelaError,
    MismatchError,
    RecipeError,
    UsageError,
)
from loquela.peft import wearing
from loquela.training.events import Note, Stepped
from loquela.tuning.recipe import METHODS, TuneRecipe
from loquela.tuning.run import TuneResult, tune
from loquela.tuning.subject import open_adapter

Write = Callable[..., Path]
QUICK: dict[str, Any] = {"max_steps": 24, "per_device_train_batch_size": 8, "probe_tokens": 60, "eval_steps": 12}
RATES = {"full": 0.01, "selective": 0.02, "lora": 0.02, "adapter": 0.02, "ia3": 0.1, "prompt": 0.1, "prefix": 0.1}


def run(model: Path, data: Path, output: Path, **more: Any) -> TuneResult:
    return tune({"model": str(model), "data": str(data), "output_dir": str(output), **QUICK, **more})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_leaves_the_base_alone(decoder: Path, pairs: Path, tmp_path: Path, method: str) -> None:
    before = {name: t.read().clone() for name, t in read_tensors(decoder / "model.safetensors").items()}
    result = run(decoder, pairs, tmp_path / "out", method=method, learning_rate=RATES[method])
    assert result.val_loss < 0.8 * result.metrics["before"]["loss"]
    assert all(torch.equal(before[name], t.read()) for name, t in read_tensors(decoder / "model.safetensors").items())
    trained = result.parameters if method == "full" else result.trainable_parameters
    assert trained == result.trainable_parameters
    assert (result.adapter is None) == (method == "full")

    base = load_model(result.model)
    network = base.network
    if result.adapter is not None:
        network = open_adapter(network, base.tokenizer, result.adapter, "x")
    with wearing(network, "x" if result.adapter else None), torch.no_grad():
        logits = network(torch.tensor([[5, 6, 7]]))
    with torch.no_grad():
        plain = load_model(decoder).network(torch.tensor([[5, 6, 7]]))
    assert not torch.allclose(logits, plain)


def test_the_result_has_the_keys_of_the_convention(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    result = run(decoder, pairs, tmp_path / "out").as_dict()
    named = """model train_loss val_loss val_bits_per_byte val_tokens tokens seconds tokens_per_second steps parameters
    method trainable_parameters adapter metrics forgetting peak_memory_bytes"""
    assert set(named.split()) <= result.keys()
    assert {"before", "after", "delta", "tasks"} <= result["forgetting"].keys()
    assert result["forgetting"]["after"] - result["forgetting"]["before"] == pytest.approx(
        result["forgetting"]["delta"], abs=1e-9
    )
    assert json.loads((tmp_path / "out" / "tune_results.json").read_text()) == result
    evidence = {p.name for p in (tmp_path / "out" / "evidence").iterdir()}
    assert evidence == {"held_out.csv", "probe.csv", "probe_tokens.json", "curves.json", "forgetting.html"}


def test_the_tuned_model_answers_and_stops(decoder: Path, rows: Write, tmp_path: Path) -> None:
    data = rows([{"instruction": "Say.", "input": "", "output": "red"}] * 30)
    result = run(decoder, data, tmp_path / "out", method="full", learning_rate=0.01, max_steps=40)
    model = loquela.load(result.model)
    from loquela.text.chat import render

    assert model.tokenizer.chat_template is not None
    ids = render([{"role": "user", "content": "Say."}], model.tokenizer.chat_template, model.tokenizer)
    pieces = list(model.stream(ids, max_new_tokens=20, temperature=0.0))
    assert "".join(piece.text for piece in pieces) == "red"
    assert pieces[-1].finish_reason == "stop"


def test_texts_with_labels_make_an_encoder_a_classifier(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.tsv"
    data.write_text("cat cat\tgood\ndog dog\tbad\n" * 20 + "cat dog cat\tgood\ndog cat dog\tbad\n" * 10)
    for method in ("lora", "full"):
        result = run(encoder, data, tmp_path / method, method=method, learning_rate=0.01, max_steps=40)
        assert result.metrics["accuracy"] == 1.0
        assert result.metrics["macro_f1"] == 1.0
        assert result.val_bits_per_byte is None
        assert 0.0 < result.forgetting["similarity"] <= 1.0
        loaded = load_model(result.model)
        network = loaded.network
        if result.adapter is not None:
            network = open_adapter(network, loaded.tokenizer, result.adapter, "x")
        assert loaded.tokenizer is not None
        assert network.labels == ("bad", "good")  # type: ignore[attr-defined]
        ids = torch.tensor([loaded.tokenizer.encode("cat cat")])
        with wearing(network, "x" if result.adapter else None), torch.no_grad():
            assert network(ids).argmax(-1).item() == 1


def test_an_encoder_decoder_learns_to_translate(encoder_decoder: Path, rows: Write, tmp_path: Path) -> None:
    data = rows([{"source": source, "target": target} for source, target in [("cat", "red"), ("dog", "blue")] * 20])
    result = run(encoder_decoder, data, tmp_path / "out", learning_rate=0.03, max_steps=60)
    assert result.metrics["exact_match"] == 1.0
    assert result.forgetting["delta"] is None


def test_preferences_are_learnt_against_the_base_under_the_adapter(decoder: Path, rows: Write, tmp_path: Path) -> None:
    row = {"prompt": "cat", "chosen": "red one", "rejected": "blue two"}
    for method in ("lora", "full"):
        result = run(decoder, rows([row] * 20), tmp_path / method, method=method, learning_rate=0.01)
        assert result.metrics["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: no preference yet
        assert result.metrics["preference_accuracy"] == 1.0
        assert result.val_loss < 0.5


def test_several_tasks_are_mixed_and_told_apart(decoder: Path, rows: Write, tmp_path: Path) -> None:
    first = rows([{"prompt": "cat", "completion": "red"}] * 30, "colours.jsonl")
    second = rows([{"text": f"dog {n}", "label": n} for n in ("one", "two")] * 6, "labels.jsonl")
    tasks = [{"data": str(first), "weight": 1.0}, {"data": str(second), "weight": 3.0, "template": "{text}:"}]
    result = tune(
        {"model": str(decoder), "data": tasks, "output_dir": str(tmp_path / "out"), "learning_rate": 0.03}
        | QUICK
        | {"max_steps": 48, "eval_steps": 24}
    )
    assert result.metrics["tasks"].keys() == {"colours", "labels"}
    assert {found["exact_match"] for found in result.metrics["tasks"].values()} == {1.0}
    curves = json.loads((tmp_path / "out" / "evidence" / "curves.json").read_text())["tasks"]
    assert [row["step"] for row in curves] == [0, 24, 48]
    assert curves[0]["tasks"]["labels"]["loss"] > curves[-1]["tasks"]["labels"]["loss"]


class Stopper:
    """Sends SIGINT to this process after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.notes = step, list[str]()

    def __call__(self, event: object) -> None:
        if isinstance(event, Stepped) and event.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, Note):
            self.notes.append(event.message)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("more", [{}, {"max_forget": 0.05}], ids=["free", "budget"])
def test_an_interrupted_tuning_ends_with_the_same_bits(
    decoder: Path, pairs: Path, tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    settings = {"lora_dropout": 0.2} if method == "lora" else {}
    recipe = {"model": str(decoder), "data": str(pairs), "method": method, "settings": settings, **QUICK, **more}
    recipe |= {"learning_rate": 0.02, "save_steps": 5, "eval_steps": 4, "max_steps": 12}
    whole = tune(recipe | {"output_dir": str(tmp_path / "whole")})
    for step in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            tune(recipe | {"output_dir": str(tmp_path / "cut")}, on_event=Stopper(step))
    told = Stopper(0)
    cut = tune(recipe | {"output_dir": str(tmp_path / "cut")}, on_event=told)
    assert "going on from checkpoint-9" in told.notes
    same = "val_loss train_loss metrics forgetting verdict tokens best_step".split()
    assert {key: getattr(cut, key) for key in same} == {key: getattr(whole, key) for key in same}
    for name in ("loss.csv", "model.safetensors" if method == "full" else "adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut").glob("checkpoint-*"))
    again = tune(recipe | {"output_dir": str(tmp_path / "cut")})
    assert again == cut


def test_a_directory_belongs_to_one_recipe_and_its_rows(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    run(decoder, pairs, tmp_path / "out", max_steps=1)
    with pytest.raises(DirectoryInUseError, match=r"another recipe \(method: default → full"):
        run(decoder, pairs, tmp_path / "out", max_steps=1, method="full")
    with pairs.open("a") as file:
        file.write('{"prompt": "cat", "completion": "dog"}\n')
    with pytest.raises(DirectoryInUseError, match="has changed since"):
        run(decoder, pairs, tmp_path / "out", max_steps=1)
    run(decoder, pairs, tmp_path / "out", max_steps=2, overwrite_output_dir=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(DirectoryInUseError, match=r"mine\.txt"):
        run(decoder, pairs, tmp_path / "other")


def test_a_command_that_failed_before_its_first_step_may_be_given_anew(
    decoder: Path, rows: Write, tmp_path: Path
) -> None:
    data = rows([{"prompt": "cat " * (600 if n == 3 else 1), "completion": "red"} for n in range(20)])
    with pytest.raises(ContextWindowError, match="--truncate"):
        run(decoder, data, tmp_path / "out")
    assert run(decoder, data, tmp_path / "out", too_long="truncate").steps == QUICK["max_steps"]
    with pytest.raises(DirectoryInUseError, match="another recipe"):
        run(decoder, data, tmp_path / "out", too_long="drop")


def test_a_damaged_result_is_made_again(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    first = run(decoder, pairs, tmp_path / "out", max_steps=2)
    weights = tmp_path / "out" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    told = Stopper(0)
    recipe = {"model": str(decoder), "data": str(pairs), "output_dir": str(tmp_path / "out"), **QUICK, "max_steps": 2}
    again = tune(recipe, on_event=told)
    assert any("damaged and will be made again" in note for note in told.notes)
    assert weights.read_bytes() == whole
    assert again.val_loss == first.val_loss


@pytest.mark.soak
def test_kill_at_any_moment_costs_no_bit(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    import random
    import subprocess
    import sys
    import time

    def command(output: str) -> list[str]:
        flags = (
            "--max-steps 150 --save-steps 7 --eval-steps 20 --learning-rate 0.02 --probe-tokens 60 --lora-dropout 0.1"
        )
        base = [sys.executable, "-m", "loquela", "tune", "-m", str(decoder), "-d", str(pairs), "--json"]
        return [*base, "-o", str(tmp_path / output), *flags.split()]

    subprocess.run(command("whole"), check=True, capture_output=True)
    draw = random.Random(4)
    for _ in range(5):
        process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "cut" / "loss.csv").exists():
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        process.kill()
        process.wait()
    subprocess.run(command("cut"), check=True, capture_output=True)
    for name in ("loss.csv", "adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_adapter_for_another_base_is_refused(
    decoder: Path, encoder_decoder: Path, pairs: Path, tmp_path: Path
) -> None:
    result = run(decoder, pairs, tmp_path / "out", max_steps=1)
    assert result.adapter is not None
    with pytest.raises(LoquelaError):
        open_adapter(load_model(encoder_decoder).network, None, result.adapter, "x")


def test_a_classifier_s_adapter_needs_an_encoder(decoder: Path, encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.tsv"
    data.write_text("cat\tgood\ndog\tbad\n" * 6)
    result = run(encoder, data, tmp_path / "out", max_steps=1)
    assert result.adapter is not None
    with pytest.raises(MismatchError, match="labels texts, but the base is a llama"):
        open_adapter(load_model(decoder).network, None, result.adapter, "x")


@pytest.mark.parametrize(
    ("rows_given", "reason"),
    [
        ([{"prompt": "cat", "completion": ""}] * 2, "2 of 2 rows cannot be used"),
        ([{"prompt": "cat", "completion": "red"}], "at least two rows.*add rows, or name others as --validation-data"),
        ([{"text": "cat dog bird"}], "a plain text is one row: name another"),
        ([{"prompt": "cat", "chosen": "red", "rejected": "red"}] * 4, "none is left; .*nothing to prefer"),
        ([{"text": "cat", "label": "a"}] * 4, "at least two labels"),
        ([{"text": f"cat {i}", "label": str(i)} for i in range(6)], "labels must come again"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    decoder: Path, rows: Write, tmp_path: Path, rows_given: list[Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        run(decoder, rows(rows_given), tmp_path / "out")


def test_a_pair_of_one_answer_is_left_out_aloud(decoder: Path, rows: Write, tmp_path: Path) -> None:
    pairs = [{"prompt": "cat", "chosen": "red", "rejected": "red" if n % 4 == 0 else "blue"} for n in range(40)]
    told = Stopper(0)
    out = {"model": str(decoder), "data": str(rows(pairs)), "output_dir": str(tmp_path / "out"), **QUICK}
    tune(out | {"learning_rate": 0.01}, on_event=told)
    assert sum("have one answer twice and nothing to prefer; they are left out" in note for note in told.notes) >= 1


@pytest.mark.parametrize(("ending", "said"), [("", True), ("<s>", True), ("{{ eos_token }}", False)])
def test_answers_that_do_not_end_are_said(decoder: Path, rows: Write, tmp_path: Path, ending: str, said: bool) -> None:
    talk = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "red"}]
    template = "{% for m in messages %}{{ m.content }}" + ending + "{% endfor %}"
    told = Stopper(0)
    out = {"model": str(decoder), "output_dir": str(tmp_path / "out"), "template": template, **QUICK, "max_steps": 1}
    tune(out | {"data": str(rows([{"messages": talk}] * 8))}, on_event=told)
    assert any("at which this model does not stop writing" in note for note in told.notes) == said


def test_labels_outside_the_set_are_counted(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "cat,good\ndog,bad\nbird,odd\none,queer\n" * 4)
    with pytest.raises(DataError, match=r"8 of 16 rows have another label than good, bad \(row 3 has 'odd'; row 4"):
        run(encoder, data, tmp_path / "out", labels=["good", "bad"])
    told = Stopper(0)
    out = {"model": str(encoder), "data": str(data), "output_dir": str(tmp_path / "out"), **QUICK, "max_steps": 1}
    tune(out | {"labels": ["good", "bad"], "skip_bad_rows": True}, on_event=told)
    assert any("8 of 16 rows have another label" in n and n.endswith("they are left out") for n in told.notes)


@pytest.mark.parametrize("method", ["lora", "adapter", "selective"])
def test_a_recurrent_base_is_tuned_in_part(recurrent: Path, pairs: Path, tmp_path: Path, method: str) -> None:
    result = run(recurrent, pairs, tmp_path / "out", method=method, learning_rate=RATES[method])
    assert result.adapter is not None
    assert result.trainable_parameters < result.parameters / 2
    assert result.val_loss < 0.9 * result.metrics["before"]["loss"]
    model = loquela.load(result.model, adapter=result.adapter)
    assert not torch.equal(model.logits([5, 6, 7]), loquela.load(recurrent).logits([5, 6, 7]))


def test_preferences_need_a_model_that_writes_on(
    encoder: Path, encoder_decoder: Path, rows: Write, tmp_path: Path
) -> None:
    data = rows([{"prompt": "cat", "chosen": "red", "rejected": "blue"}] * 8)
    for model in (encoder, encoder_decoder):
        with pytest.raises(UsageError, match="preferences need a model that writes from left to right"):
            run(model, data, tmp_path / "out")


def test_one_held_out_row_proves_nothing(decoder: Path, rows: Write, tmp_path: Path) -> None:
    for count, good in ((8, False), (24, True)):
        notes = Stopper(0)
        recipe = {"model": str(decoder), "data": str(rows([{"prompt": "cat", "completion": "red"}] * count)), **QUICK}
        out = {"output_dir": str(tmp_path / f"{count}"), "probe_tokens": 200, "learning_rate": 0.02}
        result = tune(recipe | out, on_event=notes)
        assert result.verdict["gain"] > 1
        assert result.verdict["better"] is good
        assert any("held out: the verdict will be a rough one" in note for note in notes.notes)
    assert (
        "Not known to be better"
        in json.loads((tmp_path / "8" / "tune_results.json").read_text())["verdict"]["sentence"]
    )


def test_recipes_are_checked_to_the_last_key(pairs: Path) -> None:
    base = {"model": "m", "data": str(pairs), "output_dir": "o"}
    assert TuneRecipe.load(base, ["r=16", "learning_rate=0.1"]).settings == {"r": 16}
    assert TuneRecipe.load(base, ["target_modules=q_proj,v_proj"]).settings == {"target_modules": ["q_proj", "v_proj"]}
    assert TuneRecipe.load(base | {"method": "selective"}, ["tune=norms"]).settings == {"tune": ["norms"]}
    for change, reason in [
        ("lerning_rate=1", "did you mean 'learning_rate'"),
        ("num_virtual_tokens=4", "settings of the method: .*lora_alpha"),
        ("method=lorra", "did you mean 'lora'"),
        ("format=alpacca", "did you mean 'alpaca'"),
        ("max_steps=0", "max_steps: "),
    ]:
        with pytest.raises(RecipeError, match=reason):
            TuneRecipe.load(base, [change])
    again = TuneRecipe.load(base, ["r=16"])
    assert TuneRecipe.load(json.loads(json.dumps(again.model_dump()))).differences(again) == []


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[2] / "recipes" / "tune").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_recipes_that_are_shipped_are_recipes(recipe: Path) -> None:
    assert TuneRecipe.load(recipe).tasks


def test_the_page_names_every_format_and_method() -> None:
    from loquela.data.pairs import FORMATS

    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    assert all(f"| {name} |" in page for name in FORMATS)
    assert all(f"| `{name}` |" in page for name in METHODS)


def test_the_api_opens_what_was_tuned(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.tsv"
    data.write_text("cat cat\tgood\ndog dog\tbad\n" * 20)
    result = run(encoder, data, tmp_path / "out", learning_rate=0.01, max_steps=30)
    model = loquela.load(result.model, adapter=result.adapter)
    labels = model.network.labels  # type: ignore[attr-defined]
    for text, label in (("cat cat", "good"), ("dog dog", "bad")):
        assert labels[int(model.logits(model.tokenizer.encode(text)).argmax())] == label
