"""A sheet to draw on: boxes, arrows, curves, maps of numbers, as SVG on white."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["BLUE", "GREEN", "GREY", "INK", "ORANGE", "PALE", "Sheet", "shade"]

INK, GREY, PALE = "#1b2733", "#8794a1", "#eef2f6"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def shade(value: float) -> str:
    """A colour for a number from -1 (orange) over 0 (white) to 1 (blue)."""
    strong = (0, 114, 178) if value >= 0 else (213, 94, 0)
    share = min(1.0, abs(value))
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in strong)


class Sheet:
    """An SVG that grows as one draws; y points down."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.parts = width, height, []

    def text(
        self,
        x: float,
        y: float,
        said: str,
        *,
        size: int = 13,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """Words; `y` is the base line."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(said)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        said: str = "",
        *,
        fill: str = PALE,
        line: str = GREY,
        ink: str = INK,
        size: int = 13,
    ) -> None:
        """A rounded box with words in its middle; `x`, `y` is its upper left corner."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{fill}" stroke="{line}"/>'
        )
        rows = said.split("\n")
        for i, row in enumerate(rows):
            self.text(
                x + w / 2, y + h / 2 + size * 0.36 + (i - (len(rows) - 1) / 2) * size * 1.25, row, colour=ink, size=size
            )

    def arrow(self, *points: tuple[float, float], colour: str = INK, head: bool = True, dashed: bool = False) -> None:
        """A line through points, with a head at its end."""
        line = " ".join(f"{x:g},{y:g}" for x, y in points)
        tip = ' marker-end="url(#tip)"' if head else ""
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"{tip}{dash}/>')

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A circle with a sign: where two things are joined."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="#fff" stroke="{INK}"/>')
        self.text(x, y + 5, sign, size=15)

    def curve(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        area: tuple[float, float, float, float],
        span: tuple[float, float, float, float],
        colour: str,
        width: float = 2,
    ) -> None:
        """A curve in an `area` (x, y, w, h) that shows `span` (x0, x1, y0, y1)."""
        (left, top, w, h), (x0, x1, y0, y1) = area, span
        points = [
            (left + w * (x - x0) / (x1 - x0), top + h * (1 - (y - y0) / (y1 - y0))) for x, y in zip(xs, ys, strict=True)
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'
        )

    def axes(
        self,
        area: tuple[float, float, float, float],
        span: tuple[float, float, float, float],
        x: str,
        y: str,
        ticks: Sequence[float] = (),
        y_ticks: Sequence[float] = (),
    ) -> None:
        """Axes of an area, with their names."""
        (left, top, w, h), (x0, x1, y0, y1) = area, span
        self.arrow((left, top), (left, top + h), (left + w, top + h), colour=GREY, head=False)
        self.text(left + w / 2, top + h + 34, x, size=12, colour=GREY)
        self.text(left, top - 8, y, size=12, colour=GREY, anchor="start")
        for tick in ticks:
            self.text(left + w * (tick - x0) / (x1 - x0), top + h + 16, f"{tick:g}", size=11, colour=GREY)
        for tick in y_ticks:
            self.text(
                left - 6, top + h * (1 - (tick - y0) / (y1 - y0)) + 4, f"{tick:g}", size=11, colour=GREY, anchor="end"
            )

    def map(
        self, values: Sequence[Sequence[float]], x: float, y: float, cell: float, cell_h: float | None = None
    ) -> None:
        """A map of numbers from -1 to 1, a small square each."""
        tall = cell if cell_h is None else cell_h
        self.parts.append('<g stroke="#fff" stroke-width="0.4">')
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                self.parts.append(
                    f'<rect x="{x + j * cell:g}" y="{y + i * tall:g}" width="{cell:g}" height="{tall:g}" '
                    f'fill="{shade(value)}"/>'
                )
        self.parts.append("</g>")

    def write(self, path: Path) -> None:
        """Save it."""
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
        )
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'font-family="system-ui, Helvetica, Arial, sans-serif">'
        )
        path.write_text(f'{start}{tip}<rect width="100%" height="100%" fill="#fff"/>{"".join(self.parts)}</svg>\n')
