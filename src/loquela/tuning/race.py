"""Several tunings compared: methods at equal seconds of the processor, and one method on more and more examples.

Each runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loquela.errors import LoquelaError, RecipeError, TrainingError
from loquela.evaluation.forgetting import change
from loquela.training.directory import write_file
from loquela.training.events import Listener, Note
from loquela.tuning.recipe import METHODS, TuneRecipe
from loquela.tuning.run import RECIPE, TuneResult, seconds_per_step, tune

__all__ = ["Curve", "Leg", "data_curve", "race"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Leg:
    """One method's part in a race."""

    method: str
    result: TuneResult
    cpu_seconds: float
    """Processor seconds of its process, scoring and saving too; the updates alone took the budget."""

    def as_dict(self) -> dict[str, Any]:
        """One row of the table."""
        found = self.result
        return {
            "method": self.method,
            "steps": found.steps,
            "gain": found.verdict["gain"],
            "val_loss": found.val_loss,
            "val_bits_per_byte": found.val_bits_per_byte,
            "metrics": {k: v for k, v in found.metrics.items() if k not in ("before", "tasks")},
            "forgetting": found.forgetting["delta"],
            "noise": found.forgetting["noise"],
            "similarity": found.forgetting.get("similarity"),
            "trainable_parameters": found.trainable_parameters,
            "peak_memory_bytes": found.peak_memory_bytes,
            "adapter_bytes": found.adapter_bytes,
            "cpu_seconds": self.cpu_seconds,
            "adapter": found.adapter,
            "model": found.model,
        }


def race(
    recipe: TuneRecipe, methods: Sequence[str], *, cpu_seconds: float, on_event: Listener = lambda event: None
) -> list[Leg]:
    """Tune by each method with as many updates as fit into `cpu_seconds` of the processor; the best gain first.

    Each has its directory below `output_dir`, which also gets race.json and race.html. Settings of the recipe go to
    the methods that know them. Raises `RecipeError` for an unknown method; what `tune` raises ends the race.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise RecipeError(f"a race must be among {', '.join(METHODS)}, but names {', '.join(unknown) or 'none'}")
    directory = Path(recipe.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    legs = []
    for method in methods:
        own = recipe.model_copy(
            update={
                "method": method,
                "settings": recipe.settings if method == recipe.method else {},
                "learning_rate": recipe.learning_rate if method == recipe.method else None,
                "output_dir": str(directory / method),
            }
        )
        steps = _steps_before(own)
        if steps is None:
            each = _apart(seconds_per_step, own)
            steps = max(1, round(cpu_seconds / max(each, 1e-9)))
            on_event(Note(f"{method}: {each:.3f} processor seconds an update, so {steps:,} updates"))
        result, used = _apart(_timed, own.model_copy(update={"max_steps": steps}))
        legs.append(Leg(method, result, used))
        on_event(Note(f"{method}: {result.verdict['sentence']}"))
    legs.sort(key=lambda leg: -leg.result.verdict["gain"])
    rows = [leg.as_dict() for leg in legs]
    write_file(directory / "race.json", json.dumps({"cpu_seconds": cpu_seconds, "legs": rows}, indent=2) + "\n")
    write_file(directory / "race.html", _race_chart(rows, cpu_seconds))
    return legs


def _steps_before(recipe: TuneRecipe) -> int | None:
    """Return the updates of this very leg where an earlier, interrupted race has measured them."""
    file = Path(recipe.output_dir) / RECIPE
    if not file.is_file() or recipe.overwrite_output_dir:
        return None
    try:
        before = TuneRecipe.load(file)
    except LoquelaError:
        return None
    same = before.model_copy(update={"max_steps": recipe.max_steps})
    return before.max_steps if not same.differences(recipe) else None


@dataclass(frozen=True)
class Curve:
    """Quality against examples: (examples, result) in rising order, and what more would bring."""

    points: list[tuple[int, TuneResult]]
    pays: bool
    """Whether the last step up in examples gained more than the noise."""
    gained: float
    ci95: tuple[float, float]
    expected: float
    """What another doubling would gain if gains go on shrinking as they did."""
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        rows = [
            {
                "examples": examples,
                "val_loss": found.val_loss,
                "val_bits_per_byte": found.val_bits_per_byte,
                "gain": found.verdict["gain"],
                "metrics": {k: v for k, v in found.metrics.items() if k not in ("before", "tasks")},
                "forgetting": found.forgetting["delta"],
                "steps": found.steps,
            }
            for examples, found in self.points
        ]
        return {
            "data_curve": rows,
            "pays": self.pays,
            "gained": self.gained,
            "ci95": list(self.ci95),
            "expected": self.expected,
            "sentence": self.sentence,
        }


def data_curve(recipe: TuneRecipe, sizes: Sequence[int], *, on_event: Listener = lambda event: None) -> Curve:
    """Tune on the first so many examples of one order, all scored on the same held-out rows.

    Raises `RecipeError` for fewer than two sizes, and for more examples than there are.
    """
    sizes = sorted(set(sizes))
    if len(sizes) < 2 or sizes[0] < 1:
        raise RecipeError(f"a data curve must have at least two sizes from 1, but has {', '.join(map(str, sizes))}")
    directory = Path(recipe.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    points = []
    for size in sizes:
        own = recipe.model_copy(update={"train_rows": size, "output_dir": str(directory / f"examples-{size}")})
        result, _ = _apart(_timed, own)
        points.append((size, result))
        on_event(Note(f"{size:,} examples: {result.verdict['sentence']}"))
    curve = _judged(points, directory)
    write_file(directory / "data_curve.json", json.dumps(curve.as_dict(), indent=2) + "\n")
    write_file(directory / "data_curve.html", _curve_chart(curve))
    return curve


def _judged(points: list[tuple[int, TuneResult]], directory: Path) -> Curve:
    """Compare the last two points on the same rows, and go on with the curve by one doubling."""
    losses = [_held(directory / f"examples-{size}") for size, _ in points]
    unit = "bits per byte"
    if points[-1][1].val_bits_per_byte is None:  # a label is one thing to guess, however long its name
        losses, unit = [(nats, np.ones_like(nats)) for nats, _ in losses], "bits per row"
    before, after, n_bytes = losses[-2][0], losses[-1][0], losses[-1][1]
    delta, (low, high) = change(before, after, n_bytes)
    gained, ci95 = -delta, (-high, -low)
    pays = ci95[0] > 0
    doublings = [math.log2(b / a) for (a, _), (b, _) in pairwise(points)]
    totals = [float(nats.sum() / math.log(2) / size.sum()) for nats, size in losses]
    gains = [(a - b) / d for (a, b), d in zip(pairwise(totals), doublings, strict=True)]
    shrinks = min(1.0, max(0.0, gains[-1] / gains[-2])) if len(gains) > 1 and gains[-2] > 0 else 1.0
    expected = max(0.0, gains[-1] * shrinks)
    (few, _), (many, _) = points[-2:]
    head = "More examples would pay" if pays else "More examples would not pay, as far as these tell"
    sentence = (
        f"{head}: from {few:,} to {many:,} it gained {gained:+.3f} {unit} (95 %: {ci95[0]:+.3f} to "
        f"{ci95[1]:+.3f}); another doubling would bring about {expected:+.3f}."
    )
    return Curve(points, pays, gained, ci95, expected, sentence)


def _held(directory: Path) -> tuple[Any, Any]:
    """Return nats and bytes of each held-out row."""
    with (directory / "evidence" / "held_out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return np.array([float(row["after"]) for row in rows]), np.array([float(row["bytes"]) for row in rows])


def _timed(recipe: TuneRecipe) -> tuple[TuneResult, float]:
    began = time.process_time()
    return tune(recipe), time.process_time() - began


def _apart(function: Callable[[TuneRecipe], Any], recipe: TuneRecipe) -> Any:
    """Call `function` in a process of its own, and raise what it raises."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, recipe, sender))
    process.start()
    sender.close()
    try:
        done, value = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == 130:
            raise KeyboardInterrupt from None
        raise TrainingError(
            f"the process that tunes must end with a result, but ended with {process.exitcode}"
        ) from None
    process.join()
    if not done:
        raise value
    return value


def _call(function: Callable[[TuneRecipe], Any], recipe: TuneRecipe, sender: Any) -> None:
    try:
        sender.send((True, function(recipe)))
    except LoquelaError as error:
        sender.send((False, error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _race_chart(rows: Sequence[dict[str, Any]], cpu_seconds: float) -> str:
    import plotly.graph_objects as go

    lost = [row["forgetting"] if row["forgetting"] is not None else 1 - (row["similarity"] or 0.0) for row in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=lost,
        y=[row["gain"] for row in rows],
        text=[row["method"] for row in rows],
        mode="markers+text",
        textposition="top center",
        marker={"size": [10 + 3 * math.log10(row["trainable_parameters"] + 1) for row in rows]},
    )
    figure.update_layout(
        title=f"Gain against forgetting at {cpu_seconds:g} processor seconds each",
        xaxis_title="forgotten, bits per byte" if rows[0]["forgetting"] is not None else "1 - similarity to the base",
        yaxis_title="gained on held-out rows",
    )
    return str(figure.to_html(include_plotlyjs=True))


def _curve_chart(curve: Curve) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[size for size, _ in curve.points], y=[found.val_loss for _, found in curve.points], mode="lines+markers"
    )
    figure.update_xaxes(type="log", title="examples")
    figure.update_yaxes(title="loss on the held-out rows, nats per token")
    figure.update_layout(title=curve.sentence)
    return str(figure.to_html(include_plotlyjs=True))
