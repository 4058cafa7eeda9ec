"""Tokens per second of the compiled decoder beside three libraries: same weights, same threads, in turn.

Random weights in LLaMA shapes of 15 million, 110 million and 1.1 billion parameters are written to a temporary
directory, for llama.cpp and CTranslate2 in their own forms, rounded by their own functions. Every library lives in a
process of its own (`loquela.cli.rivals`) and works while the others wait; in every round each does each task once, and
the figures are medians over the rounds. A ratio is of two medians. Measured beside them: how fast this machine reads
memory, all threads, huge pages; the share of it that a decoder's weights use is its speed against the limit.

A run may be a piece of the whole: some sizes, widths, peers, tasks. A ratio is then of the run that measured the peer
last, and what other pieces found stays in the record. `--models DIR` keeps what was written for the next piece.

    python benchmarks/decode.py [--sizes 15M 110M 1.1B] [--widths …] [--peers …] [--tasks …] [--rounds 5] [--no-record]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from loquela.checkpoint.store import save_model
from loquela.cli.bench import peer_of
from loquela.cli.racing import Racer, race
from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.decoder import default_threads
from loquela.engine.memory import address, aligned
from loquela.errors import LoquelaError
from loquela.models.base import Network, config_from_dict
from loquela.models.llama import NETWORK
from machine import asked, record, recorded, spread

SHAPES = {
    "15M": (288, 6, 6, 6, 768),
    "110M": (768, 12, 12, 12, 2048),
    "1.1B": (2048, 22, 32, 4, 5632),
}
WIDTHS: dict[str, str | None] = {"float32": None, "int8": "int8", "int4": "int4"}
PEERS = {"llama.cpp": "llama.cpp", "CTranslate2": "CTranslate2", "transformers": "transformers float32"}
PROMPT, NEW, SHORT, LONG = 512, 64, 16, 2048
TASKS = {"prefill": (1, PROMPT), "one": (1, SHORT), "eight": (8, SHORT), "long": (1, LONG)}
"""What can be measured, beside starting and memory: texts and tokens that each has read."""
Found = dict[str, dict[str, dict[str, Any]]]
"""Figure → peer → what one run measured of both: `own`, `theirs` (or why it `failed`), the `limit` in bytes/s, the
`command`."""


def network(size: str) -> Network:
    """A LLaMA of this shape with random weights."""
    dim, layers, heads, kv_heads, hidden = SHAPES[size]
    config = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": size != "1.1B",
    }  # fmt: skip
    torch.manual_seed(0)
    made: Network = NETWORK(config_from_dict(config))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.03)
    return made


@jit
def _read(start, size):  # type: ignore[no-untyped-def]
    a = b = c = d = v.splat(v.get_f32(start))
    for i in range(start, start + size, 256):
        a, b = v.add(a, v.load(i)), v.add(b, v.load(i + 64))
        c, d = v.add(c, v.load(i + 128)), v.add(d, v.load(i + 192))
    return v.sum_lanes(v.add(v.add(a, b), v.add(c, d)))


def bandwidth(threads: int) -> float:
    """Bytes per second that all threads together read from huge pages: the best of ten, since it is a limit."""
    size = 512 << 20
    block = aligned(size)
    block[:] = 1
    best = 0.0
    for _ in range(10):
        part = size // threads // 256 * 256
        crew = [threading.Thread(target=_read, args=(address(block) + i * part, part)) for i in range(threads)]
        start = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        best = max(best, part * threads / (time.perf_counter() - start))
    return best


def read_per_token(size: str, width: str) -> int:
    """Bytes of matrices that a token reads, as this width keeps them."""
    dim, layers, heads, kv_heads, hidden = SHAPES[size]
    body = layers * (2 * dim * dim + 2 * dim * (dim // heads) * kv_heads + 3 * dim * hidden)
    bits = {"float32": (32, 32), "int8": (8.5, 8.5), "int4": (4.5, 4.5)}[width]
    return int((body * bits[0] + 32000 * dim * bits[1]) / 8)


def write(size: str, target: Path) -> None:
    """Write a model with random weights; in a process of its own, whose memory is given back."""
    save_model(network(size), None, target)


def form(kind: str, model: Path, place: Path, width: str | None, options: dict[str, Any]) -> None:
    """Write a model in a peer's form, and beside it how it is to be opened."""
    place.mkdir()
    path, given = peer_of(kind, model, place, width, options)
    (place / "opened.json").write_text(json.dumps([path, given]))


def apart(work: Any, *arguments: Any) -> None:
    """Do some work in another process."""
    process = get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} {arguments} failed")


def entries(
    size: str, width: str, place: Path, given: argparse.Namespace
) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Who takes part: name, kind, model, options."""
    model = place / size
    if not model.exists():
        apart(write, size, model)
    options: dict[str, Any] = {"threads": given.threads}
    ours = options | {"quantize": WIDTHS[width], "engine": "compiled"}
    found: list[tuple[str, str, str, dict[str, Any]]] = []
    if set(given.tasks) != {"long"}:
        found.append(("loquela", "loquela", str(model), ours))
    if "long" in given.tasks:
        found.append((LONG_CACHE, "loquela", str(model), ours | {"cache_dtype": "float16"}))
    for kind in given.peers:
        if kind == "CTranslate2" and width == "int4":  # it has no such width
            continue
        made = place / f"{size} {'any' if kind == 'transformers' else width} {kind}"
        if not (made / "opened.json").exists():
            shutil.rmtree(made, ignore_errors=True)
            apart(form, kind, model, made, WIDTHS[width], options)
        path, how = json.loads((made / "opened.json").read_text())
        found.append((PEERS[kind], kind, path, how | options))
    return found


LONG_CACHE = "loquela f16 cache"
"""At a long context ours is the one with llama.cpp's kind of cache, float16."""


def measure(size: str, width: str, place: Path, given: argparse.Namespace, limit: float) -> Found:
    """Every figure of every library, tokens per second, round by round; of one that breaks off, why (`failed`)."""
    taking, rounds = entries(size, width, place, given), given.rounds
    started: dict[str, list[float]] = {entry[0]: [] for entry in taking}
    failed: dict[str, str] = {}
    for number in range(rounds + 1 if given.start else 0):
        for racer in entered(taking, failed):  # one at a time
            racer.close()
            started[racer.name] += [racer.started] if number else []  # the first may have to compile
    racers = [*entered(taking, failed)]
    for task in given.tasks:
        batch, context = TASKS[task]
        here = [racer for racer in racers if racer.name != ("loquela" if task == "long" else LONG_CACHE)]
        if task == "prefill":
            race(here, rounds, {f"prefill {PROMPT}": ("prefill", {"count": PROMPT}, PROMPT)})
            continue
        for racer in here:
            racer.tries("prepare", batch=batch, context=context, new=given.new)
        race(here, rounds, {f"decode {batch} x {context}": ("decode", {"new": given.new}, given.new * batch)})
    figures: dict[str, dict[str, list[float]]] = {}
    for racer in racers:
        both, memory = dict(racer.figures), racer.tries("memory")
        both |= {} if memory is None else {"memory, MiB": [memory / 2**20]}
        both |= {"first token, seconds": started[racer.name]} if given.start else {}
        racer.close()
        for what, values in both.items():
            name = "loquela" if racer.name == LONG_CACHE else racer.name
            figures.setdefault(what, {}).setdefault(name, values)
    failed |= {racer.name: racer.failed for racer in racers if racer.failed}
    run = {"limit": limit, "command": asked()}
    found: Found = {}
    for what, by in figures.items():
        if own := by.pop("loquela", None):
            out = {peer: {"own": own, "failed": why, **run} for peer, why in failed.items() if peer not in by}
            them = {peer: {"own": own, "theirs": theirs, **run} for peer, theirs in by.items()}
            found[what] = them | out or {"": {"own": own, **run}}
    return found


def entered(taking: list[tuple[str, str, str, dict[str, Any]]], failed: dict[str, str]) -> Iterator[Racer]:
    """Who is ready to go, one after the other; why a peer is not is written to `failed`, and it is not tried again."""
    for entry in taking:
        try:
            if entry[0] not in failed:
                yield Racer(*entry)
        except LoquelaError as error:
            if entry[1] == "loquela":
                raise
            failed[entry[0]] = str(error)
            print(f"{entry[0]} is not measured: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--no-start", dest="start", action="store_false", help="do not measure how they start")
    parser.add_argument("--new", type=int, default=NEW, help="tokens that are written for one figure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--models", type=Path, help="where models are written and kept; else they are made anew")
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    limit = bandwidth(given.threads)
    held: dict[str, Found] = {name: figures for name, figures in recorded("Decoding").items() if name in KEYS}
    print(*HEAD, sep="\n")
    with nullcontext(given.models) if given.models else tempfile.TemporaryDirectory() as place:
        for size in given.sizes:
            for width in given.widths:
                Path(place).mkdir(parents=True, exist_ok=True)
                found = measure(size, width, Path(place), given, limit)
                for what, by in found.items():
                    held.setdefault(f"{size} {width}", {}).setdefault(what, {}).update(by)
                    print(row(size, width, what, by), flush=True)
                if not given.no_record:
                    record("Decoding", asked(), table(held, given.threads), dict(held))


KEYS = [f"{size} {width}" for size in SHAPES for width in WIDTHS]
HEAD = [
    f"| shape | width | figure | loquela | {' | ratio | '.join(PEERS.values())} | ratio | share of the limit |",
    "|---|---|---|---|" + "---|---|" * len(PEERS) + "---|",
]


def table(held: dict[str, Found], threads: int) -> list[str]:
    """All pieces, by size and width."""
    runs = [run for found in held.values() for by in found.values() for run in by.values()]
    commands = dict.fromkeys(run["command"] for run in runs)
    limits = [run["limit"] / 1e9 for run in runs]
    return [
        f"{threads} threads, medians (smallest to largest) of the rounds in tokens/s; memory read {min(limits):.1f} to "
        f"{max(limits):.1f} GB/s. `decode 8 x 16`: eight requests after 16 tokens, together. A ratio is of one run, "
        "in turn; our figure is that of the run with the peer named first. Pieces: "
        + "; ".join(f"`{command}`" for command in commands),
        "",
        *HEAD,
        *(row(*key.split(), what, by) for key in KEYS for what, by in held.get(key, {}).items()),
    ]


def row(size: str, width: str, what: str, by: dict[str, dict[str, Any]]) -> str:
    """One line of the table."""
    first = next(by[name] for name in [*PEERS.values(), ""] if name in by)
    share = ""
    if what == f"decode 1 x {SHORT}":
        share = f"{statistics.median(first['own']) * read_per_token(size, width) / first['limit']:.0%}"
    cells = []
    for name in PEERS.values():
        run = by.get(name)
        if run is None:
            cells.append(" | ")
        elif "failed" in run:
            cells.append(f"{run['failed']} | ")
        else:
            ratio = statistics.median(run["own"]) / statistics.median(run["theirs"])
            cells.append(f"{spread(run['theirs'])} | {ratio:.2f}")
    return f"| {size} | {width} | {what} | {spread(first['own'])} | {' | '.join(cells)} | {share} |"


if __name__ == "__main__":
    main()
