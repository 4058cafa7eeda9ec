"""A data set of the Hub named where a file could be."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from loquela.errors import DirectoryInUseError
from loquela.tuning.run import tune


def test_tuning_on_a_set_of_the_hub(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "red cat", "label": "warm"}, {"text": "blue dog", "label": "cold"}] * 10
    hashes = ["1a"]
    package = types.SimpleNamespace(
        load_dataset=lambda name, split, streaming: iter(rows),
        load_dataset_builder=lambda name: types.SimpleNamespace(hash=hashes[-1]),
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    said: list[str] = []
    recipe: dict[str, Any] = {"model": str(encoder), "data": "someone/colours", "output_dir": str(tmp_path / "out")}
    result = tune({**recipe, "max_steps": 2}, on_event=lambda e: said.append(getattr(e, "message", "")))
    assert "colours: 20 rows, format classification (text, label; detected)" in said
    assert result.steps == 2
    hashes.append("2b")
    with pytest.raises(DirectoryInUseError, match="someone/colours has changed since"):
        tune({**recipe, "max_steps": 2})
