"""Score against the number of shots, for several models: what in-context learning adds, and where it adds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.errors import StorageError
from loquela.evaluation.results import TaskResult

__all__ = ["Point", "write_chart"]


@dataclass(frozen=True)
class Point:
    """One model on one task with one number of shots."""

    model: str
    shots: int
    result: TaskResult

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        result = self.result
        return {
            "model": self.model,
            "task": result.task,
            "shots": self.shots,
            "shown": result.details.get("shots", self.shots),
            result.metric: result.score,
            "ci95": list(result.ci95),
            "n": result.n,
            "chance": result.chance,
            "majority": result.majority,
        }


def write_chart(points: Sequence[Point], file: Path) -> None:
    """Draw each model's score with its interval against the shots, beside chance; raises `StorageError`."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    tasks = list(dict.fromkeys(point.result.task for point in points))
    models = list(dict.fromkeys(point.model for point in points))
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # told apart by everyone
    figure = make_subplots(rows=len(tasks), cols=1, subplot_titles=tasks, vertical_spacing=0.3 / max(2, len(tasks)))
    for row, task in enumerate(tasks, 1):
        here = [point for point in points if point.result.task == task]
        asked = sorted({point.shots for point in here})
        beside = 0.015 * (asked[-1] - asked[0])  # so that one model does not hide behind another
        for number, model in enumerate(models):
            own = sorted((point for point in here if point.model == model), key=lambda point: point.shots)
            if not own:
                continue
            scores = [point.result.score for point in own]
            figure.add_trace(
                go.Scatter(
                    x=[point.shots + (number - (len(models) - 1) / 2) * beside for point in own],
                    y=scores,
                    customdata=[point.shots for point in own],
                    hovertemplate="%{customdata} shots: %{y:.4f}",
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": [p.result.ci95[1] - s for p, s in zip(own, scores, strict=True)],
                        "arrayminus": [s - p.result.ci95[0] for p, s in zip(own, scores, strict=True)],
                    },
                    mode="lines+markers",
                    name=Path(model).name or model,
                    legendgroup=model,
                    showlegend=row == 1,
                    line={"color": colours[number % len(colours)]},
                ),
                row=row,
                col=1,
            )
        for value, name in ((here[0].result.chance, "chance"), (here[0].result.majority, "commonest answer")):
            if value is not None:
                line = {"dash": "dot", "width": 1, "color": "#666666"}  # the template's lines have no width
                figure.add_hline(y=value, line=line, annotation_text=name, row=row, col=1)
        figure.update_xaxes(title_text="shots", tickvals=asked, row=row, col=1)
        figure.update_yaxes(title_text=here[0].result.metric.replace("_", " "), row=row, col=1)
    figure.update_layout(
        template="simple_white", title="Score against the examples in the prompt", height=420 * len(tasks)
    )
    try:
        file.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error
