"""A small random model with a chat template and fill-in-the-middle marks, served in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn

from loquela.checkpoint.store import load_model, save_model
from loquela.models.base import Network, architecture
from loquela.serving.app import build
from loquela.serving.door import bind
from loquela.serving.options import Options
from loquela.serving.protocol import server_config
from loquela.serving.state import Served
from loquela.text.tokenizer import Tokenizer

TEXT = '{"mood": "happy", "n": 12} The cat sat on the mat; the dog sat on the log. Ärger 🐈, 3456789.\n' * 20
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def network(vocab_size: int, model_type: str = "llama", window: int = 512) -> Network:
    module = architecture(model_type)
    raw = {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": window,
    }
    if model_type == "mixtral":
        raw |= {"num_key_value_heads": 2, "num_local_experts": 4}
    made: Network = module.NETWORK(module.CONFIG.from_dict(raw))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    return made.eval()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train("bpe", [TEXT], 330, special_tokens=MARKS)
    tokenizer.chat_template = TEMPLATE
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(network(tokenizer.vocab_size), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def mixture_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_model(model_directory).tokenizer
    directory = tmp_path_factory.mktemp("models") / "mixture"
    save_model(network(tokenizer.vocab_size, "mixtral"), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train("wordpiece", [TEXT], 300, special_tokens=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    directory = tmp_path_factory.mktemp("models") / "reader"
    save_model(network(tokenizer.vocab_size, "bert"), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def tagger_directory(encoder_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that labels words: at random, but always the same ones."""
    known = load_model(encoder_directory)
    config = known.network.config.for_task("token-classification", ("O", "B-PER", "I-PER", "B-LOC"))  # type: ignore[attr-defined]
    made = architecture("bert").NETWORK(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    directory = tmp_path_factory.mktemp("models") / "tagger"
    save_model(made.eval(), known.tokenizer, directory)
    return directory


class Running:
    """A server on a port of its own, in a thread."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.served = Served(options)
        self.socket = bind(dataclasses.replace(options, port=0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(server_config(options, build(self.served)))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        while not self.server.started:
            threading.Event().wait(0.01)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self.server.serve(sockets=[self.socket]))

    def close(self) -> None:
        self.server.should_exit = True
        self.served.close()
        self.thread.join(20)


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Running]]:
    """Start a server; all end with the session."""
    running: list[Running] = []

    def begin(model: Path, **options: Any) -> Running:
        running.append(Running(Options(model=model, drain_seconds=1, **options)))
        return running[-1]

    yield begin
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def server(start: Callable[..., Running], model_directory: Path) -> Running:
    return start(model_directory, engine="torch")  # whose texts are the library's, to the last bit
