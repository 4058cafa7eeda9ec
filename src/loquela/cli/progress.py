"""What a person sees while a model trains: one live line, notes and samples above it, the curve at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from loquela.cli.output import console, note
from loquela.training.events import Event, Logged, Note, Preparing, Sampled, Saved, Started, Stepped, Validated
from loquela.training.log import Row

__all__ = ["TrainingView", "curve", "figure"]

QUIET_SECONDS = 15.0
"""Between two lines where there is no terminal to keep a live line on."""
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # dot of each (row, column) of a cell


def figure(loss: float, bits_per_byte: float | None) -> str:
    """Say how well held-out text is predicted, in the unit that means something."""
    if bits_per_byte is None:
        return f"{loss:.3f} nats per predicted token"
    return f"{bits_per_byte:.3f} bits per byte"


class TrainingView:
    """A context that draws the events of a run on stderr; call it with each."""

    def __init__(self, *, verbose: bool = True) -> None:
        self.verbose = verbose
        """Whether checkpoints are told of too."""
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.what = ""
        self.started: Started | None = None
        self.first: Stepped | None = None
        self.loss = 0.0
        self.logged: Logged | None = None
        self.told = time.monotonic()

    def __enter__(self) -> TrainingView:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Stepped):
            self._stepped(event)
        elif isinstance(event, Logged):
            self.logged = event
        elif isinstance(event, Preparing):
            self._preparing(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Validated):
            best = "" if event.best else ", no better than before"
            note(f"step {event.step:,}: {figure(event.loss, event.bits_per_byte)} on the held-out text{best}")
        elif isinstance(event, Sampled):
            console.print(sample(f"step {event.step:,} writes: ", event.prompt, event.text), soft_wrap=True)
        elif isinstance(event, Saved):
            if self.verbose:
                note(f"step {event.step:,}: saved {event.directory}")
        elif isinstance(event, Note):
            note(event.message)

    def _preparing(self, event: Preparing) -> None:
        total = None if event.done is None else 100
        if event.what != self.what:
            self._replace_task(event.what, total)
            self.what = event.what
        if self.task is not None:
            self.progress.update(self.task, total=total, completed=int(100 * (event.done or 0)))

    def _started(self, event: Started) -> None:
        self.started, self.first, self.logged = event, None, None
        note(
            f"{_short(event.parameters)} parameters, a vocabulary of {event.vocabulary:,}; "
            f"{_short(event.train_tokens)} tokens to learn from, {_short(event.val_tokens)} held out; "
            f"{event.steps:,} steps of {event.tokens_per_step:,} tokens"
        )
        self._replace_task("training", event.steps, event.step)

    def _stepped(self, event: Stepped) -> None:
        assert self.started is not None
        begin = self.started
        if self.first is None:
            self.first, self.loss = event, event.loss
        self.loss += 0.1 * (event.loss - self.loss)
        steps = event.step - self.first.step
        seconds = event.seconds - self.first.seconds
        figures = f"loss {self.loss:.3f}"
        if begin.train_bytes:
            bits = self.loss / math.log(2) * begin.train_tokens / begin.train_bytes
            figures += f" · {bits:.2f} bits/byte"
        if steps:
            left = seconds / steps * (begin.steps - event.step)
            speed = (event.tokens - self.first.tokens) / max(seconds, 1e-9)
            figures += f" · {_short(speed)} tokens/s · {_clock(left)} left"
        if self.logged is not None:
            figures += f" · gradient {self.logged.row.grad_norm:.2g}"
            if self.logged.mfu is not None:
                figures += f" · {self.logged.mfu:.0%} of peak"
        if self.task is not None:
            self.progress.update(self.task, completed=event.step, figures=figures)
        if not console.is_terminal and time.monotonic() - self.told > QUIET_SECONDS:
            self.told = time.monotonic()
            note(f"step {event.step:,}/{begin.steps:,} · {figures}")

    def _replace_task(self, description: str, total: int | None, completed: int = 0) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(description, total=total, completed=completed, figures="")


def sample(heading: str, prompt: str, text: str) -> Text:
    """Show what a model wrote, its prompt apart from its own words."""
    return Text.assemble((heading, "dim"), (prompt, "bold"), (text.rstrip(), "cyan"))


def curve(rows: list[Row], width: int = 60, height: int = 8) -> Text:
    """Draw training and validation loss against the steps in dots, eight to a character."""
    series = [
        ("cyan", [(row.step, row.train_loss) for row in rows]),
        ("yellow", [(row.step, row.val_loss) for row in rows if row.val_loss is not None]),
    ]
    losses = [loss for _, points in series for _, loss in points]
    low, high = min(losses), max(losses)
    last = max(row.step for row in rows)
    cells = [[(0, "")] * width for _ in range(height)]
    for style, points in series:
        scaled = [(step / last, (high - loss) / ((high - low) or 1.0)) for step, loss in points]
        for x, y in _line(scaled, width, height):
            row, column = y // 4, x // 2
            cells[row][column] = (cells[row][column][0] | _BRAILLE[y % 4][x % 2], style)
    text = Text()
    for index, line in enumerate(cells):
        label = f"{high:.2f}" if index == 0 else f"{low:.2f}" if index == height - 1 else ""
        text.append(f"{label:>7} ", "dim")
        for dots, style in line:
            text.append(chr(0x2800 + dots) if dots else " ", style)
        text.append("\n")
    text.append(f"{'':8}loss, nats per token, over {last:,} steps: ", "dim")
    text.append("training", "cyan")
    text.append(", ", "dim")
    text.append("held out", "yellow")
    return text


def _line(points: list[tuple[float, float]], width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the dots (column, row) of the line through `points`, whose coordinates are in 0..1 and whose x rise."""
    grid = [(min(int(x * 2 * width), 2 * width - 1), min(int(y * 4 * height), 4 * height - 1)) for x, y in points]
    for (x0, y0), (x1, y1) in zip(grid, grid[1:] or grid, strict=False):
        count = max(x1 - x0, abs(y1 - y0), 1)
        yield from ((x0 + (x1 - x0) * i // count, y0 + (y1 - y0) * i // count) for i in range(count + 1))


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
