"""Figures as one HTML file that needs nothing else: Plotly is inside, and its policy lets no request out."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from loquela.inspection.theme import TEMPLATES

__all__ = ["Section", "page"]


@dataclass
class Section:
    """A heading, the figures under it, and a note, such as why there are none."""

    heading: str
    figures: Sequence[go.Figure] = field(default_factory=list)
    note: str = ""


_STYLE = """
:root { color-scheme: light; --ink: #1b1d22; --paper: #ffffff; --soft: #5b606b; --line: #d9dce3; }
:root[data-theme=dark] { color-scheme: dark; --ink: #e8eaf0; --paper: #14161b; --soft: #a4abb8; --line: #3a3f4b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header { display: flex; align-items: baseline; gap: 16px; border-bottom: 1px solid var(--line); }
header h1 { font-size: 22px; flex: 1; margin: 0 0 10px; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: 0; }
button { font: inherit; color: var(--ink); background: transparent; border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 12px; cursor: pointer; }
h2 { font-size: 19px; margin: 34px 0 4px; }
figure { margin: 12px 0 26px; }
figcaption, .note { color: var(--soft); max-width: 90ch; padding: 0 16px; }
nav a { margin-right: 14px; color: inherit; }
"""

_SCRIPT = """
const read = id => JSON.parse(document.getElementById(id).textContent);
const templates = read("templates"), figures = read("figures"), root = document.documentElement;
const config = { responsive: true, displaylogo: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["sendDataToCloud"] };
const media = matchMedia("(prefers-color-scheme: dark)");
const theme = name => {
  root.dataset.theme = name;
  figures.forEach((_, i) => Plotly.relayout("figure-" + i, { template: templates[name] }));
};
root.dataset.theme = root.dataset.theme || (media.matches ? "dark" : "light");
Promise.all(figures.map((f, i) => {
  const layout = Object.assign({}, f.layout, { template: templates[root.dataset.theme] });
  return Plotly.newPlot("figure-" + i, { data: f.data, layout, frames: f.frames || [], config });
})).then(() => { root.dataset.ready = "yes"; });
document.getElementById("theme").onclick = () => theme(root.dataset.theme === "dark" ? "light" : "dark");
media.onchange = () => theme(media.matches ? "dark" : "light");
"""


def page(title: str, sections: Iterable[Section], *, subtitle: str = "", theme: str = "") -> str:
    """Return a whole HTML document with the figures of all sections, in `theme` (light or dark), else the reader's."""
    bodies: list[str] = []
    figures: list[str] = []
    sections = list(sections)
    for number, section in enumerate(sections):
        parts = []
        for one in section.figures:
            caption = html.escape((one.layout.meta or {}).get("caption", ""))
            label = html.escape(one.layout.title.text or "", quote=True)
            drawn = f'<div id="figure-{len(figures)}" role="group" aria-label="{label}"></div>'
            parts.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>")
            figures.append(_safe(one.to_json()))
        note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
        bodies.append(
            f'<section id="s{number}"><h2>{html.escape(section.heading)}</h2>{note}{"".join(parts)}</section>'
        )
    links = "".join(f'<a href="#s{i}">{html.escape(s.heading.partition(":")[0])}</a>' for i, s in enumerate(sections))
    templates = {name: template.to_plotly_json() for name, template in TEMPLATES.items()}
    return f"""<!doctype html>
<html lang="en" data-theme="{theme}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<script>{_READS}</script>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p><button id="theme">light / dark</button></header>
{f"<nav>{links}</nav>" if len(sections) > 1 else ""}
<main>{"".join(bodies)}</main>
<script type="application/json" id="templates">{_json(templates)}</script>
<script type="application/json" id="figures">[{",".join(figures)}]</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


_READS = """
const getContext = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  return getContext.call(this, kind, kind === "2d" ? { ...options, willReadFrequently: true } : options);
};
"""
"""Plotly reads 3-D labels back from canvases; a browser that is not told so warns in its console."""
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def _json(content: Any) -> str:
    return _safe(json.dumps(content, ensure_ascii=False, default=str))


def _safe(text: str) -> str:
    """No text of a model may end the element that it stands in."""
    return text.replace("<", "\\u003c")
