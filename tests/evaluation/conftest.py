"""Small random models, and the rows they are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import TEXT, make

from loquela.evaluation.local import LocalSubject
from loquela.evaluation.rows import Row
from loquela.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", [TEXT], 320)


@pytest.fixture(scope="session")
def llama(tokenizer: Tokenizer) -> LocalSubject:
    return LocalSubject(make("llama", tokenizer), "llama")


@pytest.fixture(scope="session", params=["llama", "gpt2", "lstm", "t5"])
def writer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LocalSubject:
    """Each kind of network that writes."""
    return LocalSubject(make(request.param, tokenizer), request.param)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[list[Row], str], Path]:
    def write(rows: list[Row], name: str = "set.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def questions() -> list[Row]:
    """Rows of a small multiple-choice set; answers of different lengths."""
    things = ["cat", "dog", "mat", "log", "犬", "Ärger"]
    return [
        {
            "question": f"What sat on the {things[i % 6]} number {i}" + " and sat there" * (i % 4) + "?",
            "choices": [f"the {things[(i + k) % 6]}" + " sat" * ((i + k) % 3) for k in range(2 + i % 3)],
            "answer": i % 2,
        }
        for i in range(60)
    ]
