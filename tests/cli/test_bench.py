"""`loquela bench`: what it prints, with a model so small that the figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loquela.checkpoint.store import load_model, save_model
from loquela.cli.ctranslate import ctranslate_of
from loquela.errors import UsageError
from loquela.models.base import architecture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = architecture("llama")
    fields = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }  # fmt: skip
    network = module.NETWORK(module.CONFIG.from_dict({"model_type": "llama", **fields}))
    network.initialise()
    save_model(network, None, place := tmp_path_factory.mktemp("bench") / "model")
    return place


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loquela", "bench", "--rounds", "1", "--new-tokens", "4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_keys_of_the_conventions(model: Path) -> None:
    done = bench("-m", str(model), "--quantize", "int8", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds", "peak_memory_bytes")
    assert all(found[key] > 0 for key in keys)
    assert found["prompt_tokens"] == 59  # what fits the window of 64 beside 4 new ones


@pytest.mark.soak
def test_peers_are_measured_where_they_are_installed(model: Path) -> None:
    pytest.importorskip("llama_cpp")
    done = bench("-m", str(model), "--engine", "torch", "--threads", "1", "--json", "--peers")
    assert done.returncode == 0, done.stderr
    peers = json.loads(done.stdout)["peers"]
    assert set(peers) == {"transformers", "llama.cpp", "CTranslate2"}
    assert all(ratio > 0 for peer in peers.values() for ratio in peer["ratio"].values())


def test_in_the_form_of_ctranslate2_it_is_the_same_function(model: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("ctranslate2")
    network = load_model(model).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    save_model(network, None, model := tmp_path / "model")
    ids = [3 + 7 * i % 60 for i in range(20)]
    generator = library.Generator(str(ctranslate_of(model, tmp_path, None)), compute_type="float32")
    got = torch.from_numpy(np.array(generator.forward_batch([[str(i) for i in ids]]), dtype=np.float32))
    expected = network(torch.tensor([ids])).detach()
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(UsageError, match="float32 or int8"):
        ctranslate_of(model, tmp_path, "int4")


def test_no_decoder_no_figures(tmp_path: Path) -> None:
    done = bench("-m", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "must be a directory" in done.stderr
