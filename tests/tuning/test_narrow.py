"""Updates in a narrow type: the base is held in it, and scores stay those of float32 and of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import CheckpointError
from loquela.peft.base import METHODS
from loquela.training import precision
from loquela.training.events import Note, Stepped, Validated
from loquela.tuning import loop
from loquela.tuning.narrow import WIDE, Narrow, products
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.run import TuneResult, tune
from loquela.tuning.subject import open_subject

Write = Callable[..., Path]
QUICK: dict[str, Any] = {"max_steps": 12, "per_device_train_batch_size": 8, "probe_tokens": 60, "eval_steps": 6}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that is fast at every type, whatever this one is."""
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)


def run(model: Path, data: Path, output: Path, listener: Any = lambda event: None, **more: Any) -> TuneResult:
    recipe = {"model": str(model), "data": str(data), "output_dir": str(output), "learning_rate": 0.02, **QUICK, **more}
    return tune(recipe, on_event=listener)


def dtypes(network: Any) -> set[torch.dtype]:
    return {p.dtype for p in network.parameters()}


def test_a_slow_processor_computes_in_float32_and_says_so(
    decoder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: False)
    said: dict[str, list[str]] = {}
    for dtype in ("auto", "bfloat16", "float16", "float32"):
        events: list[object] = []
        result = run(decoder, pairs, tmp_path / dtype, events.append, dtype=dtype, max_steps=1)
        said[dtype] = [event.message for event in events if isinstance(event, Note)]
        assert result.dtype == "float32"
    assert any("products are computed in float32" in note for note in said["auto"])
    assert not any("float32" in note for note in said["float32"])
    for dtype in ("bfloat16", "float16"):
        assert f"dtype is float32 instead of {dtype}, at which this cpu is slow" in said[dtype]


@pytest.mark.parametrize("method", [*METHODS, "full"])
@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
@pytest.mark.usefixtures("fast")
def test_every_method_learns_in_bfloat16_and_is_scored_as_in_float32(
    request: pytest.FixtureRequest, kind: str, method: str, rows: Write, tmp_path: Path
) -> None:
    if (kind, method) == ("encoder", "prefix"):
        pytest.skip("an encoder reads no prefix")
    model = request.getfixturevalue(kind)
    labelled = [{"text": t, "label": y} for t, y in (("cat cat", "good"), ("dog dog", "bad"))]
    pairs = [{"source": s, "target": t} for s, t in (("cat", "red"), ("dog", "blue"))]
    data = rows((labelled if kind == "encoder" else pairs) * 20)
    rate = (0.1 if method in ("ia3", "prompt", "prefix") else 0.01) * (3 if kind == "encoder_decoder" else 1)
    found = {
        dtype: run(model, data, tmp_path / dtype, method=method, dtype=dtype, learning_rate=rate, max_steps=24)
        for dtype in ("float32", "bfloat16")
    }
    wide, narrow = found["float32"], found["bfloat16"]
    assert narrow.dtype == "bfloat16"
    assert narrow.metrics["before"] == wide.metrics["before"]
    assert narrow.forgetting["before"] == wide.forgetting["before"]
    assert narrow.forgetting["stages"][0] == wide.forgetting["stages"][0]
    first = wide.metrics["before"]["loss"]
    assert narrow.val_loss < first
    assert narrow.val_loss - wide.val_loss < 0.3 * (first - wide.val_loss)


@pytest.mark.usefixtures("fast")
def test_what_is_scored_is_what_the_files_give(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    result = run(decoder, pairs, tmp_path / "out", dtype="bfloat16")
    kept = {"model": str(decoder), "data": str(pairs), "output_dir": str(tmp_path / "again"), **QUICK}
    recipe = TuneRecipe.load(kept | {"learning_rate": 0.02})
    from loquela.peft import wearing
    from loquela.peft.storing import load_adapter
    from loquela.tuning.batching import Assembler
    from loquela.tuning.preparing import prepare, read_tasks
    from loquela.tuning.scoring import score_items

    subject = open_subject(recipe, [])
    prepared = prepare(recipe, subject, read_tasks(recipe, lambda note: None), [], lambda note: None)
    network = load_model(decoder).network
    load_adapter(network, tmp_path / "out", "x")
    with wearing(network, "x"):
        scores = score_items(network, prepared.held, Assembler(network, at_most=16, limit=512, packing=False))
    assert scores is not None
    assert scores.loss == result.val_loss


@pytest.mark.usefixtures("fast")
def test_the_base_is_narrow_while_updates_run_and_exact_while_it_is_scored(
    decoder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[loop.Tuning] = []
    begin = loop.Tuning.__post_init__
    monkeypatch.setattr(loop.Tuning, "__post_init__", lambda self: (runs.append(self), begin(self))[1])
    stored = dict(load_model(decoder).network.named_parameters())
    seen: dict[str, set[torch.dtype]] = {}

    def listen(event: object) -> None:
        if isinstance(event, (Stepped, Validated)):
            (run,) = runs
            seen[type(event).__name__] = dtypes(run.subject.network)
            assert {p.dtype for p in run.subject.parameters.values()} == {torch.float32}
            if isinstance(event, Validated):
                own = dict(run.subject.network.named_parameters())
                assert all(torch.equal(own[name], value) for name, value in stored.items())

    run(decoder, pairs, tmp_path / "out", listen, dtype="bfloat16")
    assert seen == {"Stepped": {torch.float32, torch.bfloat16}, "Validated": {torch.float32}}
    (made,) = runs
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in made.narrow.matrices} >= {"q_proj", "down_proj"}
    assert not any("embedding" in name for name in made.narrow.matrices)
    assert dtypes(made.subject.network) == {torch.float32}


@pytest.mark.usefixtures("fast")
def test_a_base_that_changes_meanwhile_ends_the_run(decoder: Path, pairs: Path, tmp_path: Path) -> None:
    loaded = load_model(decoder)
    base = tmp_path / "base"
    save_model(loaded.network, loaded.tokenizer, base)

    def meddle(event: object) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            with torch.no_grad():
                next(p for n, p in loaded.network.named_parameters() if "down_proj" in n).add_(1)
            save_model(loaded.network, loaded.tokenizer, base)

    with pytest.raises(CheckpointError, match="must stay as it is while it is tuned"):
        run(base, pairs, tmp_path / "out", meddle, dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.usefixtures("fast")
def test_an_interrupted_run_in_a_narrow_type_ends_with_the_same_bits(
    decoder: Path, pairs: Path, tmp_path: Path, dtype: str
) -> None:
    from tests.tuning.test_tuning import Stopper

    more = {"dtype": dtype, "save_steps": 5, "settings": {"lora_dropout": 0.2}}
    whole = run(decoder, pairs, tmp_path / "whole", **more)
    for step in (3, 8):
        with pytest.raises(KeyboardInterrupt):
            run(decoder, pairs, tmp_path / "cut", Stopper(step), **more)
    cut = run(decoder, pairs, tmp_path / "cut", **more)
    assert (cut.val_loss, cut.forgetting, cut.dtype) == (whole.val_loss, whole.forgetting, dtype)
    for name in ("loss.csv", "adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("more", [{"base_bits": 4}, {"max_forget": 0.05}, {"method": "full", "max_forget": 0.05}])
@pytest.mark.usefixtures("fast")
def test_few_bits_and_a_pull_towards_the_base_work_in_bfloat16(
    decoder: Path, pairs: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    result = run(decoder, pairs, tmp_path / "out", dtype="bfloat16", **more)
    assert result.dtype == "bfloat16"
    assert result.val_loss < result.metrics["before"]["loss"]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.usefixtures("fast")
def test_preferences_are_learnt_in_bfloat16(decoder: Path, rows: Write, tmp_path: Path, method: str) -> None:
    row = {"prompt": "cat", "chosen": "red one", "rejected": "blue two"}
    result = run(decoder, rows([row] * 20), tmp_path / "out", method=method, dtype="bfloat16", learning_rate=0.01)
    assert result.metrics["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert result.metrics["preference_accuracy"] == 1.0


def test_what_is_tied_or_trained_is_not_narrow(decoder: Path, encoder: Path, tmp_path: Path, pairs: Path) -> None:
    recipe = {"model": str(encoder), "data": str(pairs), "output_dir": str(tmp_path / "out")}
    lora = open_subject(TuneRecipe.load(recipe), ["a", "b"])
    narrow = Narrow(lora, torch.bfloat16)
    assert narrow.matrices
    assert not any("classifier" in name or "embedding" in name for name in narrow.matrices)
    assert Narrow(lora, torch.float32).matrices == {}
    assert Narrow(open_subject(TuneRecipe.load(recipe | {"method": "full"}), ["a", "b"]), torch.bfloat16).matrices == {}


@pytest.mark.usefixtures("fast")
def test_auto_looks_at_the_width_and_keeps_what_a_run_began_in(decoder: Path) -> None:
    network = load_model(decoder).network
    assert TuneRecipe.model_fields["dtype"].default == "auto"
    dtype, notes = products("auto", network, tokens=10**6)
    assert (dtype, len(notes)) == (torch.float32, 1)
    assert "a width of 32 gains nothing" in notes[0]
    assert products("auto", network, tokens=1, began="bfloat16")[0] == torch.bfloat16
    assert products("bfloat16", network, tokens=1)[0] == torch.bfloat16
    network.config.hidden_size = WIDE  # type: ignore[attr-defined]
    dtype, notes = products("auto", network, tokens=1000)
    assert dtype == torch.bfloat16
    assert "scores are computed in float32, with the base as it is stored" in notes
    assert products("auto", network, tokens=1000, began="float32")[0] == torch.float32
