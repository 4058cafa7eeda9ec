"""The loss curve as a web page that needs no network."""

from __future__ import annotations

from pathlib import Path

from loquela.errors import StorageError
from loquela.training.log import Row

__all__ = ["write_curve"]


def write_curve(rows: list[Row], file: Path, title: str) -> None:
    """Draw training and validation loss (nats per token) against the tokens seen; raises `StorageError`."""
    from plotly import graph_objects as go  # takes half a second, and a run ends without it too

    held_out = [row for row in rows if row.val_loss is not None]
    figure = go.Figure(
        [
            go.Scatter(x=[r.tokens for r in rows], y=[r.train_loss for r in rows], name="training", mode="lines"),
            go.Scatter(
                x=[r.tokens for r in held_out], y=[r.val_loss for r in held_out], name="held out", mode="lines+markers"
            ),
        ]
    )
    figure.update_layout(
        title=title, template="simple_white", xaxis_title="tokens seen", yaxis_title="loss, nats per token"
    )
    try:
        file.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error
