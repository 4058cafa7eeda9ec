"""Seconds from an empty process to the first token of `loquela generate`, and the most memory it had.

A LLaMA of 110 million parameters with random weights, as float32 and as `loquela convert --quantize` writes it, opened
in turn; kernels and files are warm, the process is not. Medians over the rounds. What Python needs to import torch
alone is measured beside them: nothing that uses torch answers sooner.

    python benchmarks/start.py [--rounds 5] [--no-record]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

from machine import asked, record, spread

WAYS = {
    "float32": ("float32", []),
    "float32, --engine torch": ("float32", ["--engine", "torch"]),
    "int8, rounded at load": ("float32", ["--quantize", "int8"]),
    "int4, rounded at load": ("float32", ["--quantize", "int4"]),
    "int8, stored": ("int8", []),
    "int4, stored": ("int4", []),
}
Started = tuple[float, float]
"""Seconds to the first byte on stdout; MiB."""


def prepare(place: Path) -> None:
    """Write the models; in a process of its own, since a child's memory counts from what its parent has had."""
    from decode import network
    from loquela.checkpoint.few_bits import Rounded, matrices
    from loquela.checkpoint.store import atomic_directory, save_model, write_model
    from loquela.data.corpora import path
    from loquela.data.readers import read_pieces
    from loquela.engine.quantize import quantised
    from loquela.text.tokenizer import Tokenizer

    made = network("110M")
    text = next(iter(read_pieces(str(path("shakespeare"))))).text
    tokenizer = Tokenizer.train("bpe", [text], 4096)
    save_model(made, tokenizer, place / "float32")
    for width, bits in (("int8", 8), ("int4", 4)):
        rounded: dict[str, Rounded] = {}
        for stored, layer in matrices(made).values():
            codes = quantised(layer.weight, bits)
            rounded[stored] = (bits, codes.codes, codes.scales)
        with atomic_directory(place / width) as temporary:
            write_model(made, tokenizer, temporary, rounded=rounded)


def start(command: list[str]) -> Started:
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.read(1):
        raise SystemExit(f"{' '.join(command)} said nothing")
    seconds = time.perf_counter() - begin
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    return seconds, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    found: dict[str, list[Started]] = {}
    with tempfile.TemporaryDirectory() as place:
        maker = Process(target=prepare, args=(Path(place),))
        maker.start()
        maker.join()
        prompt = ["-p", "The model reads", "--max-new-tokens", "1"]
        commands = {
            way: ["-m", "loquela", "generate", "-m", str(Path(place) / width), *flags, *prompt]
            for way, (width, flags) in WAYS.items()
        } | {"import torch, nothing else": ["-c", "import torch; print(1)"]}
        for number in range(given.rounds + 1):  # the first compiles the kernels, if that was never done
            for way, command in commands.items():
                once = start(command)
                if number:
                    found.setdefault(way, []).append(once)
    lines = [
        f"110 million parameters, {given.rounds} rounds in turn, medians (smallest to largest).",
        "",
        "| opened as | seconds to the first token | MiB at most |",
        "|---|---|---|",
    ]
    for way, starts in found.items():
        lines.append(f"| {way} | {spread([s for s, _ in starts])} | {spread([m for _, m in starts])} |")
    print("\n".join(lines))
    if not given.no_record:
        record("Starting", asked(), lines, dict(found))


if __name__ == "__main__":
    main()
