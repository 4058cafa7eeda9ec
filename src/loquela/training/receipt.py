"""How a model was made, written beside it: enough to make it again, and to say what that would cost."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

import loquela
from loquela.checkpoint.flops import training_flops
from loquela.layers.counts import only_counts
from loquela.version import VERSION

if TYPE_CHECKING:
    from loquela.training.loop import Run

__all__ = ["RECEIPT", "receipt", "receipt_bytes"]

RECEIPT = "receipt.json"
WATTS_PER_THREAD = 5.0
"""Of a CPU, for each thread that computes: a server processor of 64 cores at 320 W."""
WATTS = {"H200": 700, "H100": 700, "A100": 400, "L40S": 350, "V100": 300, "T4": 70, "4090": 450, "3090": 350}
"""Board power of GPUs by name, from their data sheets; 300 W for any other."""


def receipt_bytes(run: Run) -> bytes:
    """Return the receipt as the bytes of receipt.json."""
    return json.dumps(receipt(run), indent=2, ensure_ascii=False).encode() + b"\n"


def receipt(run: Run) -> dict[str, Any]:
    """Return how the present weights of a run were made: what went in, with what, how long, at what cost.

    The energy is an estimate: seconds · processes · watts, with the power of a GPU's data sheet or 5 W for each thread
    of a CPU; idle parts, memory, cooling and the machines around are not in it.
    """
    state, recipe, ranks = run.state, run.recipe, run.ranks
    source = run.directory / "data" / "source.sha256"
    seconds = run.seconds
    counted = only_counts(run.network)
    per_token = 0 if counted else training_flops(run.network, recipe.block_size)
    watts = _watts(ranks.device)
    return {
        "made_by": {"loquela": VERSION, "code_sha256": code_hash(), "command": "loquela train RECIPE"},
        "recipe": yaml.safe_load(recipe.to_yaml()),
        "data": {
            "files": [file.name for file in recipe.sources],
            "sha256": source.read_text().strip().split(",") if source.is_file() else [],
            "train_tokens": run.material.train_tokens,
            "validation_tokens": run.material.val_tokens,
            "tokenizer_sha256": run.tokenizer.fingerprint,
        },
        "seeds": {"seed": recipe.seed},
        "precision": {"products": str(run.dtype).removeprefix("torch."), "weights": "float32"},
        "parameters": run.network.parameter_count(),
        "steps": state.step,
        "tokens": state.tokens,
        "loss": {
            "train": state.train_loss,
            "validation": None if state.validation is None else state.validation.loss,
            "bits_per_byte": None if state.validation is None else state.validation.bits_per_byte,
        },
        "seconds": round(seconds, 3),
        "processes": ranks.world,
        "operations": per_token * state.tokens,
        "energy": {
            "kilowatt_hours": seconds * ranks.world * watts / 3.6e6,
            "watts_per_process": watts,
            "formula": "seconds · processes · watts / 3.6e6; an estimate, see docs/training.md",
        },
        "environment": environment(ranks.device),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits: machine, libraries, threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


@functools.cache
def code_hash() -> str:
    """Return a SHA-256 over every Python file of the package: the version of the code, to the last character."""
    digest = hashlib.sha256()
    root = Path(loquela.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _watts(device: torch.device) -> float:
    if device.type == "cpu":
        return WATTS_PER_THREAD * torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return float(next((watts for key, watts in WATTS.items() if key in name), 300))


@functools.cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
