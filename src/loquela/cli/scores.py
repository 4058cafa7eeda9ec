"""The scores of an evaluation as a person reads them: a table of tasks, a table of a curve."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from loquela.cli.output import note
from loquela.cli.terminal import write
from loquela.evaluation.curve import Point
from loquela.evaluation.results import TaskResult
from loquela.evaluation.run import Evaluation

__all__ = ["curve_table", "table"]


def table(found: Evaluation, extra: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line per metric, the main one with chance and the commonest answer beside it; then what has no score."""
    wide = max(24, *map(len, [*found.results, *found.failed]))
    write(
        f"{'task':<{wide}} {'metric':<20} {'score':>10}  {'95 % interval':<22} {'n':>6} {'chance':>8} {'majority':>8}\n"
    )
    for name, result in found.results.items():
        order = [result.metric, *(metric for metric in result.scores if metric != result.metric)]
        for metric in order:
            low, high = result.intervals[metric]
            line = f"{name if metric == result.metric else '':<{wide}} {metric:<20} {result.scores[metric]:>10.4f}  "
            line += f"{f'{low:.4f} to {high:.4f}':<22}"
            if metric == result.metric:
                line += f" {result.n:>6} {_number(result.chance):>8} {_number(result.majority):>8}"
            write(line.rstrip() + "\n")
        for what, said in extra[name].items():
            write(_versus(said, wide) if what == "versus" else f"  {what}: {_said(said)}\n")
        for line in result.notes:
            note(f"{name}: {line}")
    for name in found.failed:
        write(f"{name:<{wide}} {'failed':<20} {_number(None):>10}\n")
    note(f"{found.asked} items in {found.seconds:.1f} s")
    sys.stdout.flush()


def _versus(said: Mapping[str, Any], wide: int) -> str:
    """Return the other model's scores, and how much better ours is where single items say so."""
    left_out = f", {said['left_out']} others left out" if "left_out" in said else ""
    found = said["differences"]
    sign = "; the difference is ours less theirs" if found else ""
    lines = [f"  versus {said['model']}, on the same {said['n']} items{left_out}{sign}\n"]
    for metric in dict.fromkeys([*said["scores"], *found]):
        line = f"{'':<{wide}} {metric:<20} {_number(said['scores'].get(metric)):>10}"
        if metric in found:
            difference, (low, high), p = (found[metric][key] for key in ("difference", "ci95", "p"))
            line += f"  {f'{low:+.4f} to {high:+.4f}':<22} difference {difference:+.4f}, p {p:.4f}"
        lines.append(line + "\n")
    return "".join(lines)


def curve_table(points: Sequence[Point]) -> None:
    """Print a line per model, task and number of shots; what must be said of a point goes to stderr."""
    write(f"{'model':<28} {'task':<20} {'shots':>5} {'score':>9}  {'95 % interval':<18} {'n':>6}\n")
    for point in points:
        result = point.result
        name = point.model if len(point.model) <= 28 else "…" + point.model[-27:]
        line = f"{name:<28} {result.task:<20} {point.shots:>5} {result.score:>9.4f}  {_interval(result):<18}"
        write(f"{line} {result.n:>6}\n")
        for said in result.notes:
            note(f"{name}, {result.task}, {point.shots} shots: {said}")


def _interval(result: TaskResult) -> str:
    return f"{result.ci95[0]:.4f} to {result.ci95[1]:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return (" to " if len(value) == 2 else ", ").join(map(_said, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
