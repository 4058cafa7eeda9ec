"""One page about a run, for whoever must judge it: curves, samples, data, recipe, environment, hashes. No network."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loquela.training.curve import chart, loss_chart, page, write_page
from loquela.training.log import Row

__all__ = ["write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2330; background: #f6f7f9; margin: 0 }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
.lead { color: #5a6375; margin: .25rem 0 1.5rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem }
.figure, .panel { background: #fff; border: 1px solid #e1e5ec; border-radius: .6rem; padding: .8rem 1rem }
.figure b { display: block; font-size: 1.35rem; font-weight: 600 } .figure span { color: #5a6375; font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: .75rem }
.panel { padding: .4rem; overflow: hidden; min-width: 0 } .wide { grid-column: 1 / -1 }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid #e1e5ec }
td { border-top: 1px solid #eef0f4; padding: .35rem .8rem; vertical-align: top; overflow-wrap: anywhere }
td:first-child { color: #5a6375; white-space: nowrap; width: 14rem }
pre { background: #fff; border: 1px solid #e1e5ec; border-radius: .6rem; padding: .9rem 1rem; overflow-x: auto;
  font-size: .85rem; white-space: pre-wrap; margin: .5rem 0 } pre i { color: #5a6375; font-style: normal }
@media print { body { background: #fff } main { max-width: none } .panel, .figure { break-inside: avoid } }
"""


def write_report(
    file: Path,
    name: str,
    rows: Sequence[Row],
    timing: Path,
    samples: Sequence[Mapping[str, Any]],
    receipt: Mapping[str, Any],
) -> None:
    """Write the page; `timing` is timing.csv, `samples` have `step`, `prompt` and `text`. Raises `StorageError`."""
    body = "".join(_body(name, rows, _speeds(timing), samples, receipt))
    write_page(file, page(name, f"<main>{body}</main>", _STYLE))


def _body(
    name: str,
    rows: Sequence[Row],
    speeds: Sequence[tuple[float, float, float | None]],
    samples: Sequence[Mapping[str, Any]],
    receipt: Mapping[str, Any],
) -> Iterable[str]:
    result, data, environment = receipt["result"], receipt["data"], receipt["environment"]
    made = receipt["made_by"]
    model = receipt["recipe"].get("model")
    kind = model.get("model_type", "") if isinstance(model, dict) else "continued from a model"
    yield f"<h1>{html.escape(name)}</h1><p class=lead>{html.escape(str(kind))}, trained with Loquela "
    yield f"{html.escape(made['loquela'])} on {html.escape(', '.join(data['files']))}</p>"
    yield "<div class=figures>"
    for value, what in _key_figures(result, receipt):
        yield f"<div class=figure><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>"
    yield "</div><h2>Curves</h2><div class=charts>"
    yield from _charts(rows, speeds)
    yield "</div>"
    if samples:
        yield "<h2>What it wrote</h2>"
    for sample in samples:
        yield f"<pre><i>step {sample['step']:,}: {html.escape(sample['prompt'])}</i>{html.escape(sample['text'])}</pre>"
    yield "<h2>Data</h2>"
    yield _table(
        [
            ("files", ", ".join(data["files"])),
            ("SHA-256", ", ".join(data["sha256"])),
            ("tokens to learn from", f"{data['train_tokens']:,}"),
            ("tokens held out", f"{data['validation_tokens']:,}"),
            ("tokenizer", data["tokenizer_sha256"]),
            ("tokens seen", f"{receipt['tokens']:,}"),
        ]
    )
    yield f"<h2>Recipe</h2><pre>{html.escape(yaml.safe_dump(receipt['recipe'], sort_keys=False, allow_unicode=True))}"
    yield "</pre><h2>Cost</h2>"
    energy = receipt["energy"]
    yield _table(
        [
            ("time", f"{receipt['seconds']:,.0f} s in {receipt['processes']} process(es)"),
            ("operations", f"{receipt['operations']:.3g}"),
            ("energy, estimated", f"{_short(1000 * energy['kilowatt_hours'])} Wh = {energy['formula']}"),
            ("watts per process", f"{energy['watts_per_process']:g}"),
        ]
    )
    yield "<h2>Environment and hashes</h2>"
    products = ("products in", receipt["precision"]["products"])
    seed, code = ("seed", receipt["seeds"]["seed"]), ("code SHA-256", made["code_sha256"])
    yield _table([*environment.items(), products, seed, code])


def _key_figures(result: Mapping[str, Any], receipt: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if result["val_bits_per_byte"] is not None:
        yield f"{result['val_bits_per_byte']:.3f}", "bits per byte, held out"
    yield f"{result['val_loss']:.3f}", f"nats per token over {result['val_tokens']:,} held-out tokens"
    yield _short(receipt["parameters"]), "parameters"
    yield _short(receipt["tokens"]), f"tokens in {receipt['steps']:,} steps"
    yield f"{receipt['seconds']:,.0f} s", f"{_short(result['tokens_per_second'])} tokens per second"


def _charts(rows: Sequence[Row], speeds: Sequence[tuple[float, float, float | None]]) -> Iterable[str]:
    steps = [row.step for row in rows]
    yield _panel(loss_chart(rows, "loss", height=360), wide=True)
    yield _panel(chart("norm of the gradient", {"": (steps, [r.grad_norm for r in rows])}, log=True))
    yield _panel(chart("learning rate", {"": (steps, [r.learning_rate for r in rows])}, from_zero=True))
    speed = [s for s, _, _ in speeds], [tokens for _, tokens, _ in speeds]
    yield _panel(chart("tokens per second", {"": speed}, from_zero=True))
    used = [(step, mfu) for step, _, mfu in speeds if mfu is not None]
    if used:
        share = [step for step, _ in used], [mfu for _, mfu in used]
        yield _panel(chart("share of the hardware's peak that was used (MFU)", {"": share}, from_zero=True))


def _panel(inner: str, *, wide: bool = False) -> str:
    return f'<div class="panel{" wide" if wide else ""}">{inner}</div>'


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"


def _speeds(timing: Path) -> list[tuple[float, float, float | None]]:
    """Step, tokens per second, and MFU of each whole row of timing.csv."""
    found: list[tuple[float, float, float | None]] = []
    if timing.exists():
        for row in csv.DictReader(timing.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                mfu = float(row["mfu"]) if row.get("mfu") else None
                found.append((float(row["step"]), float(row["tokens_per_second"]), mfu))
            except (TypeError, ValueError):  # a line that a kill has cut
                continue
    return found


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
