"""What machine the figures come from, and how a result is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "RESULTS.md"


def machine() -> str:
    """One line: processor, cores, memory, system, libraries."""
    import torch

    processor, flags = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        processor = fields.get("model name", processor)
        flags = " ".join(
            f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{processor} ({flags}), {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def asked() -> str:
    """The command that runs, with `DIR` for each path: a record names no place."""
    words = ["DIR" if "/" in word else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def spread(values: Sequence[float]) -> str:
    """Median (smallest to largest) of repeated measurements."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def _section(title: str) -> str:
    text = RESULTS.read_text() if RESULTS.exists() else ""
    return next((s for s in text.split("\n## ") if s.startswith(f"{title}\n")), "")


def _here(title: str) -> str:
    """The title of this processor's section: where another's has the plain one, its own stands beside that."""
    processor, held = machine().split(",")[0], _section(title)
    return title if not held or processor in held.splitlines()[2] else f"{title}, {processor}"


def recorded(title: str) -> dict[str, Any]:
    """Return the figures of the section with this title, on this processor; empty where there is none."""
    section = _section(_here(title))
    found = section.partition("```json\n")[2].partition("\n```")[0]
    return json.loads(found) if found else {}


def more_rounds(title: str, piece: str, given: dict[str, Any], found: dict[str, list[Any]]) -> dict[str, Any]:
    """Return a section's figures and those of a piece: beside earlier rounds of the same flags, else alone."""
    figures = {name: part for name, part in recorded(title).items() if isinstance(part, dict) and "given" in part}
    before = figures.get(piece, {})
    earlier = before["rounds"] if before.get("given") == given else {}
    return {**figures, piece: {"given": given, "rounds": {n: [*earlier.get(n, []), *v] for n, v in found.items()}}}


def record(title: str, command: str, lines: Sequence[str], result: dict[str, object]) -> None:
    """Put a section into RESULTS.md, in the place of the one with the same title and processor."""
    title = _here(title)
    body = [f"## {title}", "", f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine()}", "", *lines, ""]
    body += ["<details><summary>all figures</summary>", "", "```json", json.dumps(result), "```", "", "</details>", ""]
    text = (
        RESULTS.read_text() if RESULTS.exists() else "# Measured results\n\nEach section is written by its command.\n\n"
    )
    sections = text.split("\n## ")
    kept = [sections[0], *(s for s in sections[1:] if not s.startswith(f"{title}\n"))]
    RESULTS.write_text("\n## ".join(kept).rstrip() + "\n\n" + "\n".join(body))
