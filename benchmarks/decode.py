"""Tokens per second of the compiled decoder beside three libraries: same weights, same threads, in turn.

Random weights in LLaMA shapes of 15 million, 110 million and 1.1 billion parameters are written to a temporary
directory, for llama.cpp and CTranslate2 in their own forms, rounded by their own functions. Every library lives in a
process of its own (`loquela.cli.rivals`) and works while the others wait; in every round each does each task once, and
the figures are medians over the rounds. A ratio is of two medians. Measured beside them: how fast this machine reads
memory, all threads, huge pages; the share of it that a decoder's weights use is its speed against the limit.

    python benchmarks/decode.py [--sizes 15M 110M 1.1B] [--rounds 5] [--no-record]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
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
from loquela.models.base import Network, config_from_dict
from loquela.models.llama import NETWORK
from machine import record, spread

SHAPES = {
    "15M": (288, 6, 6, 6, 768),
    "110M": (768, 12, 12, 12, 2048),
    "1.1B": (2048, 22, 32, 4, 5632),
}
WIDTHS: dict[str, str | None] = {"float32": None, "int8": "int8", "int4": "int4"}
PEERS = ("llama.cpp", "CTranslate2", "transformers float32")
PROMPT, NEW, SHORT, LONG = 512, 64, 16, 2048


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


def measure(size: str, width: str, place: Path, rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Every figure of every library, tokens per second, round by round."""
    model = place / size
    if not model.exists():
        save_model(network(size), None, model)
    options: dict[str, Any] = {"threads": threads}
    ours = options | {"quantize": WIDTHS[width], "engine": "compiled"}
    entries: list[tuple[str, str, str, dict[str, Any]]] = [("loquela", "loquela", str(model), ours)]
    entries.append(("loquela f16 cache", "loquela", str(model), ours | {"cache_dtype": "float16"}))
    for name in PEERS:
        kind = name.split()[0]
        if not (kind == "CTranslate2" and width == "int4"):  # it has no such width
            entries.append((name, kind, *peer_of(kind, model, place, WIDTHS[width], options)))
    started: dict[str, list[float]] = {entry[0]: [] for entry in entries}
    for number in range(rounds + 1):
        for entry in entries:
            racer = Racer(*entry)
            racer.close()
            started[entry[0]] += [racer.started] if number else []  # the first may have to compile
    racers = [Racer(*entry) for entry in entries]
    race(racers, rounds, {f"prefill {PROMPT}": ("prefill", {"count": PROMPT}, PROMPT)})
    for batch, context in ((1, SHORT), (8, SHORT), (1, LONG)):
        for racer in racers:
            racer.ask("prepare", batch=batch, context=context, new=NEW)
        race(racers, rounds, {f"decode {batch} x {context}": ("decode", {"new": NEW}, NEW * batch)})
    for racer in racers:
        racer.figures["first token, seconds"] = started[racer.name]
        racer.figures["memory, MiB"] = [racer.ask("memory") / 2**20]
        racer.close()
    for file in place.glob("*.gguf"):
        file.unlink()
    for written in place.glob("ctranslate2-*"):
        shutil.rmtree(written)
    return {racer.name: racer.figures for racer in racers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    limit = bandwidth(given.threads)
    lines = [
        f"{given.threads} threads, {given.rounds} rounds in turn, medians (smallest to largest) in tokens/s; "
        f"memory reads {limit / 1e9:.1f} GB/s. `decode 8 x 16`: eight requests after 16 tokens, together.",
        "",
        f"| shape | width | figure | loquela | {' | ratio | '.join(PEERS)} | ratio | share of the limit |",
        "|---|---|---|---|" + "---|---|" * len(PEERS) + "---|",
    ]
    result: dict[str, object] = {"read_bytes_per_second": limit}
    with tempfile.TemporaryDirectory() as place:
        for size in given.sizes:
            for width in given.widths:
                if (size, width) == ("1.1B", "float32") and len(given.widths) > 1:
                    continue  # twenty minutes for a figure that nobody needs
                found = measure(size, width, Path(place), given.rounds, given.threads)
                result[f"{size} {width}"] = found
                for what in found["loquela"]:
                    line = row(size, width, what, found, limit)
                    lines.append(line)
                    print(line, flush=True)
    if not given.no_record:
        record("Decoding", "python benchmarks/decode.py", lines, result)


def row(size: str, width: str, what: str, found: dict[str, dict[str, list[float]]], limit: float) -> str:
    """One line of the table; at a long context ours is the one with llama.cpp's kind of cache, float16."""
    own = found["loquela f16 cache" if str(LONG) in what else "loquela"][what]
    middle = statistics.median(own)
    share = ""
    if what == f"decode 1 x {SHORT}":
        share = f"{middle * read_per_token(size, width) / limit:.0%}"
    cells = [
        f"{spread(peer[what])} | {middle / statistics.median(peer[what]):.2f}" if (peer := found.get(name)) else " | "
        for name in PEERS
    ]
    return f"| {size} | {width} | {what} | {spread(own)} | {' | '.join(cells)} | {share} |"


if __name__ == "__main__":
    main()
