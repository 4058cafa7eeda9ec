"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from loquela.checkpoint.store import save_model
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer

# Two processes test side by side, and a property that takes long on a busy machine has not failed.
torch.set_num_threads(1)
settings.register_profile("loquela", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loquela")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets that are not shipped; a test that needs them skips, and says so, where they are missing."""
    path = Path(os.environ.get("LOQUELA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set LOQUELA_SHARED_DATA")
    return path


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
