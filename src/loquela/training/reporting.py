"""Further places that a run logs to: TensorBoard, Weights & Biases, MLflow. Each is an extra, imported when asked for.

All get the same numbers under the same names, a point for every row of loss.csv.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from loquela.errors import MissingExtraError
from loquela.training.events import Event, Listener, Logged, Sampled, Started
from loquela.training.recipe import Recipe

__all__ = ["REPORTERS", "reporter"]


class Place(Protocol):
    """What is needed of such a place."""

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name."""

    def text(self, name: str, value: str, step: int) -> None:
        """Log a text."""

    def close(self) -> None:
        """Put everything away."""


@contextmanager
def reporter(recipe: Recipe, directory: Path, step: int, *, writes: bool = True) -> Iterator[Listener]:
    """Yield a listener that logs to the place that `report_to` names, for a run that goes on after `step`.

    On a rank that does not write, it logs nothing. Raises `MissingExtraError` where its package is not installed.
    """
    if recipe.report_to == "none" or not writes:
        yield lambda event: None
        return
    try:
        place = REPORTERS[recipe.report_to](recipe, directory, step)
    except ImportError as error:
        raise MissingExtraError(
            f"report_to {recipe.report_to} needs the package {error.name}, which is not installed: "
            f"pip install 'loquela[{recipe.report_to}]', or report_to=none"
        ) from None
    try:
        yield _Teller(place)
    finally:
        place.close()


class _Teller:
    """Turns the events of a run into numbers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.bits = 0.0
        """Bits per byte of the training text for each nat per token; 0 where that means nothing."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started) and event.train_bytes:
            self.bits = event.train_tokens / event.train_bytes / math.log(2)
        elif isinstance(event, Logged):
            self.place.numbers(dict(self._numbers(event)), event.row.step)
        elif isinstance(event, Sampled):
            self.place.text("sample", event.prompt + event.text, event.step)

    def _numbers(self, event: Logged) -> Iterator[tuple[str, float]]:
        row, validation = event.row, event.validation
        yield "train/loss", row.train_loss
        if validation is not None:
            yield "validation/loss", validation.loss
            if validation.bits_per_byte is not None:
                yield "validation/bits_per_byte", validation.bits_per_byte
        if self.bits:
            yield "train/bits_per_byte", row.train_loss * self.bits
        yield "train/gradient_norm", row.grad_norm
        yield "train/learning_rate", row.learning_rate
        yield "train/tokens", row.tokens
        yield "speed/tokens_per_second", event.tokens_per_second
        if event.mfu is not None:
            yield "speed/mfu", event.mfu


class _TensorBoard:
    """Event files in `tensorboard` of the run's directory; what a lost session wrote after `step` is hidden."""

    def __init__(self, recipe: Recipe, directory: Path, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, name: str, value: str, step: int) -> None:
        self.writer.add_text(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A run of Weights & Biases, which goes on under the same id; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, recipe: Recipe, directory: Path, step: int) -> None:
        wandb = importlib.import_module("wandb")
        config = yaml.safe_load(recipe.to_yaml())
        self.run: Any = wandb.init(
            project="loquela", name=directory.name, dir=str(directory), config=config, id=_id(directory), resume="allow"
        )

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def text(self, name: str, value: str, step: int) -> None:
        self.run.log({name: value}, step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    """A run of MLflow, where `MLFLOW_TRACKING_URI` says, else in `mlruns` beside the run's directory."""

    def __init__(self, recipe: Recipe, directory: Path, step: int) -> None:
        self.mlflow: Any = importlib.import_module("mlflow")
        self.mlflow.set_experiment("loquela")
        self.mlflow.start_run(run_name=directory.name)
        if not step:
            flat = yaml.safe_load(recipe.to_yaml())
            self.mlflow.log_params({key: str(value)[:500] for key, value in flat.items()})

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics({name.replace("/", "_"): value for name, value in values.items()}, step=step)

    def text(self, name: str, value: str, step: int) -> None:
        self.mlflow.log_text(value, f"{name}-{step}.txt")

    def close(self) -> None:
        self.mlflow.end_run()


def _id(directory: Path) -> str:
    """Return the id of this run: made once, kept in its directory."""
    file = directory / "data" / "wandb.id"
    if not file.exists():
        import uuid

        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


REPORTERS: dict[str, Callable[[Recipe, Path, int], Place]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
"""Name → what makes the place."""
