"""Tiny models to tune, and rows that they can learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loquela.checkpoint.store import save_model
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer

WORDS = "red blue green one two three cat dog bird yes no good bad"
TEXT = (f"{WORDS}\n### Instruction:\nSay.\n\n### Response:\nLabel:\nTranslation:\nSummary:\n" * 9).splitlines(True)
ANSWERS = {"cat": "red", "dog": "blue", "bird": "green", "one": "yes", "two": "no", "three": "good"}


def save_tiny(directory: Path, model_type: str, tokenizer: Tokenizer, **raw: Any) -> Path:
    module = architecture(model_type)
    network = module.NETWORK(module.CONFIG.from_dict({"model_type": model_type, **raw}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15, generator=generator)
    save_model(network, tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with a BPE tokenizer and a window of 512 tokens."""
    tokenizer = Tokenizer.train("bpe", TEXT, 320, special_tokens=("<|endoftext|>", "<s>"))
    return save_tiny(
        tmp_path_factory.mktemp("models") / "decoder",
        "llama",
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GRU of two layers, with the same tokenizer."""
    tokenizer = Tokenizer.train("bpe", TEXT, 320, special_tokens=("<|endoftext|>", "<s>"))
    place = tmp_path_factory.mktemp("models") / "recurrent"
    return save_tiny(place, "gru", tokenizer, vocab_size=tokenizer.vocab_size, hidden_size=32)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT without a head, with a WordPiece tokenizer."""
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer = Tokenizer.train("wordpiece", TEXT, 200, special_tokens=special)
    return save_tiny(
        tmp_path_factory.mktemp("models") / "encoder",
        "bert",
        tokenizer,
        architectures=["BertModel"],
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        hidden_dropout_prob=0.1,
    )


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 with a BPE tokenizer."""
    tokenizer = Tokenizer.train("bpe", TEXT, 320, special_tokens=("<pad>", "</s>"))
    return save_tiny(
        tmp_path_factory.mktemp("models") / "encoder-decoder",
        "t5",
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


Write = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Write:
    """Write rows to a .jsonl file."""

    def write(content: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return write


@pytest.fixture
def pairs(rows: Write) -> Path:
    """Forty prompts with one of six completions."""
    return rows([{"prompt": f"{q} ", "completion": a} for q, a in ANSWERS.items()] * 7)
