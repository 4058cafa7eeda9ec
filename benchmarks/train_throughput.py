"""Tokens per second and peak memory of pre-training: ours, Hugging Face's Trainer, and a plain loop in nanoGPT's way.

All three train the same GPT-2 shape on the same blocks of tinyshakespeare: fused AdamW, clipping at 1.0, no dropout.
`--dtype auto` is ours to choose: products in bfloat16 where the processor has instructions for it, beside the Trainer
and the plain loop as they are by default, in float32. Each lives in a process of its own, ours and the Trainer with
all that they do in a step: data, schedule, logging. They take turns in bursts of steps; what is told is the median of
the bursts and of their ratios, and the peak of resident memory. On a machine that does other things too,
`--cpu-time --threads 1` counts seconds of the processor.

A size and a type are a piece of less than three minutes, and `--record` puts each piece beside those that are there:

    python benchmarks/train_throughput.py --sizes 1M [--dtype float32|auto|bfloat16] [--rounds 7] [--record]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from machine import record, recorded, spread

PEERS = ("ours", "trainer", "plain")
TITLE = "Tokens per second of pre-training at an identical shape"


@dataclass(frozen=True)
class Shape:
    """A GPT-2, the rows and length of its batches, and the steps of a burst."""

    dim: int
    layers: int
    heads: int
    vocabulary: int
    rows: int
    block: int
    burst: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "gpt2",
            "n_embd": self.dim,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_positions": self.block,
            "vocab_size": self.vocabulary,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }


SHAPES = {
    "1M": Shape(128, 4, 4, 1000, 12, 64, 20),
    "10M": Shape(384, 6, 6, 1000, 8, 128, 2),
    "110M": Shape(768, 12, 12, 32000, 4, 256, 1),
}


def recipe(shape: Shape, directory: Path, dtype: str) -> dict[str, Any]:
    return {
        "model": shape.config,
        "tokenizer": {"kind": "bpe", "vocab_size": 1000},
        "data": "shakespeare",
        "output_dir": str(directory),
        "block_size": shape.block,
        "per_device_train_batch_size": shape.rows,
        "max_steps": 10**9,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "save_steps": 10**9,
        "logging_steps": 10,
        "dtype": dtype,
    }


class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Blocks of the tokens, as the Trainer takes them (it shifts the labels itself)."""

    def __init__(self, tokens: Any, block: int) -> None:
        self.tokens, self.block = tokens, block

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.tokens[index * self.block :][: self.block].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def ours(shape: Shape, directory: Path, dtype: str, stepped: Callable[[], None]) -> None:
    from loquela.training.events import Stepped
    from loquela.training.run import train

    train(recipe(shape, directory, dtype), on_event=lambda event: isinstance(event, Stepped) and stepped())


def trainer(shape: Shape, directory: Path, dtype: str, stepped: Callable[[], None]) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class Told(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            stepped()

    raw = {key: value for key, value in shape.config.items() if key != "model_type"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**raw))
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=shape.rows,
        max_steps=10**9,
        optim="adamw_torch_fused",
        learning_rate=1e-4,
        max_grad_norm=1.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == "bfloat16",
    )
    made = transformers.Trainer(model, arguments, train_dataset=Blocks(tokens(directory), shape.block))
    made.remove_callback(transformers.PrinterCallback)
    made.add_callback(Told())
    made.train()


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.attend(self.ln_1(x)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D)
        x = x + self.project(y)
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.dim)
        self.places = nn.Embedding(shape.block, shape.dim)
        self.blocks = nn.ModuleList(PlainBlock(shape.dim, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def logits(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids).flatten(0, 1), labels.flatten())


def plain(shape: Shape, directory: Path, dtype: str, stepped: Callable[[], None]) -> None:
    model, data = PlainGPT(shape), tokens(directory)
    groups = [[p for p in model.parameters() if (p.dim() > 1) is big] for big in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )
    half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    for step in range(10**9):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / 1e9)))
        starts = torch.randint(len(data) - shape.block - 1, (shape.rows,)).tolist()
        rows = torch.from_numpy(np.stack([data[s : s + shape.block + 1] for s in starts]).astype(np.int64))
        with half:
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        stepped()


def tokens(directory: Path) -> Any:
    """The tokens that the parent has made."""
    return np.memmap(directory.parent / "tokens" / "train.bin", dtype="<u2", mode="r")


def work(peer: str, shape: Shape, directory: Path, dtype: str, clock: Callable[[], float]) -> None:
    """Be one of the three: a number on stdin asks for so many steps, whose seconds are told on stdout."""
    left, began = 0, 0.0

    def stepped() -> None:
        nonlocal left, began
        left -= 1
        if left > 0:
            return
        now = clock()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(f"{now - began} {int(peak.split()[1]) * 1024}", file=sys.__stdout__, flush=True)
        asked = sys.stdin.readline().strip()
        if not asked:
            os._exit(0)
        left, began = int(asked), clock()

    {"ours": ours, "trainer": trainer, "plain": plain}[peer](shape, directory, dtype, stepped)


def measure(name: str, rounds: int, dtype: str, threads: int, cpu_time: bool) -> dict[str, Any]:
    """Return tokens per second and peak bytes of each of the three, burst by burst."""
    from loquela.data.corpora import resolve
    from loquela.data.shards import build
    from loquela.data.vocabulary import train_tokenizer

    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        tokenizer = train_tokenizer(resolve("shakespeare"), "bpe", 1000, encoding="utf-8", validation_fraction=0.1)
        build("shakespeare", tokenizer, directory / "tokens")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--dtype", dtype, "--sizes", name, "--directory", place]
        command += [*(["--cpu-time"] if cpu_time else []), "--worker"]
        workers = {}
        for peer in PEERS:
            workers[peer] = subprocess.Popen(
                [*command, peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, env=environment,
            )  # fmt: skip
            told(workers[peer])  # the first step, which allocates; one after the other
        speeds: dict[str, list[float]] = {peer: [] for peer in PEERS}
        peaks: dict[str, int] = {}
        for turn in range(rounds + 1):
            for peer in PEERS if turn % 2 else reversed(PEERS):
                assert workers[peer].stdin is not None
                print(shape.burst, file=workers[peer].stdin, flush=True)
                seconds, peaks[peer] = told(workers[peer])
                if turn:  # the first round warms up
                    speeds[peer].append(shape.burst * shape.rows * shape.block / seconds)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait(60)
    return {"tokens_per_second": speeds, "peak_bytes": peaks}


def told(worker: subprocess.Popen[str]) -> tuple[float, int]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        assert worker.stderr is not None
        sys.exit(worker.stderr.read())
    seconds, peak = line.split()
    return float(seconds), int(peak)


def lines(results: dict[str, Any]) -> Iterator[str]:
    yield "| shape | | tokens/s, median (least to most) | peak memory | ours to it, median of the rounds |"
    yield "|---|---|---|---|---|"
    for name in sorted(results, key=lambda name: (list(SHAPES).index(name.split(",")[0]), name)):
        speeds, peaks = results[name]["tokens_per_second"], results[name]["peak_bytes"]
        for peer in PEERS:
            ratios = [a / b for a, b in zip(speeds["ours"], speeds[peer], strict=True)]
            memory = peaks["ours"] / peaks[peer]
            ratio = "" if peer == "ours" else f"{statistics.median(ratios):.2f}x the speed, {memory:.2f}x the memory"
            yield f"| {name} | {peer} | {spread(speeds[peer])} | {peaks[peer] / 1e6:,.0f} MB | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "auto", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    parser.add_argument("--record", action="store_true", help="write the result into RESULTS.md")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        clock = time.process_time if chosen.cpu_time else time.perf_counter
        work(chosen.worker, SHAPES[chosen.sizes], Path(chosen.directory) / chosen.worker, chosen.dtype, clock)
        return
    for size in chosen.sizes.split(","):
        name = f"{size}, {'ours auto, others float32' if chosen.dtype == 'auto' else chosen.dtype}"
        found = {name: measure(size, chosen.rounds, chosen.dtype, chosen.threads, chosen.cpu_time)}
        print("\n".join(lines(found)), flush=True)
        if chosen.record:
            given = f"--sizes {size} --dtype {chosen.dtype} --rounds {chosen.rounds} --threads {chosen.threads}"
            given += " --cpu-time" if chosen.cpu_time else ""
            found[name] |= {"given": given, "on": time.strftime("%Y-%m-%d")}
            all_found = {**recorded(TITLE), **found}
            said = "Measured in pieces, each by the flags that stand with its figures below."
            record(TITLE, "python benchmarks/train_throughput.py --record", [*lines(all_found), "", said], all_found)


if __name__ == "__main__":
    main()
