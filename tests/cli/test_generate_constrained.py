"""`loquela generate --json-schema FILE` and `--regex PATTERN`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loquela as library
from loquela.errors import UsageError

Loquela = Callable[..., Any]


def test_json_that_fits_a_schema(loquela: Loquela, model_directory: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [["cat", 3], {"dog": true}]}')
    texts = set()
    for seed in range(6):
        done = loquela("generate", "-m", model_directory, "-p", "The", "--json-schema", schema, "--seed", seed)
        assert done.code == 0, done.err
        texts.add(json.dumps(json.loads(done.out)))
    assert texts <= {'["cat", 3]', '{"dog": true}'}


def test_text_that_matches(loquela: Loquela, model_directory: Path) -> None:
    done = loquela("generate", "-m", model_directory, "-p", "The", "--regex", "(cat|dog) [0-9]{3}", "--json", "--n", 3)
    choices = json.loads(done.out)["choices"]
    assert all(re.fullmatch("(cat|dog) [0-9]{3}", choice["text"]) for choice in choices)


def test_what_cannot_be(loquela: Loquela, model_directory: Path, tmp_path: Path) -> None:
    assert loquela("generate", "-m", model_directory, "-p", "a", "--regex", "(").code == 2
    assert loquela("generate", "-m", model_directory, "-p", "a", "--json-schema", tmp_path / "none").code == 1
    (tmp_path / "bad.json").write_text("[")
    done = loquela("generate", "-m", model_directory, "-p", "a", "--json-schema", tmp_path / "bad.json")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.strip().splitlines()) == 1


def test_in_python(model_directory: Path) -> None:
    model = library.load(model_directory)
    assert re.fullmatch("[ab]{2}", model.generate("The", regex="[ab]{2}").text)
    assert "".join(piece.text for piece in model.stream("The", regex="cat")) == "cat"
    with pytest.raises(UsageError, match="one constraint"):
        model.generate("The", regex="a", json_schema={})
