"""Mean weights, leaps of the loss, early stopping, precision: each decided by the recipe, each resumed bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from interrupting import RECIPE, write_recipe

from loquela.checkpoint.parts import stored_tensors
from loquela.checkpoint.store import load_model
from loquela.data.batch import Batch
from loquela.errors import DirectoryInUseError
from loquela.training import precision
from loquela.training import step as step_module
from loquela.training.events import Event, Note, Stepped, Validated
from loquela.training.leaps import IN_A_ROW
from loquela.training.log import read_rows
from loquela.training.run import train

STEPS = 36


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    write_recipe(directory)
    return directory / "text.txt"


@pytest.fixture
def recipe(text: Path, tmp_path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    raw.update(data=str(text), output_dir=str(tmp_path / "out"), max_steps=STEPS, save_steps=10, eval_steps=12)
    raw.update(gradient_accumulation_steps=1, load_best_model_at_end=False)
    return raw


class Watcher:
    def __init__(self, stop_after: int = 0) -> None:
        self.events: list[Event] = []
        self.stop_after = stop_after

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.stop_after:
            signal.raise_signal(signal.SIGINT)

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Note)]

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, Stepped)]


def outcome(output: Path | str) -> dict[str, bytes]:
    last = max(Path(output).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    files = [Path(output) / "model.safetensors", Path(output) / "loss.csv", *last.glob("*.safetensors")]
    return {file.name if file.parent == last else f"end/{file.name}": file.read_bytes() for file in files}


def interrupted(recipe: dict[str, Any], *steps: int) -> None:
    """Train with an interruption after each of these steps, then to the end."""
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, on_event=Watcher(step))
    train(recipe)


# -- mean weights


def test_mean_weights_are_what_is_judged_and_saved_and_outlive_interruptions(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe |= {"ema_decay": 0.8, "sample_steps": 15, "load_best_model_at_end": True}
    result = train(recipe)
    held = outcome(recipe["output_dir"])
    assert "average.safetensors" in held
    last, kept = (load_model(p).network for p in (f"{recipe['output_dir']}/checkpoint-{STEPS}", recipe["output_dir"]))
    assert not torch.equal(next(last.parameters()), next(kept.parameters()))
    again = train(
        {
            **recipe,
            "model": recipe["output_dir"],
            "tokenizer": None,
            "output_dir": str(tmp_path / "again"),
            "max_steps": 1,
            "learning_rate": 0.0,
            "muon": {"learning_rate": 0.0},
            "ema_decay": None,
        }
    )
    assert again.val_loss == pytest.approx(result.val_loss, rel=1e-6), "the loss that was told is the saved model's"
    interrupted({**recipe, "output_dir": str(tmp_path / "cut")}, 5, 13, 15, 24)
    assert outcome(tmp_path / "cut") == held


# -- leaps of the loss


@pytest.fixture
def leaping(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Batches, by the sum of their tokens, whose loss and gradient are fifty times too large."""
    bad: set[int] = set()
    real = step_module.summed_loss

    def sometimes(network: Any, batch: Batch, *rest: Any, **more: Any) -> torch.Tensor:
        loss = real(network, batch, *rest, **more)
        return loss * 50 if network.training and int(batch.inputs.sum()) in bad else loss

    monkeypatch.setattr(step_module, "summed_loss", sometimes)
    return bad


def sums_of(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sum of the tokens of every step's batch."""
    seen: list[int] = []
    with monkeypatch.context() as context:
        real = step_module.summed_loss

        def watched(network: Any, batch: Batch, *rest: Any, **more: Any) -> torch.Tensor:
            if network.training:
                seen.append(int(batch.inputs.sum()))
            return real(network, batch, *rest, **more)

        context.setattr(step_module, "summed_loss", watched)
        train({**recipe, "output_dir": recipe["output_dir"] + "-seen"})
    return seen


@pytest.mark.parametrize("policy", ["log", "skip", "rewind"])
def test_a_leap_is_told_left_out_or_gone_back_from_and_resumed_bit_for_bit(
    recipe: dict[str, Any], policy: str, leaping: set[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sums = sums_of(recipe, monkeypatch)
    leaping.add(sums[26])
    recipe["spike_policy"] = policy
    watcher = Watcher()
    train(recipe, on_event=watcher)
    told = [note for note in watcher.notes if "the loss leapt" in note]
    assert len(told) == 1
    assert told[0].startswith("step 27: the loss leapt to ")
    if policy != "log":
        assert "its samples start at tokens " in told[0]
    ends = {"log": "", "skip": "that update was left out", "rewind": "back to checkpoint-20 and past the samples since"}
    assert told[0].endswith(ends[policy])
    expected_steps = [*range(1, STEPS + 1)] if policy != "rewind" else [*range(1, 27), *range(21, STEPS + 1)]
    assert watcher.steps == expected_steps
    rows = read_rows(Path(recipe["output_dir"]) / "loss.csv")
    assert [row.step for row in rows] == sorted({row.step for row in rows}), "rows that were gone back from are gone"
    assert rows[-1].tokens == (STEPS - (policy == "skip")) * 4 * 48
    assert max(row.train_loss for row in rows) > 20 if policy == "log" else max(row.train_loss for row in rows) < 7
    cut = {**recipe, "output_dir": str(tmp_path / "cut")}
    interrupted(cut, 4, 23, 25)
    assert outcome(cut["output_dir"]) == outcome(recipe["output_dir"])


def test_what_leaps_for_good_is_learnt_from_again(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = step_module.summed_loss, [0]

    def raised(network: Any, batch: Batch, *rest: Any, **more: Any) -> torch.Tensor:
        calls[0] += network.training
        return real(network, batch, *rest, **more) * (10 if calls[0] > 22 and network.training else 1)

    monkeypatch.setattr(step_module, "summed_loss", raised)
    watcher = Watcher()
    train({**recipe, "spike_policy": "skip"}, on_event=watcher)
    told = [note for note in watcher.notes if "leapt" in note]
    assert len(told) == IN_A_ROW + 1
    assert told[-1].endswith(f"as in {IN_A_ROW} steps before: it is taken as the new level")


def test_where_to_go_back_to_decides_the_weights(recipe: dict[str, Any]) -> None:
    """A rewind goes to a multiple of save_steps, so with that policy save_steps is no free choice any more."""
    from loquela.training.recipe import Recipe

    free, bound = (Recipe.load({**recipe, "spike_policy": policy}) for policy in ("skip", "rewind"))
    assert not free.differences(Recipe.load({**recipe, "spike_policy": "skip", "save_steps": 3}))
    assert bound.differences(Recipe.load({**recipe, "spike_policy": "rewind", "save_steps": 3})) == [
        "save_steps: 10 → 3"
    ]


# -- ending early


def test_it_ends_when_validations_get_no_better(recipe: dict[str, Any], text: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text.read_text()[:3000])
    recipe |= {"data": str(tmp_path / "short.txt"), "validation_fraction": 0.5, "max_steps": 400, "eval_steps": 5}
    recipe |= {"load_best_model_at_end": True, "early_stopping_patience": 2, "lr_scheduler_type": "constant"}
    watcher = Watcher()
    result = train(recipe, on_event=watcher)
    losses = [event.loss for event in watcher.events if isinstance(event, Validated)]
    best = losses.index(min(losses))
    assert len(losses) == best + 3, "two more after the best"
    assert (result.steps, result.best_step) == (5 * len(losses), 5 * (best + 1))
    assert result.val_loss == min(losses)
    assert f"2 validations in a row were no better: training ends at step {result.steps}" in watcher.notes
    held = outcome(recipe["output_dir"])
    cut = {**recipe, "output_dir": str(tmp_path / "cut")}
    interrupted(cut, result.steps - 6, result.steps)
    assert outcome(cut["output_dir"]) == held


# -- precision


@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_only_where_it_is_fast(
    recipe: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: fast)
    seen: set[torch.dtype] = set()
    real = step_module.summed_loss

    def watched(network: Any, batch: Batch, dtype: torch.dtype, *rest: Any, **more: Any) -> torch.Tensor:
        seen.add(dtype)
        return real(network, batch, dtype, *rest, **more)

    monkeypatch.setattr(step_module, "summed_loss", watched)
    watcher = Watcher()
    train({**recipe, "dtype": "bfloat16", "max_steps": 2}, on_event=watcher)
    assert seen == {torch.bfloat16 if fast else torch.float32}
    assert any("dtype is float32 instead of bfloat16" in note for note in watcher.notes) is not fast


def test_float16_scales_its_loss_and_computes_a_step_again_when_that_overflows(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    recipe |= {"dtype": "float16", "max_steps": 6, "save_steps": 3, "eval_steps": 6}
    train(recipe)
    state = json.loads((Path(recipe["output_dir"]) / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["step"] == 6
    assert state["scale"]["scale"] <= 65536
    exact = train({**recipe, "dtype": "float32", "output_dir": str(tmp_path / "exact")})
    rough = read_rows(Path(recipe["output_dir"]) / "loss.csv")[-1]
    assert rough.val_loss == pytest.approx(exact.val_loss, rel=0.02)


def test_what_is_to_be_said_of_a_text_is_said_once(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Though it is read twice, for its vocabulary and for its tokens."""
    file = tmp_path / "windows.txt"
    file.write_bytes(Path(recipe["data"]).read_bytes().replace(b"\n", b"\r\n"))
    watcher = Watcher()
    train({**recipe, "data": str(file), "max_steps": 1}, on_event=watcher)
    assert sum("line ends of Windows" in note for note in watcher.notes) == 1


def stored(output: str) -> set[torch.dtype]:
    """The types of all that the last checkpoint holds of the weights and of the optimizer."""
    last = max(Path(output).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return {tensor.read().dtype for stem in ("model", "optimizer") for tensor in stored_tensors(last, stem).values()}


def products(output: str) -> str:
    """What the receipt says that products were computed in."""
    made: str = json.loads((Path(output) / "receipt.json").read_text())["precision"]["products"]
    return made


def test_a_run_chooses_its_type_once_and_keeps_it_to_the_last_bit(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Interrupted, and gone on where `auto` would choose another: the type it began with, and the same bits."""
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    monkeypatch.setattr(precision, "WORTH_IT", 0)
    watcher = Watcher()
    train(recipe, on_event=watcher)
    assert sum("products are computed in bfloat16" in note for note in watcher.notes) == 1
    assert products(recipe["output_dir"]) == "bfloat16"
    assert stored(recipe["output_dir"]) == {torch.float32}, "only products are rounded"
    cut = {**recipe, "output_dir": str(tmp_path / "cut")}
    with pytest.raises(KeyboardInterrupt):
        train(cut, on_event=Watcher(7))
    monkeypatch.setattr(precision, "WORTH_IT", 1 << 60)
    interrupted(cut, 23)
    assert outcome(cut["output_dir"]) == outcome(recipe["output_dir"])
    exact = {**recipe, "dtype": "float32", "output_dir": str(tmp_path / "exact")}
    train(exact)
    assert outcome(exact["output_dir"]) != outcome(recipe["output_dir"])
    small = {**recipe, "output_dir": str(tmp_path / "small")}
    train(small)
    assert outcome(small["output_dir"]) == outcome(exact["output_dir"])


def test_a_run_of_before_auto_was_the_default_goes_on_in_float32(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    monkeypatch.setattr(precision, "WORTH_IT", 0)
    exact = {**recipe, "dtype": "float32", "output_dir": str(tmp_path / "exact")}
    train(exact)
    with pytest.raises(KeyboardInterrupt):
        train({**recipe, "dtype": "float32"}, on_event=Watcher(7))
    file = Path(recipe["output_dir"]) / "recipe.yaml"
    assert file.read_text().count("dtype: float32\n") == 1
    file.write_text(file.read_text().replace("dtype: float32\n", ""))
    watcher = Watcher()
    train(recipe, on_event=watcher)
    assert watcher.steps[0] == 8
    assert outcome(recipe["output_dir"]) == outcome(exact["output_dir"])
    assert products(recipe["output_dir"]) == "float32"
    with pytest.raises(DirectoryInUseError, match="dtype: float32 → bfloat16"):
        train({**recipe, "dtype": "bfloat16"})


# -- layers


def test_smoothing_floor_and_layers_computed_again_change_what_they_say(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"max_steps": 4, "eval_steps": 4}
    plain = train(recipe)
    again = train({**recipe, "gradient_checkpointing": True, "output_dir": str(tmp_path / "again")})
    assert again.val_loss == plain.val_loss, "not a bit"
    smooth = train({**recipe, "label_smoothing_factor": 0.2, "output_dir": str(tmp_path / "smooth")})
    assert smooth.train_loss != plain.train_loss
    train({**recipe, "min_lr_rate": 0.5, "warmup_steps": 1, "output_dir": str(tmp_path / "floor")})
    rows = read_rows(tmp_path / "floor" / "loss.csv")
    assert rows[-1].learning_rate == pytest.approx(0.01 * (0.5 + 0.5 * (1 - 2 / 3)))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler, about itself
def test_compiled_layers_learn_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Takes half a minute of compiling."""
    recipe |= {"max_steps": 6, "sample_steps": 3}
    plain = train(recipe)
    compiled = train({**recipe, "torch_compile": True, "output_dir": str(tmp_path / "compiled")})
    assert compiled.val_loss == pytest.approx(plain.val_loss, rel=1e-4)
