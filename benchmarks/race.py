"""The race of architectures: the same text, the same tokenizer, the same seconds of the processor.

Every recipe of `recipes/race/` named below is trained on one thread. How many updates fit the seconds is measured first
(the processor time of a short run, the tokenizer and the reading of the text taken out), so that each schedule ends
where the seconds do. An n-gram model counts the text once and needs what it needs. The figure is bits per byte on all
of the held-out text. A masked and a sequence-to-sequence model give no probability of a whole text, so they run beside
the others on their own scores: bits per token that was hidden, and per token of what was taken out, marks of the gaps
included.

Beside the table stands why: how large the gradient of a prediction still is at the tokens before it, by distance, in
each of the trained networks (`loquela inspect gradients`). `--record` writes the table to RESULTS.md and the chart to
docs/pictures/race.png, for which a Chromium must be there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import record, recorded

RECIPES = Path(__file__).parent.parent / "recipes" / "race"
CHART = Path(__file__).parent.parent / "docs" / "pictures" / "race.png"
OWN = {
    "masked": "bits per hidden token, both sides known",
    "spans": "bits per token of the target, marks of gaps included",
}
"""Runners that predict parts of a text, and what their score is."""
RUNNERS = ("ngram", "rnn", "gru", "lstm", "gpt", *OWN)
PROBE = 30
TITLE = "The race of architectures"


def run(name: str, directory: str, **settings: Any) -> dict[str, Any]:
    """Train in a process of its own; the result of `loquela train`, and its processor seconds."""
    overrides = [f"{key}={value}" for key, value in {"output_dir": directory, **settings}.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "loquela", "train", str(RECIPES / f"{name}.yaml"), *overrides, "--json"]
    before = os.times()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(done.stdout), "cpu_seconds": cpu}


def gradients(model: Path) -> list[float]:
    """The mean norm of the gradient at each distance from 1 on, as a share of that at distance 1."""
    from loquela.checkpoint.store import load_model
    from loquela.data.batches import evaluation_blocks
    from loquela.inspection.gradients import gradient_norms

    tokens = np.fromfile(next((model / "data").glob("val*.bin")), dtype="<u2")
    inputs, _ = next(evaluation_blocks(tokens, 64, 64))
    norms = gradient_norms(load_model(model).network, inputs)
    return [norms[k] / norms[1] for k in sorted(norms)]


def draw(rows: list[dict[str, Any]]) -> None:
    """The chart: bits per byte, and the gradient by distance."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from loquela.inspection.export import export
    from loquela.inspection.theme import COLOURS, TEMPLATES

    figure = make_subplots(1, 2, subplot_titles=("bits per byte, held out (less is better)", "gradient by distance"))
    for colour, row in zip(COLOURS, (row for row in rows if row["name"] not in OWN), strict=False):
        bits = row["val_bits_per_byte"]
        figure.add_bar(
            x=[row["name"]], y=[bits], text=f"{bits:.3f}", marker_color=colour, showlegend=False, row=1, col=1
        )
        if "gradients" in row:
            norms = row["gradients"]
            line = go.Scatter(x=list(range(1, len(norms) + 1)), y=norms, name=row["name"], line={"color": colour})
            figure.add_trace(line, row=1, col=2)
    figure.update_yaxes(type="log", title="norm, as a share of that at distance 1", row=1, col=2)
    figure.update_xaxes(title="tokens back", row=1, col=2)
    figure.update_layout(template=TEMPLATES["light"], height=420, title="The race of architectures")
    export(figure, CHART)


def race(seconds: float, seed: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Train every runner for so many processor seconds."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            settings: dict[str, Any] = {"seed": seed}
            if name != "ngram":
                short = run(name, f"{directory}/{name}-1", max_steps=PROBE, warmup_steps=1, **settings)["cpu_seconds"]
                long = run(name, f"{directory}/{name}-2", max_steps=3 * PROBE, warmup_steps=1, **settings)[
                    "cpu_seconds"
                ]
                settings["max_steps"] = max(PROBE, round(seconds / ((long - short) / (2 * PROBE))))
            result = run(name, f"{directory}/{name}", **settings)
            rows.append({"name": name, "target_cpu_seconds": seconds, **result})
            score = result["val_loss"] / math.log(2) if name in OWN else result["val_bits_per_byte"]
            rows[-1]["score"] = score
            print(
                f"{name:8} {result['parameters']:>10,} parameters  {result['steps']:>6,} steps  "
                f"{result['cpu_seconds']:6.0f} s  {score:.3f} {OWN.get(name, 'bits per byte')}",
                flush=True,
            )
            if name != "ngram" and name not in OWN:
                rows[-1]["gradients"] = gradients(Path(directory) / name)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Best first; those whose score is their own come after."""
    lines = ["| model | parameters | updates | processor seconds | score | of |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["name"] in OWN, row["score"])):
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {row['steps']:,} | {row['cpu_seconds']:.0f} | "
            f"**{row['score']:.3f}** | {OWN.get(row['name'], 'bits per byte')} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for training each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(RUNNERS), help="some of the runners, by name")
    parser.add_argument("--record", action="store_true", help="write the result to RESULTS.md")
    arguments = parser.parse_args()
    started = time.time()
    rows = race(arguments.seconds, arguments.seed, tuple(arguments.only.split(",")))
    print("\n".join(table(rows)))
    if arguments.record:
        if {row["name"] for row in rows} >= {*RUNNERS} - {*OWN}:
            draw(rows)  # the chart has those that are ranked, and all of them
        kept = {k: v for k, v in recorded(TITLE).items() if k in RUNNERS}
        figures = kept | {
            row["name"]: {
                "given": f"--seconds {arguments.seconds:g} --seed {arguments.seed}",
                **{k: v for k, v in row.items() if k not in ("gradients", "sample", "model")},
            }
            for row in rows
        }
        note = (
            "Processor seconds are those of the whole command (start, tokenizer and validation included); training "
            f"alone had {arguments.seconds:.0f}. One thread; each model's seed and flags stand with its figures."
        )
        command = f"python benchmarks/race.py --seconds {arguments.seconds:g} --record"
        command += "" if arguments.only == ",".join(RUNNERS) else f" --only {arguments.only}"
        record(TITLE, command, [*table(list(figures.values())), "", note], figures)
    print(f"{time.time() - started:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
