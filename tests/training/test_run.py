"""Whole runs, small ones, in this process."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from interrupting import RECIPE, write_recipe
from torch.nn import functional as F

from loquela.checkpoint.store import load_model, verify
from loquela.errors import (
    CheckpointError,
    DataError,
    DirectoryInUseError,
    LoquelaError,
    NonFiniteError,
    RecipeError,
    TextDecodingError,
)
from loquela.training import step as step_module
from loquela.training.directory import locked
from loquela.training.events import Event, Note, Preparing, Sampled, Saved, Started, Stepped, Validated
from loquela.training.interruption import Interruption
from loquela.training.log import read_rows
from loquela.training.run import train

STEPS = 24


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    write_recipe(directory)
    return directory / "text.txt"


@pytest.fixture
def recipe(text: Path, tmp_path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=32, intermediate_size=64)
    raw.update(data=str(text), output_dir=str(tmp_path / "out"), max_steps=STEPS, save_steps=5, eval_steps=8)
    return raw


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=32, intermediate_size=64)
    output = tmp_path_factory.mktemp("undisturbed")
    raw.update(data=str(text), output_dir=str(output), max_steps=STEPS, save_steps=5, eval_steps=8)
    train(raw)
    return decided(output)


def decided(output: Path | str) -> dict[str, bytes]:
    names = f"model.safetensors loss.csv checkpoint-{STEPS}/model.safetensors checkpoint-{STEPS}/optimizer.safetensors"
    return {name: (Path(output) / name).read_bytes() for name in names.split()}


class Watcher:
    """Collects events; calls `at` after the update of step `step`."""

    def __init__(self, step: int = 0, at: Callable[[], object] = lambda: None) -> None:
        self.events: list[Event] = []
        self.step, self.at = step, at

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.step:
            self.at()

    def notes(self) -> str:
        return "\n".join(event.message for event in self.events if isinstance(event, Note))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def interrupt(recipe: dict[str, Any], step: int) -> Watcher:
    watcher = Watcher(step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, on_event=watcher)
    return watcher


# -- a run that nothing disturbs


def test_what_a_run_leaves_and_tells(recipe: dict[str, Any]) -> None:
    watcher = Watcher()
    result = train({**recipe, "sample_steps": 10, "sample_prompt": "the sea"}, on_event=watcher)
    output = Path(recipe["output_dir"])
    assert result.model == str(output)
    assert (result.steps, result.tokens, result.best_step) == (STEPS, STEPS * 8 * 48, STEPS)
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    verify(output)
    loaded = load_model(output)
    assert loaded.tokenizer is not None
    assert result.parameters == loaded.network.parameter_count()
    assert loaded.generation_config["eos_token_id"] == loaded.tokenizer.eos_id
    config = json.loads((output / "config.json").read_text())
    assert config["eos_token_id"] == loaded.tokenizer.eos_id
    assert config["bos_token_id"] is None
    assert (output / "loss.html").stat().st_size > 1e6, "the page needs no network"

    rows = read_rows(output / "loss.csv")
    assert [row.step for row in rows] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert [row.step for row in rows if row.val_loss is not None] == [8, 16, 24]
    assert rows[-1].val_loss == result.val_loss
    assert rows[-1].train_loss == result.train_loss
    assert rows[-1].tokens == result.tokens
    started = watcher.of(Started)[0]
    assert (started.step, started.steps, started.tokens_per_step) == (0, STEPS, 384)
    stepped = watcher.of(Stepped)
    assert [event.step for event in stepped] == list(range(1, STEPS + 1))
    assert rows[0].train_loss == pytest.approx(sum(event.loss for event in stepped[:3]) / 3)
    assert [event.step for event in watcher.of(Validated)] == [8, 16, 24]
    assert [event.step for event in watcher.of(Saved)] == [5, 10, 15, 20, 24]
    assert [(event.step, event.prompt) for event in watcher.of(Sampled)] == [(10, "the sea"), (20, "the sea")]
    assert {event.what for event in watcher.of(Preparing)} == {"learning the vocabulary", "tokenising the text"}
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-24"]


def test_the_validation_is_of_every_token_and_every_byte(recipe: dict[str, Any], text: Path) -> None:
    result = train({**recipe, "block_size": 40, "per_device_eval_batch_size": 3})
    loaded = load_model(recipe["output_dir"], dtype="float64")
    assert loaded.tokenizer is not None
    whole = text.read_text()
    held_out = whole[int(len(whole) * 0.9) :]
    ids = torch.tensor(loaded.tokenizer.encode(held_out))
    nats = 0.0
    for first in range(0, len(ids) - 1, 40):
        inputs, labels = ids[first : first + 40][: len(ids) - 1 - first], ids[first + 1 : first + 41]
        with torch.no_grad():
            nats += F.cross_entropy(loaded.network(inputs[None])[0], labels, reduction="sum").item()
    assert result.val_tokens == len(ids) - 1
    assert result.val_loss == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert result.val_bits_per_byte == pytest.approx(nats / math.log(2) / len(held_out.encode()), rel=1e-5)


def test_what_is_saved_opens_in_transformers_with_equal_logits(recipe: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(recipe)
    theirs = AutoModelForCausalLM.from_pretrained(recipe["output_dir"])
    tokenizer = AutoTokenizer.from_pretrained(recipe["output_dir"])
    ours = load_model(recipe["output_dir"])
    assert ours.tokenizer is not None
    ids = ours.tokenizer.encode("the sea and the wind")
    assert tokenizer("the sea and the wind")["input_ids"] == ids
    with torch.no_grad():
        gap = (theirs(torch.tensor([ids])).logits - ours.network(torch.tensor([ids]))).abs().max()
    assert gap < 1e-5


def test_the_same_global_batch_gives_the_same_run_however_it_is_cut(recipe: dict[str, Any], tmp_path: Path) -> None:
    losses = []
    for rows, parts in ((1, 8), (2, 4), (8, 1)):
        output = tmp_path / f"{rows}x{parts}"
        cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts, "output_dir": str(output)}
        train({**recipe, **cut, "max_steps": 6})
        losses.append([row.train_loss for row in read_rows(output / "loss.csv")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


def test_the_best_weights_are_kept_when_later_ones_are_worse(
    recipe: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(text.read_text()[:4000])
    changes = {"data": str(tmp_path / "short.txt"), "validation_fraction": 0.5, "max_steps": 60}
    watcher = Watcher()
    result = train({**recipe, **changes}, on_event=watcher)
    validated = watcher.of(Validated)
    best = min(validated, key=lambda event: event.loss)
    assert best.step < 60, "the test must overfit"
    assert (result.best_step, result.val_loss) == (best.step, best.loss)
    assert f"the weights of step {best.step} are kept" in watcher.notes()
    kept, last = (load_model(p).network for p in (recipe["output_dir"], f"{recipe['output_dir']}/checkpoint-60"))
    assert not torch.equal(next(kept.parameters()), next(last.parameters()))


def test_the_best_weights_outlive_a_kill_right_after_they_were_saved(
    recipe: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    """A checkpoint at the best step holds its weights once; going on from it must still know them as the best."""
    (tmp_path / "short.txt").write_text(text.read_text()[:4000])
    changes = {"data": str(tmp_path / "short.txt"), "validation_fraction": 0.5, "max_steps": 60, "save_steps": 8}
    expected = train({**recipe, **changes, "output_dir": str(tmp_path / "undisturbed")})
    interrupt({**recipe, **changes}, expected.best_step + 1)
    checkpoint = Path(recipe["output_dir"]) / f"checkpoint-{expected.best_step}"
    shutil.rmtree(checkpoint.with_name(f"checkpoint-{expected.best_step + 1}"))
    assert not (checkpoint / "best.safetensors").exists()
    result = train({**recipe, **changes})
    assert (result.best_step, result.val_loss) == (expected.best_step, expected.val_loss)
    ours, theirs = (Path(d) / "model.safetensors" for d in (recipe["output_dir"], tmp_path / "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_short_samples_come_first_where_a_curriculum_says_so(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = step_module.summed_loss

    def watched(network: Any, batch: Any, *rest: Any) -> torch.Tensor:
        seen.append(tuple(batch.inputs.shape))
        return real(network, batch, *rest)

    monkeypatch.setattr(step_module, "summed_loss", watched)
    result = train({**recipe, "curriculum": {"block_size": 12, "ratio": 0.5}, "max_steps": 6})
    assert seen == [(16, 12)] * 6 + [(4, 48)] * 6, "two micro-batches a step, of as many tokens"
    assert result.tokens == 6 * 8 * 48


def test_a_run_can_start_from_a_model(recipe: dict[str, Any], tmp_path: Path) -> None:
    first = train(recipe)
    again = {k: v for k, v in recipe.items() if k != "tokenizer"}
    again.update(model=recipe["output_dir"], output_dir=str(tmp_path / "second"), max_steps=2, learning_rate=1e-4)
    again["muon"] = {"learning_rate": 1e-4}
    assert train(again).val_loss == pytest.approx(first.val_loss, rel=0.02)


# -- interruptions


@pytest.mark.parametrize("step", [1, 5, 8, 17, STEPS])
def test_interrupted_at_a_boundary_it_goes_on_bit_for_bit(
    recipe: dict[str, Any], undisturbed: dict[str, bytes], step: int
) -> None:
    """Also in the midst of a validation (8, 24) and after the very last update."""
    first = interrupt(recipe, step)
    assert (Path(recipe["output_dir"]) / f"checkpoint-{step}").is_dir()
    assert f"interrupted after step {step} of {STEPS}" in first.notes()
    second = Watcher()
    train(recipe, on_event=second)
    assert f"going on from checkpoint-{step}" in second.notes()
    assert [event.step for event in second.of(Stepped)] == list(range(step + 1, STEPS + 1))
    assert decided(recipe["output_dir"]) == undisturbed


def test_a_second_signal_leaves_at_once_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)  # while there is nothing to save yet
        interruption.patient = True
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_run_that_has_ended_says_so_and_trains_nothing(recipe: dict[str, Any]) -> None:
    result = train(recipe)
    watcher = Watcher()
    assert train({**recipe, "logging_steps": 5}, on_event=watcher) == result
    assert "finished: nothing is left to train" in watcher.notes()
    assert not watcher.of(Stepped)


def test_a_finished_model_that_was_damaged_is_made_again(recipe: dict[str, Any], undisturbed: dict[str, bytes]) -> None:
    train(recipe)
    output = Path(recipe["output_dir"])
    (output / "model.safetensors").write_bytes(b"damaged")
    watcher = Watcher()
    train(recipe, on_event=watcher)
    assert "the finished model is damaged and will be made again" in watcher.notes()
    assert "model.safetensors" in watcher.notes()
    assert not watcher.of(Stepped)
    assert decided(output) == undisturbed


def truncate(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def flip(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "optimizer.safetensors").read_bytes())
    content[-5] ^= 1
    (checkpoint / "optimizer.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lambda checkpoint: (checkpoint / "manifest.json").unlink(),
        lambda checkpoint: (checkpoint / "trainer_state.json").unlink(),
        lambda checkpoint: [path.unlink() for path in checkpoint.iterdir()],
    ],
    ids=["truncated", "one bit", "no manifest", "no state", "empty"],
)
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(
    recipe: dict[str, Any], undisturbed: dict[str, bytes], damage: Callable[[Path], object]
) -> None:
    interrupt(recipe, 12)
    output = Path(recipe["output_dir"])
    damage(output / "checkpoint-12")
    watcher = Watcher()
    train(recipe, on_event=watcher)
    assert "checkpoint-12 is damaged and was passed over" in watcher.notes()
    assert "going on from checkpoint-10" in watcher.notes()
    assert watcher.of(Stepped)[0].step == 11
    assert decided(output) == undisturbed


def test_when_no_checkpoint_is_intact_it_begins_anew_and_says_so(
    recipe: dict[str, Any], undisturbed: dict[str, bytes]
) -> None:
    interrupt(recipe, 7)
    for checkpoint in Path(recipe["output_dir"]).glob("checkpoint-*"):
        truncate(checkpoint)
    watcher = Watcher()
    train(recipe, on_event=watcher)
    assert "no checkpoint is intact: training begins anew" in watcher.notes()
    assert decided(recipe["output_dir"]) == undisturbed


@pytest.mark.parametrize(("which", "first"), [("checkpoint-5", 6), (False, 1)])
def test_one_can_say_where_to_go_on(
    recipe: dict[str, Any], undisturbed: dict[str, bytes], which: bool | str, first: int
) -> None:
    interrupt(recipe, 8)
    watcher = Watcher()
    train({**recipe, "resume_from_checkpoint": which}, on_event=watcher)
    assert watcher.of(Stepped)[0].step == first
    assert decided(recipe["output_dir"]) == undisturbed


def test_a_checkpoint_that_is_named_must_be_there(recipe: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="but is 'checkpoint-3'"):
        train({**recipe, "resume_from_checkpoint": "checkpoint-3"})


# -- what is not finite


def poison(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Make the loss of update `step` (from 1), in its second micro-batch, a value that is no number."""
    real, calls = step_module.summed_loss, [0]

    def poisoned(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        return real(*arguments) * (value if calls[0] == 2 * step else 1.0)

    monkeypatch.setattr(step_module, "summed_loss", poisoned)


@pytest.mark.parametrize(
    ("step", "value"),
    [(1, math.nan), (4, math.inf), (13, math.nan)]
    + [pytest.param(n, math.nan if n % 2 else math.inf, marks=pytest.mark.soak) for n in range(1, STEPS + 1)],
)
def test_a_run_stops_before_it_takes_in_a_nan(
    recipe: dict[str, Any],
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    value: float,
) -> None:
    poison(monkeypatch, step, value)
    with pytest.raises(NonFiniteError) as caught:
        train(recipe)
    said = str(caught.value)
    assert f"step {step} was stopped before its update: loss is {value}" in said
    assert "samples start at tokens " in said
    last = (step - 1) // 5 * 5
    assert (f"checkpoint-{last} is the last one saved" if last else "no checkpoint was saved yet") in said
    assert "\n" not in said
    monkeypatch.undo()
    train(recipe)
    assert decided(recipe["output_dir"]) == undisturbed


# -- the directory


def test_two_trainers_do_not_share_a_directory(recipe: dict[str, Any], tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(DirectoryInUseError, match="must be one trainer's at a time"):
        train(recipe)
    (tmp_path / "out" / ".lock").write_text("999999\n")  # of a trainer that is no more
    assert train(recipe).steps == STEPS


def test_another_recipe_is_refused_and_says_what_differs(recipe: dict[str, Any]) -> None:
    interrupt(recipe, 6)
    before = {p.name for p in Path(recipe["output_dir"]).iterdir()}
    with pytest.raises(DirectoryInUseError) as caught:
        train({**recipe, "max_steps": 99, "muon": {"momentum": 0.5}})
    assert "(max_steps: 24 → 99; muon.momentum: default → 0.5)" in str(caught.value)
    assert "overwrite_output_dir=true" in str(caught.value)
    assert {p.name for p in Path(recipe["output_dir"]).iterdir()} == before
    watcher = Watcher()
    train({**recipe, "max_steps": 3, "overwrite_output_dir": True}, on_event=watcher)
    assert [event.step for event in watcher.of(Stepped)] == [1, 2, 3]
    assert [row.step for row in read_rows(Path(recipe["output_dir"]) / "loss.csv")] == [3]


def test_another_text_under_the_same_name_is_refused(recipe: dict[str, Any], text: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    shutil.copy(text, mine)
    interrupt({**recipe, "data": str(mine)}, 3)
    mine.write_text(mine.read_text() + "more")
    with pytest.raises(DirectoryInUseError, match=r"mine\.txt has changed since"):
        train({**recipe, "data": str(mine)})


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_are_no_runs_are_never_touched(recipe: dict[str, Any], overwrite: bool) -> None:
    output = Path(recipe["output_dir"])
    (output / "data").mkdir(parents=True)
    (output / "data" / "thesis.txt").write_text("years of work")
    (output / "loss.csv").write_text("mine")
    with pytest.raises(DirectoryInUseError, match=r"but holds data/thesis\.txt, loss\.csv; choose another output_dir"):
        train({**recipe, "overwrite_output_dir": overwrite})
    assert (output / "data" / "thesis.txt").read_text() == "years of work"
    assert (output / "loss.csv").read_text() == "mine"


# -- texts and recipes that do not do


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", DataError, "empty"),
        (b"one line\n", DataError, "must have at least"),
        (bytes(range(256)) * 8, DataError, "0"),
        ("año\n".encode("latin-1") * 500, TextDecodingError, "byte 1"),
    ],
    ids=["empty", "one line", "binary", "latin-1"],
)
def test_a_text_that_does_not_do_is_one_clear_line(
    recipe: dict[str, Any], tmp_path: Path, content: bytes, error: type[LoquelaError], said: str
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(error, match=said) as caught:
        train({**recipe, "data": str(tmp_path / "mine.txt")})
    assert "\n" not in str(caught.value)


def test_latin_1_trains_when_it_is_named(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes("el año que viene será mejor\n".encode("latin-1") * 300)
    assert train({**recipe, "data": str(tmp_path / "mine.txt"), "encoding": "latin-1", "max_steps": 2}).steps == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"model_type": "lama"}}, "model: model_type must be one of .*did you mean 'llama'"),
        ({"model": {"model_type": "llama", "hiden_size": 8}}, "did you mean 'hidden_size'"),
        ({"model": {"model_type": "llama", "hidden_size": 64, "vocab_size": 5}}, "vocab_size must be at least"),
        ({"block_size": 65}, "block_size must be at most the model's context window of 64 tokens, but is 65"),
        (
            {"model": {"model_type": "bert", "hidden_size": 12, "intermediate_size": 8}},
            "must have a model that is a decoder, but bert is",
        ),
    ],
)
def test_a_model_that_does_not_do_is_refused(recipe: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        train({**recipe, **change})


def test_a_text_that_is_missing_makes_nothing(recipe: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"'none\.txt' does not exist"):
        train({**recipe, "data": "none.txt"})
    assert not Path(recipe["output_dir"]).exists()
