"""`loquela bench`: what it prints, with a model so small that the figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loquela.checkpoint.store import load_model, save_model
from loquela.cli.ctranslate import ctranslate_of
from loquela.cli.rivals import Ours
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


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loquela", "bench", "--rounds", "1", "--new-tokens", "4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def test_the_keys_of_the_conventions(model: Path) -> None:
    done = bench("-m", str(model), "--quantize", "int8", "--threads", "1", "--json", "--prompt-tokens", "500")
    assert done.returncode == 0, done.stderr
    assert "of 500 prompt tokens 59 fit the window of 64" in done.stderr
    found = json.loads(done.stdout)
    keys = ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds", "peak_memory_bytes")
    assert all(found[key] > 0 for key in keys)
    assert found["prompt_tokens"] == 59  # what fits the window of 64 beside 4 new ones
    assert (found["engine"], found["threads"]) == ("compiled", 1)


DIES = """
import os, signal, sys
if "loquela.cli.rivals" in sys.orig_argv and "transformers" in sys.orig_argv:
    from loquela.cli import peers
    def die(*given): os.kill(os.getpid(), signal.SIGSEGV)
    setattr(peers.Transformers, os.environ["DIES_AT"], die)
"""


@pytest.mark.parametrize("at", ["fill", "step"])
def test_a_peer_that_dies_is_said_to_and_the_others_go_on(at: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIES)
    for package in ("llama_cpp", "ctranslate2"):  # these cannot even be imported
        (tmp_path / f"{package}.py").write_text("raise ImportError('not today')")
    given = "-m", str(model), "--engine", "torch", "--threads", "1", "--prompt-tokens", "9", "--peers", "--json"
    done = bench(*given, PYTHONPATH=str(tmp_path), DIES_AT=at)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["decode_tokens_per_second"] > 0
    assert found["peers"] == {}
    assert found["peers_failed"]["transformers"].startswith("the process of transformers ended: by SIGSEGV")
    assert "SIGSEGV" in done.stderr


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


def of_kind(model_type: str, place: Path, **fields: object) -> Path:
    module = architecture(model_type)
    network = module.NETWORK(module.CONFIG.from_dict({"model_type": model_type, "vocab_size": 64, **fields}))
    network.initialise()
    save_model(network, None, place)
    return place


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
LSTM = {"hidden_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_of_an_encoder_decoder_sources_are_read_and_targets_written(engine: str, tmp_path: Path) -> None:
    place = of_kind("t5", tmp_path / "model", **T5)
    done = bench("-m", str(place), "--engine", engine, "--prompt-tokens", "20", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["engine"], found["model_type"], found["prompt_tokens"]) == (engine, "t5", 20)
    assert found["prefill_tokens_per_second"] > 0
    assert found["decode_tokens_per_second"] > 0


@pytest.mark.soak
def test_of_an_encoder_decoder_transformers_is_measured_too(tmp_path: Path) -> None:
    place = of_kind("t5", tmp_path / "model", **T5)
    done = bench("-m", str(place), "--prompt-tokens", "20", "--threads", "1", "--json", "--peers")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peers"]["transformers"]["ratio"].keys() == {"prefill", "decode"}


def test_a_recurrent_state_is_kept_to_go_back_to(tmp_path: Path) -> None:
    done = bench("-m", str(of_kind("lstm", tmp_path / "model", **LSTM)), "--prompt-tokens", "50", "--threads", "1")
    assert done.returncode == 0, done.stderr
    head, columns, own = done.stdout.splitlines()
    assert head.startswith("lstm, ")
    assert "the torch engine, 1 thread; a prompt of 50 tokens read, 4 written" in head
    assert len(own) == len(columns)


def test_back_is_where_the_context_ended(tmp_path: Path) -> None:
    for kind, fields in (("lstm", LSTM), ("t5", T5)):
        ours = Ours(str(of_kind(kind, tmp_path / kind, **fields)), {"threads": 1})
        ours.prepare(2, 7, 5)
        ours.back()
        first = ours.step([5, 6])
        ours.step(first)
        ours.back()
        assert ours.step([5, 6]) == first
        assert len(first) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--new-tokens", "63"), "new_tokens must leave room for a prompt token and its next one in the window of 64"),
        (("--engine", "torch", "--quantize", "int8"), "weights of int8 need the compiled engine"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(given: tuple[str, ...], said: str, model: Path) -> None:
    done = bench("-m", str(model), *given)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_decoder_no_figures(tmp_path: Path) -> None:
    done = bench("-m", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "must be a directory" in done.stderr
