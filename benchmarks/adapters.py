"""What adapters cost: a base in few bits, and rows of one batch that each wear their own.

- bits: LoRA (r 16, every linear layer) on a LLaMA shape of 110 million parameters, 4 x 256 tokens, with the base in
  float32, 8 and 4 bits: memory that the base takes, peak memory of the process, seconds per update.
- rows: one token for each of 16 rows through a cache of 64 positions: worn by none, one LoRA by all, eight LoRA by two
  rows each in one batch, and the same eight one after the other, as without mixing. Milliseconds per step.

Each variant of `bits` runs in a process of its own; rounds alternate, the first update or step is not timed. glibc is
told to give freed memory back (MALLOC_MMAP_THRESHOLD_): else what was free before the first update hides what is held.
Each figure is printed as it comes. A part of one round is a piece of less than three minutes on two quiet cores, and
`--widths 4` or fewer `--steps` make smaller ones; with `--record`, figures go to those of earlier pieces:

    python benchmarks/adapters.py --parts bits --widths 32 --record
    python benchmarks/adapters.py --parts rows --steps 10 --record
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from machine import more_rounds, record, recorded, spread

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
}
BITS = (32, 8, 4)
TITLE = "Adapters: a base in few bits, rows that wear their own"
ROWS, ADAPTERS, HELD = 16, 8, 64


def network() -> Any:
    from loquela.models.base import architecture, config_from_dict

    torch.manual_seed(0)
    made = architecture("llama").NETWORK(config_from_dict(SHAPE))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    return made


def lora(base: Any, name: str) -> None:
    from loquela import peft

    peft.attach(base, peft.config_for("lora", r=16, lora_alpha=32, target_modules="all-linear"), name)
    with torch.no_grad():
        for parameter in peft.trainable(base, name).values():
            parameter += 0.01


def bits(width: int, updates: int) -> dict[str, float]:
    """Train a few updates; returns bytes of the base, peak bytes of the process, seconds per update."""
    from loquela import peft

    base = network()
    if width < 32:
        peft.quantize_base(base, width)
    held = sum(t.numel() * t.element_size() for t in (*base.parameters(), *base.buffers()))
    lora(base, "a")
    optimizer = torch.optim.AdamW(peft.train_only(base, "a").values(), 1e-4, fused=True)
    ids = torch.randint(0, SHAPE["vocab_size"], (4, 257))
    seconds = []
    with peft.wearing(base.train(), "a"):
        for _ in range(updates + 1):
            began = time.perf_counter()
            hidden = base.hidden(ids[:, :-1]).flatten(0, 1)
            detached = hidden.detach().requires_grad_()
            for rows, labels in zip(detached.split(256), ids[:, 1:].flatten().split(256), strict=True):
                torch.nn.functional.cross_entropy(base.head(rows), labels).backward()  # the logits in pieces
            hidden.backward(detached.grad)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"base_bytes": held, "peak_memory_bytes": peak, "seconds": statistics.median(seconds[1:])}


def said(message: str) -> None:
    """Tell how far it has come."""
    print(message, file=sys.stderr, flush=True)


def rows(rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per step of each way to serve sixteen rows, in alternating rounds."""
    from loquela import peft

    base = network().eval()
    for number in range(ADAPTERS):
        lora(base, str(number))
    mixed = [str(row % ADAPTERS) for row in range(ROWS)]
    ways: dict[str, list[Any]] = {
        "none": [(None, slice(None))],
        "one adapter": [("0", slice(None))],
        "eight adapters, one batch": [(mixed, slice(None))],
        "eight adapters, one by one": [(str(n), slice(n, None, ADAPTERS)) for n in range(ADAPTERS)],
    }
    prompt, token = torch.randint(3, 32000, (ROWS, HELD)), torch.randint(3, 32000, (ROWS, 1))
    caches = {way: [base.new_cache() for _ in calls] for way, calls in ways.items()}
    found: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for way, calls in ways.items():
            for (names, part), cache in zip(calls, caches[way], strict=True):
                with peft.wearing(base, names):
                    base.hidden(prompt[part], cache=cache)
            said(f"rows: {way}: {HELD} positions are read")
        for number in range(rounds + 1):
            for way, calls in ways.items():
                began = time.perf_counter()
                for (names, part), cache in zip(calls, caches[way], strict=True):
                    with peft.wearing(base, names):
                        base.head(base.hidden(token[part], cache=cache)[:, -1])
                    cache.truncate(HELD)
                if number:
                    found[way].append(1000 * (time.perf_counter() - began))
                    said(f"rows: step {number} of {rounds}: {way}: {found[way][-1]:.0f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="bits,rows", help="each a piece of less than three minutes")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of `bits`")
    parser.add_argument("--steps", type=int, default=10, help="of `rows`, in turn by each way")
    parser.add_argument("--widths", default=",".join(map(str, BITS)), help="bits of the bases of `bits`")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write RESULTS.md, beside earlier rounds")
    parser.add_argument("--variant", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(bits(given.variant, given.updates)))
        return
    for part in given.parts.split(","):
        found: dict[str, list[Any]] = widths(given) if part == "bits" else rows(given.steps)
        flags = {"updates": given.updates} if part == "bits" else {"rows": ROWS, "held": HELD}
        flags["threads"] = torch.get_num_threads()
        print("\n".join(table({part: {"given": flags, "rounds": found}})))
        if given.record:
            before = recorded(TITLE).get(part, {})
            others = before["rounds"] if before.get("given") == flags else {}  # widths that this piece leaves out
            figures = more_rounds(TITLE, part, flags, found)
            figures[part]["rounds"] = others | figures[part]["rounds"]
            command = "python benchmarks/adapters.py --parts PART --widths WIDTHS --steps STEPS --record"
            record(TITLE, command, table(figures), figures)


def widths(given: argparse.Namespace) -> dict[str, list[Any]]:
    """Tune a base of each width, each time in a process of its own."""
    chosen = [int(width) for width in given.widths.split(",")]
    found: dict[str, list[Any]] = {str(width): [] for width in chosen}
    for number in range(given.rounds):
        for width in chosen[:: -1 if number % 2 else 1]:
            command = [sys.executable, __file__, "--variant", str(width), "--updates", str(given.updates)]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found[str(width)].append(json.loads(done.stdout))
            said(f"bits: round {number + 1} of {given.rounds}: {width} bits: {found[str(width)][-1]}")
    return found


def table(figures: dict[str, Any]) -> list[str]:
    """The tables of the parts that were measured."""
    lines: list[str] = []
    if "bits" in figures:
        lines += ["| base | bytes of the base | peak memory | s per update |", "|---|---|---|---|"]
        for width, found in figures["bits"]["rounds"].items():
            peak = spread([run["peak_memory_bytes"] / 1e9 for run in found])
            seconds = spread([run["seconds"] for run in found])
            lines.append(f"| {width} bits | {found[0]['base_bytes'] / 1e6:.0f} MB | {peak} GB | {seconds} |")
    if "rows" in figures:
        lines += ["", "| 16 rows wear | ms per token and batch |", "|---|---|"]
        lines += [f"| {way} | {spread(times)} |" for way, times in figures["rows"]["rounds"].items()]
    for part, piece in figures.items():
        count = len(next(iter(piece["rounds"].values())))
        flags = ", ".join(f"{key} {value}" for key, value in piece["given"].items())
        lines += ["", f"{part}: {count} rounds; {flags}."]
    return lines


if __name__ == "__main__":
    main()
