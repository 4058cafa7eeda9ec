"""Writes the table of docs/house.md from the receipts of the models in the package; changes nothing else there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from loquela.checkpoint import house

__all__ = ["table"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "house.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table() -> str:
    """Return the rows: what each is, its size, how long it took, what was measured."""
    said = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text("utf-8"))
    lines = [
        "| name | what | parameters | on the disk | seconds | measured on text held out |",
        "|---|---|---|---|---|---|",
    ]
    for kind, place, names in (
        ("models", house.HOUSE, house.model_names()),
        ("adapters", house.ADAPTERS, house.adapter_names()),
    ):
        for name in (name for name in said[kind] if name in names):
            lines.append(_row(name, said[kind][name]["what"], place / name))
    return "\n".join(lines) + "\n"


def _row(name: str, what: str, place: Path) -> str:
    receipt: dict[str, Any] = json.loads((place / "receipt.json").read_text("utf-8"))
    parameters = receipt.get("trainable_parameters", receipt["parameters"])
    size = sum(file.stat().st_size for file in place.iterdir()) / 1e6
    figures = "; ".join(f"{key}: {value}" for key, value in receipt["figures"].items())
    return f"| `{name}` | {what} | {parameters:,} | {size:.1f} MB | {receipt['seconds']:,.0f} | {figures} |"


def main() -> int:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table() + END + after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
