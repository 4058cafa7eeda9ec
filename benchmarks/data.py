"""Tokenising at size: `loquela data build` beside the `tokenizers` library's own batch encoding, in one run.

The texts are the longer strings of real sets (dialogues, reviews, web pages, stories, articles). The peer gets them in
memory, in lists of a megabyte, and gives its encodings, on all cores: its best case. Ours reads them from a file,
hashes them, looks for exact and near duplicates, writes shards with their index and hashes, and syncs them. Rounds
alternate; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import record, spread

if TYPE_CHECKING:  # the processes that tokenise import this file again, and torch with it
    from loquela.text.tokenizer import Tokenizer

SHARED = Path(os.environ.get("LOQUELA_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SETS = (
    "classification/movie_reviews_1600.jsonl.gz",
    "summarisation/dialogsum_train.jsonl.gz",
    "instruct/gsm8k_train.jsonl.gz",
    "instruct/gpteacher_roleplay_3146.json.gz",
    "instruct/alpaca_libre_v1v2.jsonl",
    "lm/c4_300.jsonl.gz",
    "lm/tinystories_lower.txt.gz",
    "lm/wikipedia_en_30_articles.txt",
)
SHORTEST, JOB = 200, 1 << 20


def strings(value: Any) -> Iterator[str]:
    """Yield the texts in a row of any shape."""
    if isinstance(value, str) and len(value) >= SHORTEST:
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def texts() -> list[str]:
    found: dict[str, None] = {}
    for name in SETS:
        raw = (SHARED / name).read_bytes()
        content = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
        kind = name.removesuffix(".gz").rpartition(".")[2]
        rows: list[Any] = content.split("\n\n") if kind == "txt" else json.loads(content) if kind == "json" else []
        rows = rows or [json.loads(line) for line in content.splitlines() if line]
        found.update(dict.fromkeys(text for row in rows for text in strings(row)))
    return list(found)


def peer(tokenizer: Tokenizer, documents: list[str]) -> float:
    """Return the seconds that the library takes for all texts, a megabyte at a time."""
    jobs, job, size = [], [], 0
    for text in documents:
        job.append(text)
        size += len(text)
        if size >= JOB:
            jobs.append(job)
            job, size = [], 0
    jobs.append(job)
    start = time.perf_counter()
    for job in jobs:
        tokenizer.backend.encode_batch(job, add_special_tokens=False)
    return time.perf_counter() - start


def ours(tokenizer: Tokenizer, file: Path, output: Path, processes: int | None, near: float | None) -> float:
    from loquela.data.builder import build
    from loquela.data.gather import Gathering

    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    build(Gathering([str(file)]), tokenizer, output, processes=processes, near=near)
    return time.perf_counter() - start


def material(copies: float) -> list[str]:
    """The texts, so many times: part of them, or also other texts of the same words, no duplicates of the first."""
    whole = texts()
    found = whole[: round(copies * len(whole))]
    for copy in range(1, math.ceil(copies)):
        part = whole[: round((copies - copy) * len(whole))]
        found += [" ".join(text.split()[:: -1 if copy == 1 else copy]) for text in part]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each about 15 seconds for each copy, on two cores")
    parser.add_argument("--copies", type=float, default=1, help="times the text of 26 MB; may be a fraction")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--record", action="store_true", help="write the result into RESULTS.md")
    given = parser.parse_args()
    from loquela.text.tokenizer import Tokenizer

    documents = material(given.copies)
    size = sum(len(text.encode()) for text in documents) / 1e6
    tokenizer = Tokenizer.train("bpe", documents[::5], given.vocab_size)
    ways: dict[str, list[float]] = {
        name: [] for name in ("tokenizers encode_batch", "ours", "ours, near duplicates not sought")
    }
    with tempfile.TemporaryDirectory() as directory:
        file, output = Path(directory) / "texts.jsonl", Path(directory) / "built"
        with file.open("w") as out:
            out.writelines(json.dumps({"text": text}) + "\n" for text in documents)
        for number in range(given.rounds):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                if name.startswith("ours"):
                    seconds = ours(tokenizer, file, output, given.workers, 0.8 if name == "ours" else None)
                else:
                    seconds = peer(tokenizer, documents)
                ways[name].append(size / seconds)
            print(f"round {number + 1}: {', '.join(f'{n} {r[-1]:.2f}' for n, r in ways.items())} MB/s", file=sys.stderr)
    base = statistics.median(ways["tokenizers encode_batch"])
    lines = [
        f"{len(documents):,} texts, {size:.1f} MB, a BPE of {tokenizer.vocab_size:,} tokens, {os.cpu_count()} cores; "
        f"median (and range) of {given.rounds} alternating rounds.",
        "",
        "| | MB of text per second | ratio |",
        "|---|---|---|",
        *(f"| {name} | {spread(rates)} | {statistics.median(rates) / base:.2f} |" for name, rates in ways.items()),
    ]
    print("\n".join(lines))
    if given.record:
        record("Tokenising at size", f"python benchmarks/data.py {' '.join(sys.argv[1:])}".strip(), lines, {**ways})
    return 0


if __name__ == "__main__":
    sys.exit(main())
