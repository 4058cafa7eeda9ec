"""`loquela generate` with a masked language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loquela as loquela_api
from loquela.checkpoint.store import save_model
from loquela.models.base import architecture
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "the cat sat on the mat and the dog sat on the log"
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = Tokenizer.train("wordpiece", [text], 60, special_tokens=special)
    module = architecture("bert")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    network = module.NETWORK(module.CONFIG.from_dict({"vocab_size": tokenizer.vocab_size, **shape}))
    network.initialise()
    directory = tmp_path_factory.mktemp("models") / "masked"
    save_model(network, tokenizer, directory)
    return directory


def test_masks_are_filled(loquela: Run, masked: Path) -> None:
    done = loquela("generate", "-m", masked, "-p", "the [MASK] sat on the [MASK]", "--top", 2)
    assert done.code == 0
    assert "[MASK]" not in done.out
    assert done.out.count("\n") == 1
    assert [line[:7] for line in done.err.splitlines()] == ["mask 1:", "mask 2:"]
    result = json.loads(
        loquela("generate", "-m", masked, "--json", "--top", 2, stdin="the [MASK] sat on the [MASK]\n").out
    )
    assert result["text"] == done.out.rstrip("\n")
    assert [len(token["top"]) for token in result["tokens"]] == [2, 2]


def test_what_makes_no_sense_says_so(loquela: Run, masked: Path) -> None:
    code, out, err = loquela("generate", "-m", masked, "-p", "the cat")
    assert (code, out) == (1, "")
    assert "mask token [MASK]" in err
    code, out, err = loquela("generate", "-m", masked, "-p", "the [MASK]", "--temperature", 0.5)
    assert (code, out) == (2, "")
    assert "temperature has no effect" in err


@pytest.fixture(scope="module")
def tagger(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = loquela_api.load(masked)
    assert isinstance(model.network, EncoderOnly)
    directory = tmp_path_factory.mktemp("models") / "tagger"
    save_model(model.network.for_task("token-classification", ["O", "B-PET"]), model.tokenizer, directory)
    return directory


def test_words_are_printed_with_their_tags(loquela: Run, tagger: Path) -> None:
    done = loquela("generate", "-m", tagger, "-p", "the cat, and the dog")
    assert done.code == 0
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [word for word, _ in lines] == ["the", "cat", ",", "and", "the", "dog"]
    found = loquela_api.load(tagger).tag("the cat, and the dog")
    assert [tag for _, tag in lines] == [one.tag for one in found]
    result = json.loads(loquela("generate", "-m", tagger, "--json", stdin="the cat, and the dog\n").out)
    assert result["words"] == [{"word": one.word, "tag": one.tag, "log_prob": one.log_prob} for one in found]
    refused = loquela("generate", "-m", tagger, "-p", "the cat", "--temperature", 1)
    assert refused.code == 2
    assert "labels words" in refused.err
    assert [one.tag for one in loquela_api.load(tagger).tag(["the", "cat"])]
