"""`loquela size X --plan`: what training would take, as tables."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loquela.checkpoint.plan import Plan

__all__ = ["number", "parameters_meant", "show_plan"]

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def number(text: str) -> int:
    """Read 300e9, 300B, 1.4T; raises `UsageError`."""
    from loquela.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\d+)?)([KMBGT]?)", text.strip(), re.IGNORECASE)
    value = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1 <= value <= 1e18:
        raise UsageError(f"a number of tokens must be like 300B, 1.4T or 3e11, but is {text!r}")
    return int(value)


def parameters_meant(name: str) -> float | None:
    """Return the parameters that a name such as 7B or 1.5T means, None for any other name."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MBT])", name, re.IGNORECASE)
    return float(match[1]) * _UNITS[match[2].upper()] if match else None


def show_plan(plan: Plan) -> None:
    """Print the plan on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("", style="dim")
    table.add_column("", justify="right")
    for name, value in _rows(plan):
        table.add_row(name, value)
    Console(file=sys.stdout, highlight=False).print(table)


def _rows(plan: Plan) -> list[tuple[str, Any]]:
    memory = plan.memory_bytes
    split = f", matrices over {plan.tensor_parallel}" if plan.tensor_parallel > 1 else ""
    least = "more than any number has" if plan.least_devices is None else f"{plan.least_devices:,} would do"
    fits = f"fits ({least})" if plan.fits else f"does not fit ({least})"
    return [
        ("parameters", _si(plan.parameters)),
        ("tokens to learn from", _si(plan.tokens)),
        ("operations", f"{plan.operations:.3g}"),
        ("devices", f"{plan.devices:,} × {plan.hardware}{split}"),
        ("memory of each", f"{_si(memory['total'])}B of {_si(memory['available'])}B: {fits}"),
        ("  weights, gradients, optimizer", f"{_si(memory['state'])}B"),
        ("  gathered layers", f"{_si(memory['gathered'])}B"),
        ("  activations", f"{_si(memory['activations'])}B"),
        ("tokens in an update, at least", f"{plan.tokens_per_step:,}"),
        (f"tokens a second at {plan.mfu:.0%} of the peak", _si(plan.tokens_per_second)),
        ("time", _duration(plan.days)),
        ("energy", f"{plan.megawatt_hours:,.3g} MWh"),
    ]


def _duration(days: float) -> str:
    if days >= 730:
        return f"{days / 365.25:,.3g} years"
    if days >= 1:
        return f"{days:,.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 1440:.1f} minutes"


def _si(value: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.3g} {letter}"
    return f"{value:,.3g} "
