"""PNG and SVG through a Chromium that is installed anyway: the same page, drawn without a window, offline."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go

from loquela.errors import LoquelaError, MissingExtraError, StorageError, UsageError
from loquela.inspection.html import Section, page

__all__ = ["browser", "export"]

_BROWSERS = "chromium chromium-browser google-chrome google-chrome-stable chrome msedge microsoft-edge".split()
_WIDTH = 1100
_SCALE = 2
_SAVE = """
<script>
const grab = async () => {
  const size = { width: WIDTH, height: HEIGHT, scale: SCALE };
  const url = await Plotly.toImage("figure-0", { format: "FORMAT", ...size });
  const kept = document.createElement("pre");
  kept.id = "image";
  kept.textContent = url;
  document.body.append(kept);
};
const wait = setInterval(() => { if (document.documentElement.dataset.ready) { clearInterval(wait); grab(); } }, 50);
</script>
"""


def browser() -> str | None:
    """Return the Chromium to draw with: what LOQUELA_BROWSER names, else the first on PATH; None without one."""
    named = os.environ.get("LOQUELA_BROWSER")
    return named or next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def export(figure: go.Figure, path: Path) -> None:
    """Write a figure as .png (twice 1,100 dots wide) or .svg, always light.

    Raises `MissingExtraError` without a Chromium, `UsageError` for another ending, `StorageError` for a place where
    nothing can be written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"a picture must be written as .html, .png or .svg, but is {path.name!r}")
    program = browser()
    if program is None:
        raise MissingExtraError(
            f"a .{kind} is drawn by Chromium or Chrome, but none is on the PATH: install one, name it in "
            "LOQUELA_BROWSER, or write a .html, which needs nothing"
        )
    image = _draw(program, figure, kind)
    try:
        path.write_bytes(image)
    except OSError as error:
        raise StorageError(f"the picture must be written, but {path} cannot be: {error.strerror}") from None


def _draw(program: str, figure: go.Figure, kind: str) -> bytes:
    script = _SAVE.replace("FORMAT", kind).replace("WIDTH", str(_WIDTH)).replace("SCALE", str(_SCALE))
    script = script.replace("HEIGHT", str(figure.layout.height or 420))
    still = go.Figure(figure).update_layout(updatemenus=[], sliders=[])  # nobody can press them on paper
    content = page("picture", [Section("", [still])], theme="light")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "figure.html"
        file.write_text(content.replace("</body>", script + "</body>"), encoding="utf-8")
        command = [
            program,
            "--headless",
            "--disable-gpu",
            "--enable-unsafe-swiftshader",  # 3-D without a graphics card; the page is our own
            f"--user-data-dir={directory}/profile",
            f"--window-size={_WIDTH},{(figure.layout.height or 420) + 300}",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses root otherwise
        try:
            done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LoquelaError(f"{program} must draw the picture, but it failed: {error}") from None
    found = re.search(r'<pre id="image">data:image/[^,]*,([^<]*)</pre>', done.stdout)
    if found is None:
        raise LoquelaError(f"{program} must draw the picture, but gave none: {done.stderr.strip()[-200:]}")
    return _decoded(found[1], kind)


def _decoded(text: str, kind: str) -> bytes:
    from html import unescape
    from urllib.parse import unquote

    return base64.b64decode(text) if kind == "png" else unquote(unescape(text)).encode()
