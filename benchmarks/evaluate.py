"""Items per second: `loquela evaluate` beside lm-evaluation-harness with transformers, one model, the same prompts.

Two models: stories260K, trained, of 260,000 parameters, and GPT-2's shape (124 million) with random weights and its own
tokenizer. lm-eval is given each batch size of --batch-sizes, and its best time counts. Both see the same items with
the same shots, in float32 on the same threads, in alternating rounds; loading is not timed, and lm-eval's bootstrap is
left out while ours is in. That both find the same accuracies is checked.

    python benchmarks/evaluate.py --data-dir DIR [--models stories260K] [--tasks lambada,sst2] [--record]

With --record the rows that were measured take the places of the same rows in RESULTS.md; the others stay.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

from loquela.api import load
from loquela.checkpoint import llama2c
from loquela.checkpoint.store import save_model
from loquela.evaluation.harness import harness_task
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.plan import Settings
from loquela.evaluation.run import prepare_task, run
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer
from machine import record, recorded, spread

TITLE = "Evaluation against lm-evaluation-harness"
HEAD = (
    "| model | task | shots | threads | items | rounds | lm-eval items/s (its best batch size) | ours, items/s | ratio "
    "| of processor time | date |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
TASKS = [("arc_easy", 0), ("sst2", 4), ("hellaswag", 0), ("lambada", 0)]


def models(data: Path, directory: Path) -> dict[str, Path]:
    """Write both models as directories that both libraries open."""
    small = llama2c.read(data / "models" / "stories260K" / "stories260K.bin")
    save_model(small.network, small.tokenizer, directory / "stories260K", generation_config=small.generation_config)
    tokenizer = Tokenizer.load(data / "models" / "tokenizers" / "gpt2_encoder.json")
    module = architecture("gpt2")
    network = module.NETWORK(module.CONFIG.from_dict({"model_type": "gpt2", "vocab_size": tokenizer.vocab_size}))
    torch.manual_seed(0)
    network.initialise()
    save_model(network, tokenizer, directory / "gpt2-124M")
    return {name: directory / name for name in ("stories260K", "gpt2-124M")}


class Clock:
    """Seconds on the wall, and of the processor: the second hardly notices who else uses the machine."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def rates(self, items: int) -> tuple[float, float]:
        """Return items per second by either clock."""
        return items / (time.perf_counter() - self.wall), items / (time.process_time() - self.processor)


def their_score(peer: HFLM, task: Any) -> float:
    """Return lm-eval's accuracy."""
    found = lm_eval.evaluate(peer, {task.config.task: task}, bootstrap_iters=0, log_samples=False)
    return float(found["results"][task.config.task]["acc,none"])


def ratio_to_best(
    ours: list[tuple[float, float]], theirs: dict[int, list[tuple[float, float]]], clock: int
) -> tuple[int, float]:
    """Return lm-eval's best batch size by a clock, and how many times its items per second ours are."""
    medians = {size: statistics.median(rates[clock] for rates in found) for size, found in theirs.items()}
    best = max(medians, key=lambda size: medians[size])
    return best, statistics.median(rates[clock] for rates in ours) / medians[best]


def row(key: str, found: dict[str, Any]) -> str:
    """Return the line of the table for a model and a task, whenever they were measured."""
    model, name = key.split(" ")
    theirs = {int(size): rates for size, rates in found["lm_eval"].items()}
    best, ratio = ratio_to_best(found["ours"], theirs, 0)
    return (
        f"| {model} | {name} | {dict(TASKS)[name]} | {found.get('threads', '')} | {found['items']} "
        f"| {len(found['ours'])} | {spread([rates[0] for rates in theirs[best]])} ({best}) "
        f"| {spread([rates[0] for rates in found['ours']])} | {ratio:.2f} "
        f"| {ratio_to_best(found['ours'], theirs, 1)[1]:.2f} | {found.get('date', '')} |"
    )


def main() -> None:
    """Measure and print; with --record also write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LOQUELA_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--limit", type=int, default=32, help="items of the large model; five times as many of the small"
    )
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", default="stories260K,gpt2-124M")
    parser.add_argument("--tasks", default=",".join(name for name, _ in TASKS), help="some of them, for a short run")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.data_dir is None:
        parser.error("name the directory of the data sets: --data-dir or LOQUELA_DATA")
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # what the compiled engine goes by
    chosen = given.tasks.split(",")
    if unknown := [name for name in chosen if name not in dict(TASKS)]:
        parser.error(f"tasks are {', '.join(dict(TASKS))}, but one is {unknown[0]}")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        found = models(Path(given.data_dir), Path(directory))
        for model in given.models.split(","):
            subject = LocalSubject(load(found[model]), model)
            sizes = [int(size) for size in given.batch_sizes.split(",")]
            peers = {size: HFLM(str(found[model]), batch_size=size, dtype="float32", device="cpu") for size in sizes}
            for name, shots in [pair for pair in TASKS if pair[0] in chosen]:
                limit = given.limit * (5 if model == "stories260K" else 1)
                prepared = prepare_task(name, data_dir=Path(given.data_dir))
                settings = Settings(shots=shots, limit=limit)
                fitting = run(subject, [prepared], settings).results[name]  # warms up, and says which items fit
                numbers = [record["item"] for record in fitting.records]
                prepared = type(prepared)(
                    prepared.task, [prepared.rows[i] for i in numbers], prepared.pool, prepared.directories
                )
                settings = Settings(shots=shots)
                task = harness_task(prepared, subject, settings)
                ours: list[tuple[float, float]] = []
                theirs: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
                for _ in range(given.rounds):
                    clock = Clock()
                    score = run(LocalSubject(subject.model, model), [prepared], settings).results[name].scores
                    ours.append(clock.rates(len(numbers)))
                    for size, peer in peers.items():
                        clock = Clock()
                        accuracy = their_score(peer, task)
                        theirs[size].append(clock.rates(len(numbers)))
                        assert abs(accuracy - score["accuracy"]) < 1.5 / len(numbers), (accuracy, score)
                figures[f"{model} {name}"] = {
                    "ours": ours,
                    "lm_eval": {str(size): rates for size, rates in theirs.items()},
                    "ratio": ratio_to_best(ours, theirs, 0)[1],
                    "processor_ratio": ratio_to_best(ours, theirs, 1)[1],
                    "items": len(numbers),
                    "threads": given.threads,
                    "date": time.strftime("%Y-%m-%d"),
                }
                print(row(f"{model} {name}", figures[f"{model} {name}"]), flush=True)
    if given.record:
        merged = {**{key: value for key, value in recorded(TITLE).items() if " " in key}, **figures}
        order = [f"{model} {name}" for model in ("stories260K", "gpt2-124M") for name, _ in TASKS]
        merged = {key: merged[key] for key in order if key in merged}
        flags = {
            "data-dir": "DIR",
            "models": given.models,
            "tasks": given.tasks,
            "threads": given.threads,
            "rounds": given.rounds,
            "limit": given.limit,
            "batch-sizes": given.batch_sizes,
        }
        command = " ".join(["python benchmarks/evaluate.py", *(f"--{flag} {value}" for flag, value in flags.items())])
        lines = [*HEAD, *(row(key, found) for key, found in merged.items())]
        record(
            TITLE,
            f"{command} --record",
            [*lines, "", "Each row is from its own run; the command is the last one's."],
            merged,
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
