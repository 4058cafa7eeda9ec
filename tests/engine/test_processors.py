"""Kernels for other processors than this one, and machine code that stays on the disk; each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, sys
import numpy as np, torch
from loquela import peft
from loquela.engine.decoder import compiled
from loquela.engine.simd import features
from loquela.models.base import architecture
module = architecture("qwen3")
fields = dict(vocab_size=61, hidden_size=40, intermediate_size=70, num_hidden_layers=1, num_attention_heads=2,
              num_key_value_heads=1, head_dim=20, max_position_embeddings=64)
network = module.NETWORK(module.CONFIG.from_dict({"model_type": "qwen3", **fields})).eval()
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for parameter in network.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
ids = torch.arange(40)[None]
digests = []
with torch.no_grad():
    half = network.half()
    near = compiled(half, threads=1, cache_dtype="float16")(ids)
network = network.float()
with torch.no_grad():
    exact = network(ids)
    assert float((near - exact).abs().max() / exact.abs().max()) < 2e-2
    digests.append(hashlib.sha256(near.numpy().tobytes()).hexdigest()[:16])
for quantize in (None, "int8", "int4"):
    with torch.no_grad():
        logits, exact = compiled(network, quantize=quantize, threads=1)(ids), network(ids)
    error = float((logits - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error < {None: 1e-5, "int8": 0.03, "int4": 0.3}[quantize], error
    digests.append(hashlib.sha256(logits.numpy().tobytes()).hexdigest()[:16])
for name, method in (("a", "lora"), ("b", "adapter"), ("c", "ia3"), ("d", "prefix")):
    peft.attach(network, peft.config_for(method), name)
    with torch.no_grad():
        for parameter in peft.trainable(network, name).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
engine = compiled(network, threads=1, cache_dtype="int8")
with torch.no_grad(), peft.wearing(network, [None, *"abcd"]):
    near, exact = engine(ids[:, :20].expand(5, -1)), network(ids[:, :20].expand(5, -1))
assert float((near - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.03
digests.append(hashlib.sha256(near.numpy().tobytes()).hexdigest()[:16])
print(*digests)
"""
AVX2 = "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"


def run(cache: Path, **environment: str) -> str:
    given = {**os.environ, "LOQUELA_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=given, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(cache: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}


@pytest.mark.soak
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the processors are x86")
def test_every_kind_of_processor_gives_the_same(tmp_path: Path) -> None:
    """AVX2 has the bits of this machine; one without fused multiplication and float16 rounds otherwise."""
    here = run(tmp_path / "here")
    assert run(tmp_path / "avx2", NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=AVX2) == here
    run(tmp_path / "old", NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2")


@pytest.mark.soak
def test_a_second_process_compiles_nothing_even_where_the_package_cannot_be_written(tmp_path: Path) -> None:
    first = run(tmp_path / "cache")
    kept = files(tmp_path / "cache")
    assert kept
    assert run(tmp_path / "cache") == first
    assert files(tmp_path / "cache") == kept
    here = Path(__file__).resolve().parents[2] / "src" / "loquela" / "engine" / "__pycache__"
    assert not list(here.glob("*.nbi"))


def test_where_nothing_can_be_kept_it_still_runs(tmp_path: Path) -> None:
    from loquela.engine import cached

    (tmp_path / "file").write_text("in the way")
    before = cached._DIRECTORY
    try:
        cached._DIRECTORY = tmp_path / "file" / "kernels"
        double = cached.jit(_double)
        assert double(21) == 42
    finally:
        cached._DIRECTORY = before


def _double(x):  # type: ignore[no-untyped-def]
    return x + x
