"""A trainer in a process of its own, and ways to end it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tally import Tally

__all__ = ["RECIPE", "Tally", "Trainer", "decided", "write_recipe"]

RECIPE = """
model:
  model_type: llama
  hidden_size: 64
  intermediate_size: 128
  num_hidden_layers: 2
  num_attention_heads: 2
  max_position_embeddings: 64
tokenizer: {kind: bpe, vocab_size: 300}
data: text.txt
block_size: 48
output_dir: out
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
max_steps: 60
learning_rate: 0.01
warmup_steps: 10
logging_steps: 3
eval_steps: 10
save_steps: 7
load_best_model_at_end: true
seed: 11
"""


def write_recipe(directory: Path) -> Path:
    words = "the a sea wind ship sails over under blue dark night and day sleeps wakes sings".split()
    choose = random.Random(1)
    lines = (" ".join(choose.choice(words) for _ in range(7)) for _ in range(600))
    (directory / "text.txt").write_text("\n".join(lines) + "\n")
    (directory / "recipe.yaml").write_text(RECIPE)
    return directory / "recipe.yaml"


class Trainer:
    """`python -m loquela train RECIPE key=value …`, running."""

    def __init__(self, recipe: Path, *overrides: str, cwd: Path, threads: int = 1) -> None:
        self.output = cwd / "out"
        command = [sys.executable, "-m", "loquela", "train", str(recipe), *overrides, "--json"]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def wait_until(self, reached: Callable[[], bool], pause: float = 0.001) -> bool:
        """Poll; return False when the process ended before."""
        while not reached():
            if self.process.poll() is not None:
                return False
            time.sleep(pause)
        return True

    def wait_for_rows(self, rows: int) -> bool:
        """Wait until loss.csv has so many rows."""
        return self.wait_until(lambda: self.rows() >= rows)

    def rows(self) -> int:
        file = self.output / "loss.csv"
        return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0

    def saving(self) -> bool:
        return any(self.output.glob(".*.partial"))

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err


def decided(output: Path) -> dict[str, bytes]:
    """What must be the same to the last bit, however often a run was interrupted."""
    names = """model.safetensors config.json tokenizer.json loss.csv data/train.bin data/val.bin
        checkpoint-60/model.safetensors checkpoint-60/optimizer.safetensors""".split()
    return {name: (output / name).read_bytes() for name in names}
