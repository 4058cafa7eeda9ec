"""The command line, called in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from loquela.checkpoint.store import save_model
from loquela.cli.main import main
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer

Loquela = Callable[..., "Result"]


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def loquela(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Loquela:
    """Run `loquela ARGUMENTS…` with `stdin` piped in."""

    def run(*arguments: object, stdin: str | bytes = "") -> Result:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["loquela", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        code = end.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA with a byte-level tokenizer and a context window of 64 tokens."""
    tokenizer = Tokenizer.train("bpe", ["The cat sat on the mat; the dog sat on the log.\n" * 20], 280)
    module = architecture("llama")
    raw = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    network = module.NETWORK(module.CONFIG.from_dict(raw))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(network, tokenizer, directory)
    return directory
