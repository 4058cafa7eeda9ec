"""A picture of one model and one text: its data, its figures, files of it, and how notebooks and terminals show it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from loquela.errors import LoquelaError, StorageError, UsageError
from loquela.inspection.export import export
from loquela.inspection.html import Section, page
from loquela.inspection.picture import PICTURES, Data, Picture
from loquela.inspection.reading import Inspected, model_name

__all__ = ["Shown", "inspect", "report", "write_text"]


@dataclass
class Shown:
    """What `loquela.inspect.NAME(model, text)` returns. `data` is plain; in a notebook it displays itself."""

    picture: Picture
    data: Data
    subtitle: str = ""

    def figure(self, view: str | None = None) -> go.Figure:
        """Return one view as a plotly figure, unless named the first."""
        return self.picture.figure(self.data, view)

    def figures(self) -> dict[str, go.Figure]:
        """Return every view that has something to show, by name."""
        return self.picture.figures(self.data)

    def html(self, view: str | None = None) -> str:
        """Return an offline HTML document of all views, or of one."""
        return page(self.picture.title, [self._section(view)], subtitle=self.subtitle)

    def save(self, path: str | Path, view: str | None = None) -> None:
        """Write a .html, .png or .svg; the latter two hold one view and need a Chromium. May raise `StorageError`."""
        path = Path(path)
        if path.suffix == ".html":
            write_text(path, self.html(view))
        else:
            export(self.figure(view), path)

    def _section(self, view: str | None) -> Section:
        figures = list(self.figures().values()) if view is None else [self.figure(view)]
        return Section(self.picture.name, figures, _missing(self.data))

    def __rich__(self) -> Any:
        return self.picture.terminal(self.data)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        figures = self.figures()
        height = 260 + sum((one.layout.height or 420) + 70 for one in figures.values())
        frame = f'<iframe srcdoc="{html.escape(self.html())}" style="width:100%;height:{height}px;border:0"></iframe>'
        return {"text/html": frame, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Shown({self.picture.name!r}: {', '.join(self.data)})"


class Inspect:
    """Pictures as functions: `inspect.attention(model, "text", layer=3)`, or `inspect("attention", model, "text")`."""

    def __call__(self, name: str, model: Inspected | None = None, text: Any = None, **options: Any) -> Shown:
        """Draw the picture `name`; raises `UsageError`, and `UnavailableError` where this model cannot show it."""
        picture = PICTURES[name]
        subtitle = model_name(model) if model is not None and "model" in picture.takes else ""
        return Shown(picture, picture.data(model, text, **options), subtitle)

    def __getattr__(self, name: str) -> Any:
        if name not in PICTURES:
            raise AttributeError(f"there is no picture {name!r}: there are {', '.join(PICTURES)}")

        def draw(*given: Any, **options: Any) -> Shown:
            takes = PICTURES[name].takes
            if len(given) > len(takes):
                raise UsageError(f"{name} takes {' and '.join(takes)}, but {len(given)} are given")
            named = {"model": given[takes.index("model")]} if "model" in takes[: len(given)] else {}
            if len(given) > len(named):
                named["text"] = given[-1]
            return self(name, **named, **options)

        draw.__name__, draw.__doc__ = name, PICTURES[name].title
        return draw

    def __dir__(self) -> list[str]:
        return list(PICTURES)


inspect = Inspect()
"""Draw pictures; `loquela.inspect` is this."""


def report(title: str, asked: Iterable[tuple[Picture, Any]], model: Inspected | None) -> str:
    """Return one HTML document of several pictures; `asked` pairs each with a function that makes its data.

    What cannot be shown is said in its place.
    """
    return page(title, _sections(asked), subtitle=model_name(model) if model else "")


def _sections(asked: Iterable[tuple[Picture, Any]]) -> Iterator[Section]:
    for picture, make in asked:
        heading = f"{picture.name}: {picture.title[0].lower()}{picture.title[1:]}"
        try:
            data = make()
        except LoquelaError as error:
            yield Section(heading, note=str(error))
        else:
            yield Section(heading, list(picture.figures(data).values()), _missing(data))


def _missing(data: Data) -> str:
    return " ".join(f"{key.replace('_', ' ')}: unavailable, {why}." for key, why in data.get("unavailable", {}).items())


def write_text(path: Path, content: str) -> None:
    """Write a file; raises `StorageError`."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the picture must be written, but {path} cannot be: {error.strerror}") from None
