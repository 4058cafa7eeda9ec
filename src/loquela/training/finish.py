"""The end of a run: the weights that are kept, the result, and the files beside the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint.files import INCOMING, finish_install
from loquela.checkpoint.store import write_model
from loquela.checkpoint.tensors import write_bytes
from loquela.errors import StorageError
from loquela.text.tokenizer import Tokenizer
from loquela.training.curve import write_curve
from loquela.training.directory import finished_result
from loquela.training.events import Listener, Note
from loquela.training.log import read_rows
from loquela.training.loop import Run
from loquela.training.ranks import local, whole
from loquela.training.receipt import RECEIPT, receipt
from loquela.training.report import write_report
from loquela.training.state import shared_directory
from loquela.training.validation import Validation

__all__ = ["Sample", "TrainResult", "finish", "finished", "special_ids"]

RESULTS = "train_results.json"


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. Losses are in nats per token; `seconds` is all of training, its validations included."""

    model: str
    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None
    """None where the objective does not ask for each token of a text once."""
    val_tokens: int
    tokens: int
    seconds: float
    tokens_per_second: float
    steps: int
    best_step: int
    """The step whose weights were kept."""
    parameters: int
    sample: Sample | None
    """What the model writes, where the recipe asks for samples."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainResult:
        """Read what `as_dict` gave; raises `TypeError` for anything else."""
        return cls(**{**raw, "sample": Sample(**raw["sample"]) if raw.get("sample") else None})


def finish(run: Run) -> TrainResult:
    """Keep the weights that count, save the model, and write what is to be read about it; called on every rank."""
    state, directory, ranks = run.state, run.directory, run.ranks
    kept, best_step = _keep_weights(run)
    seconds = run.seconds
    written = run.sample() if run.recipe.sample_steps is not None else None
    result = TrainResult(
        model=str(directory),
        train_loss=state.train_loss,
        val_loss=kept.loss,
        val_bits_per_byte=kept.bits_per_byte,
        val_tokens=kept.tokens,
        tokens=state.tokens,
        seconds=seconds,
        tokens_per_second=state.tokens / seconds,
        steps=state.step,
        best_step=best_step,
        parameters=run.network.parameter_count(),
        sample=Sample(*written) if written is not None else None,
    )
    made = receipt(run) | {"result": {**result.as_dict(), "model": directory.name}}
    if ranks.main:
        _write_pages(run, result, made)
    _save(run, {RESULTS: result.as_dict(), RECEIPT: made})
    return result


def _keep_weights(run: Run) -> tuple[Validation, int]:
    """Put into the network the weights that count; return their validation, and the step that they are of."""
    state, values, kept, step = run.state, None, run.state.validation, run.state.step
    assert kept is not None
    if run.held.average is not None:
        values = run.held.average.means
    if run.recipe.load_best_model_at_end and state.best is not None and state.best_step != state.step:
        values, kept, step = run.held.best, state.best, state.best_step
        assert values is not None
        run.listener(
            Note(
                f"the weights of step {step} are kept, the best on the held-out text; later ones learnt the "
                "training text by heart"
            )
        )
    if values is not None:
        _put(run, values)
    return kept, step


def _put(run: Run, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in run.network.named_parameters():
            local(parameter).copy_(values[name])
    run.held.average = None  # what the network has now is what counts


def _write_pages(run: Run, result: TrainResult, made: Mapping[str, Any]) -> None:
    directory = run.directory
    try:
        rows = read_rows(directory / "loss.csv")
        write_curve(rows, directory / "loss.html", f"Loss of {directory.name}")
        samples = list(run.state.samples)
        if result.sample is not None:
            samples.append({"step": result.best_step, **asdict(result.sample)})
        write_report(directory / "report.html", directory.name, rows, directory / "timing.csv", samples, made)
    except StorageError as error:  # a picture less is no reason to lose the model
        run.listener(Note(str(error)))


def _save(run: Run, extra: Mapping[str, Mapping[str, Any]]) -> None:
    """Save the model over the run's directory; where each rank has a slice, all write."""
    directory, ranks = run.directory, run.ranks
    ends = {name: value for name, value in special_ids(run.tokenizer).items() if value is not None}
    with ranks.together():
        if ranks.main:
            finish_install(directory)
    with shared_directory(directory / INCOMING, ranks) as temporary:
        if ranks.main or ranks.sharded:
            write_model(
                run.network,
                run.tokenizer,
                temporary,
                generation_config=ends,
                rank=ranks.rank,
                world=ranks.world if ranks.sharded else 1,
                whole=whole,
            )
        if ranks.main:
            for name, content in extra.items():
                write_bytes(temporary / name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    with ranks.together():
        if ranks.main:
            finish_install(directory)


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Named even where there is none, lest another library takes its own default for one of our words."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def finished(directory: Path, on_event: Listener) -> TrainResult | None:
    """Return the result of a run that has ended, if its model is still what was saved."""

    def read(raw: dict[str, Any]) -> TrainResult:
        return TrainResult.from_dict(raw | {"model": str(directory)})

    return finished_result(directory, RESULTS, read, lambda text: on_event(Note(text)), what="model", verb="train")
