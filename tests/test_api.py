"""The Python API on a small model directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loquela.api import LanguageModel, load
from loquela.checkpoint.sentence import Pooling
from loquela.checkpoint.store import save_model
from loquela.errors import ContextWindowError, LoquelaError, TokenizerError, UsageError
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer

TEXTS = ["The cat sat", "The dog", "", "The cat sat on the mat; the dog sat on the log."]


def tiny(model_type: str, vocab_size: int) -> Network:
    fields = {
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    }[model_type]
    module = architecture(model_type)
    torch.manual_seed(5)  # for what keeps the values that torch itself draws
    network: Network = module.NETWORK(
        module.CONFIG.from_dict({"model_type": model_type, "vocab_size": vocab_size, **fields})
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    return network


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train("bpe", ["The cat sat on the mat; the dog sat on the log.\n" * 20], 280)
    path = tmp_path_factory.mktemp("models") / request.param
    save_model(tiny(request.param, tokenizer.vocab_size), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> LanguageModel:
    return load(directory)


def test_a_list_gives_each_prompt_what_it_gets_alone(model: LanguageModel) -> None:
    wanted = {"max_new_tokens": 20, "temperature": 1.3, "seed": 2}
    together = model.generate(TEXTS, **wanted)
    assert together == [model.generate(text, **wanted) for text in TEXTS]
    assert model.generate(TEXTS[::-1], **wanted) == together[::-1]
    assert len({completion.text for completion in together}) == len(TEXTS)
    assert model.generate([], **wanted) == []


def test_n_gives_a_list_whose_first_is_the_one(model: LanguageModel) -> None:
    wanted = {"max_new_tokens": 20, "temperature": 1.3}
    assert model.generate("The", n=3, **wanted)[0] == model.generate("The", **wanted)
    flat = model.generate(["The", "A"], n=3, **wanted)
    assert len(flat) == 6
    assert flat[3] == model.generate("A", **wanted)


def test_a_stream_is_the_completion_with_alternatives(model: LanguageModel) -> None:
    pieces = list(model.stream("The cat", max_new_tokens=9, seed=1))
    completion = model.generate("The cat", max_new_tokens=9, seed=1, top=5)
    assert tuple(pieces) == completion.tokens
    assert all(len(piece.top) == 5 for piece in pieces)
    assert list(model.stream(model.tokenizer.encode("The cat"), max_new_tokens=9, seed=1)) == pieces
    row = model.logits(model.tokenizer.encode("The cat"))[0, -1].double().log_softmax(-1)
    assert pieces[0].log_prob == pytest.approx(row[pieces[0].id].item(), abs=1e-5)


def test_logits_hidden_and_their_shapes(model: LanguageModel) -> None:
    rows = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits, hidden = model.logits(rows), model.hidden(rows.tolist())
    assert logits.shape == (2, 3, model.network.vocab_size)
    assert hidden.shape == (2, 3, 32)
    torch.testing.assert_close(model.network.head(hidden), logits)
    torch.testing.assert_close(model.logits([1, 2, 3]), logits[:1])
    assert not logits.requires_grad


def test_ids_that_cannot_be_are_said(model: LanguageModel) -> None:
    vocab = model.network.vocab_size
    for ids, words in (
        ([[1, 2], [3]], "one length"),
        ([], "whole numbers"),
        ([0.5], "whole numbers"),
        ([vocab], f"from 0 to {vocab - 1}, but one is {vocab}"),
        ([-1], "but one is -1"),
    ):
        with pytest.raises(UsageError, match=words):
            model.logits(ids)  # type: ignore[arg-type]
    with pytest.raises(ContextWindowError, match="64 tokens, but are 65"):
        model.logits([1] * 65)


def test_a_score(model: LanguageModel) -> None:
    ids = model.tokenizer.encode(TEXTS[3])
    rows = model.logits(ids)[0].double().log_softmax(-1)
    expected = sum(rows[i, token].item() for i, token in enumerate(ids[1:]))
    assert model.score(TEXTS[3]).log_prob == pytest.approx(expected, rel=1e-5)


def test_vectors_do_not_depend_on_neighbours(model: LanguageModel) -> None:
    texts = [text for text in TEXTS if text]
    vectors = model.embed(texts)
    assert vectors.shape == (3, 32)
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(model.embed([text])[0], vector)
        torch.testing.assert_close(model.hidden(model.tokenizer.encode(text))[0].mean(0), vector)


def test_a_directory_that_says_how_a_text_becomes_a_vector(model: LanguageModel, tmp_path: Path) -> None:
    taught = LanguageModel(model.network, model.tokenizer, pooling=Pooling(("max",), normalise=True))
    vector = taught.embed("The cat")[0]
    hidden = model.hidden(model.tokenizer.encode("The cat"))[0]
    torch.testing.assert_close(vector, torch.nn.functional.normalize(hidden.max(0).values, dim=0))
    taught.save(tmp_path / "copy")
    torch.testing.assert_close(load(tmp_path / "copy").embed("The cat")[0], vector)


def test_what_the_authors_say_about_generation(directory: Path, tmp_path: Path) -> None:
    model = load(directory)
    plain = model.generate("The cat", max_new_tokens=20, temperature=0)
    end = plain.tokens[-2].id
    model.generation_config = {"temperature": 0.6, "top_k": 7, "do_sample": False, "eos_token_id": [end, 0]}
    settings = model.settings()
    assert (settings.temperature, settings.top_k) == (0.0, 7)
    assert model.settings(temperature=0.9).temperature == 0.9
    assert model.settings(do_sample=True).temperature == 0.6
    assert model.settings(top_k=3).top_k == 3
    ended = model.generate("The cat", max_new_tokens=20)
    assert ended.finish_reason == "stop"
    assert [piece.id for piece in ended.tokens] == [p.id for p in plain.tokens][: len(ended.tokens)]
    model.save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["top_k"] == 7
    assert load(tmp_path / "copy").generate("The cat", max_new_tokens=20) == ended


def test_saved_and_loaded_it_is_the_same(model: LanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.generate("The cat") == model.generate("The cat")
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    exact = load(tmp_path / "copy", dtype="float64").logits([1, 2])
    assert torch.equal(load(tmp_path / "copy", dtype=torch.float64).logits([1, 2]), exact)
    torch.testing.assert_close(exact.float(), model.logits([1, 2]))


def test_what_is_not_there_is_said(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(LoquelaError, match="an adapter must be a directory"):
        load(directory, adapter="some/dir")
    bare = LanguageModel(tiny("llama", 50))
    assert bare.logits([1]).shape == (1, 1, 50)
    assert bare.end_ids == frozenset()
    with pytest.raises(TokenizerError, match="directory has none"):
        bare.generate("The")
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        load(directory).generate("The", temprature=1)


def test_an_encoder_decoder_reads_a_source_and_a_target() -> None:
    model = load("translator")
    source, start = model.tokenizer.encode_batch(["Good night."] * 2), model.network.start_token_id
    target = [[start, 5, 6, 7], [start, 8, 9, 4]]
    logits, hidden = model.logits(source, target), model.hidden(source, target)
    assert logits.shape == (2, 4, model.network.vocab_size)
    torch.testing.assert_close(model.network.head(hidden), logits)
    assert not logits.requires_grad
    torch.testing.assert_close(model.logits(source[0], target[0]), logits[:1])
    said = model.generate("Good night.", max_new_tokens=1, temperature=0).tokens[0]
    assert logits[0, 0].argmax() == said.id, "the first logits are those of the first token that it writes"
    read = model.hidden(source)
    assert read.shape == (2, len(source[0]), model.network.dim)
    torch.testing.assert_close(model.embed("Good night.")[0], read[0].mean(0))
    with pytest.raises(UsageError, match="needs a target beside its source"):
        model.logits(source)
    with pytest.raises(UsageError, match="as many targets as sources, 2, but there are 1"):
        model.logits(source, target[0])
    rounded = load("translator", quantize="int8")
    assert rounded.logits(source, target).shape == logits.shape
    with pytest.raises(UsageError, match="load the model without quantize"):
        rounded.hidden(source)
    with pytest.raises(UsageError, match="leave the target out"):
        load("stories").logits([1, 2], [3])


def test_an_encoder_is_not_asked_to_write() -> None:
    cloze = load("cloze")
    for ask in cloze.generate, cloze.stream:
        with pytest.raises(UsageError, match="for a model that writes, but bert reads a text whole"):
            ask("The [MASK] sat.")
