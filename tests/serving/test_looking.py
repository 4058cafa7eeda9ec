"""Whoever looks at the network keeps nobody waiting, is not heard by others, and sees the same bits."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import loquela
from loquela import peft
from loquela.api import LanguageModel
from loquela.checkpoint import house
from loquela.checkpoint.store import load_model
from loquela.cli.rounding import round_model
from loquela.errors import BusyError, UnavailableError
from loquela.inspection import PICTURES
from loquela.inspection.watch import watch
from loquela.serving.looking import Looking, twin
from loquela.serving.unrounded import unrounded

Running = Any  # conftest.Running
METHODS = ("lora", "prompt", "prefix", "adapter", "ia3")
TEXT = "The cat sat on the mat; the dog sat on the log."


def dressed(directory: Path) -> LanguageModel:
    """A model with an adapter of each kind."""
    model = loquela.load(directory)
    for number, method in enumerate(METHODS):
        given = {"num_virtual_tokens": 3} if method in ("prompt", "prefix") else {}
        drawn = {"init_lora_weights": False} if method == "lora" else {}
        adapter = peft.attach(model.network, peft.config_for(method, **given, **drawn), method, seed=number)
        with torch.no_grad():
            for _, tensor in adapter.tensors():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    return model


def test_a_twin_shares_every_tensor_and_nothing_that_is_worn(model_directory: Path) -> None:
    model = dressed(model_directory)
    made = twin(model.network)
    assert [p.data_ptr() for p in made.parameters()] == [p.data_ptr() for p in model.network.parameters()]
    ids = torch.tensor([model.tokenizer.encode(TEXT)])
    base = model.network(ids)
    for method in METHODS:
        with peft.wearing(model.network, method):
            own = model.network(ids)
            assert torch.equal(made(ids), base), "what is worn here is not worn there"
        assert not torch.equal(own, base)
        with peft.wearing(made, method):
            assert torch.equal(made(ids), own)
            assert torch.equal(model.network(ids), base)
    layers = "decoder.layers.*"
    with watch(made, layers, f"{layers}.attention:weights") as seen:
        model.network(ids)
        assert not any(seen.values())
        made(ids)
        assert all(len(kept) == 1 for kept in seen.values())


@pytest.mark.parametrize("picture", ["attention", "lens", "next", "embeddings", "attribution"])
def test_a_picture_is_the_same_as_in_this_process(
    start: Callable[..., Running], model_directory: Path, tuned: dict[str, Path], picture: str
) -> None:
    server = start(model_directory, adapters=tuned)
    ids = server.served.model.tokenizer.encode(TEXT)
    body = {"picture": picture, "prompt": ids, "model": "tuned"}
    with ThreadPoolExecutor(4) as crowd:  # others write with the base and another adapter meanwhile
        written = [
            crowd.submit(
                httpx.post,
                f"{server.url}/v1/completions",
                json={"prompt": "The", "max_tokens": 60, "seed": 1, "model": ("tiny", "soft")[n % 2]},
                timeout=120,
            )
            for n in range(8)
        ]
        answer = httpx.post(f"{server.url}/inside/picture", json=body, timeout=120).json()
    texts = {(n % 2, one.result().json()["choices"][0]["text"]) for n, one in enumerate(written)}
    assert len(texts) == 2
    model = loquela.load(model_directory, adapter={"tuned": tuned["tuned"]})
    figures = PICTURES[picture].figures(PICTURES[picture].data(model, ids, adapter="tuned"))
    assert answer["figures"] == {name: json.loads(figure.to_json()) for name, figure in figures.items()}


@pytest.fixture(scope="module")
def tuned(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    network = load_model(model_directory).network
    found = {}
    for name, config in (
        ("tuned", peft.config_for("lora", r=2, init_lora_weights=False)),
        ("soft", peft.config_for("prompt", num_virtual_tokens=3)),
    ):
        peft.attach(network, config, name, seed=7)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        peft.save_adapter(network, name, found[name], base=str(model_directory))
    return found


def held_up(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let pictures of attention stand still; return what says that one has begun, and what lets it go on."""
    begun, gate = threading.Event(), threading.Event()
    module, plain = PICTURES["attention"].module, PICTURES["attention"].module.data

    def slow(*args: Any, **options: Any) -> Any:
        begun.set()
        assert gate.wait(60)
        return plain(*args, **options)

    monkeypatch.setattr(module, "data", slow)
    return begun, gate


def test_tokens_flow_while_a_slow_picture_is_computed(
    start: Callable[..., Running], model_directory: Path, tuned: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture stands still until texts of every kind, other looks and an unloaded adapter have gone through."""
    server = start(model_directory, adapters=tuned, admin_key="administrator")
    begun, gate = held_up(monkeypatch)
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(1) as aside:
        body = {"picture": "attention", "prompt": TEXT, "model": "tuned"}
        drawn = aside.submit(httpx.post, f"{server.url}/inside/picture", json=body, timeout=120)
        assert begun.wait(60)
        try:
            for name in ("tiny", "tuned", "soft"):
                asked = {"prompt": "The cat", "max_tokens": 20, "model": name, "stream": name == "soft"}
                assert client.post("/v1/completions", json=asked).status_code == 200
                assert client.post("/inside/logits", json={"prompt": "The", "model": name}).status_code == 200
            assert client.post("/v1/embeddings", json={"input": ["a", "b"]}).status_code == 200
            key = {"Authorization": "Bearer administrator"}
            gone = client.post("/v1/unload_lora_adapter", json={"lora_name": "soft"}, headers=key)
            assert gone.status_code == 200, gone.text
            assert not drawn.done()
        finally:
            gate.set()
        assert set(drawn.result().json()["figures"]) >= {"grid", "map"}
        assert client.post("/inside/logits", json={"prompt": "The", "model": "soft"}).status_code == 404


def test_no_more_wait_than_may_and_none_after_the_end(model_directory: Path) -> None:
    looking = Looking(loquela.load(model_directory), 2, lambda job: pytest.fail("it has a twin"))
    gate, begun = threading.Event(), threading.Event()
    first = looking.call(lambda model: (begun.set(), gate.wait(30)))
    assert begun.wait(30)
    later = [looking.call(lambda model: 1) for _ in range(2)]
    with pytest.raises(BusyError):
        looking.call(lambda model: 1)
    later[0].cancel()
    looking.close()
    gate.set()
    first.result(30)
    with pytest.raises(UnavailableError):
        later[1].result(30)
    with pytest.raises(UnavailableError):
        looking.call(lambda model: 1)


@pytest.mark.parametrize(("width", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("name", ["stories", "translator", "mixture"])
def test_what_is_looked_into_has_the_weights_of_few_bits(
    name: str, width: Any, bits: int, mixture_directory: Path
) -> None:
    """What parts it from the engine is the rounding of activations: about a percent of the logits' size, more where the
    weights are drawn at random."""
    directory = mixture_directory if name == "mixture" else house.HOUSE / name
    rounded = loquela.load(directory, quantize=width)
    ids = rounded.tokenizer.encode(TEXT)
    given = (ids, rounded.tokenizer.encode("El gato")) if rounded.network.kind == "encoder-decoder" else (ids,)
    seen = LanguageModel(unrounded(directory, bits, {}), rounded.tokenizer)
    wanted, plain = rounded.logits(*given), loquela.load(directory, engine="torch").logits(*given)
    apart = [float((one - wanted).norm() / wanted.norm()) for one in (seen.logits(*given), plain)]
    assert 0 < apart[0] < (0.04 if name == "mixture" else 0.02), apart
    assert apart[0] < apart[1] / (4 if bits == 4 else 1), apart


def test_codes_in_a_file_are_the_weights_that_are_seen(tmp_path: Path) -> None:
    round_model(house.HOUSE / "stories", tmp_path / "four", "int4", None)
    there, here = (unrounded(place, 4, {}).state_dict() for place in (tmp_path / "four", house.HOUSE / "stories"))
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())


def test_rounded_weights_are_looked_into_beside_those_who_write(
    start: Callable[..., Running], model_directory: Path, tuned: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(model_directory, quantize="int8", adapters=tuned, admin_key="administrator")
    ids = server.served.model.tokenizer.encode(TEXT)
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(1) as aside:
        about = client.get("/inside/about").json()
        assert about["parameters"] == load_model(model_directory).network.parameter_count()
        begun, gate = held_up(monkeypatch)
        body = {"picture": "attention", "prompt": ids, "model": "tuned"}
        drawn = aside.submit(httpx.post, f"{server.url}/inside/picture", json=body, timeout=120)
        assert begun.wait(60)
        try:
            for name in ("tiny", "tuned", "soft"):
                assert client.post("/v1/completions", json={"prompt": "The", "model": name}).status_code == 200
                assert client.post("/inside/logits", json={"prompt": "The", "model": name}).status_code == 200
            key = {"Authorization": "Bearer administrator"}
            gone = client.post("/v1/unload_lora_adapter", json={"lora_name": "soft"}, headers=key)
            assert gone.status_code == 200, gone.text
            assert not drawn.done()
        finally:
            gate.set()
        network = unrounded(model_directory, 8, {"tuned": tuned["tuned"]})
        seen = LanguageModel(network, server.served.model.tokenizer)
        figures = PICTURES["attention"].figures(PICTURES["attention"].data(seen, ids, adapter="tuned"))
        assert drawn.result().json()["figures"] == {name: json.loads(one.to_json()) for name, one in figures.items()}
        again = client.post("/inside/picture", json=body | {"model": "soft"})
        assert again.status_code == 404


def test_what_was_made_to_be_looked_into_is_dropped_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loquela.serving.looking.IDLE_SECONDS", 0.05)
    made: list[weakref.ref[Any]] = []

    def make() -> Any:
        network = unrounded(house.HOUSE / "stories", 8, {})
        made.append(weakref.ref(network))
        return network

    model = loquela.load(house.HOUSE / "stories", quantize="int8")
    looking = Looking(model, 2, lambda job: pytest.fail("there is something to look into"), make)
    for count in (1, 2):
        assert looking.call(lambda seen: seen.network.parameter_count()).result(60) == 2_828_736
        end = time.monotonic() + 30
        while made[-1]() is not None:
            assert time.monotonic() < end
            gc.collect()
            time.sleep(0.05)
        assert len(made) == count
    looking.close()


def test_a_huge_network_of_few_bits_is_looked_at_between_two_steps(
    start: Callable[..., Running], model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loquela.serving.state._MOST_LOOKED_INTO", 1000)
    server = start(model_directory, quantize="int8")
    with httpx.Client(base_url=server.url, timeout=120) as client:
        assert client.post("/inside/logits", json={"prompt": "The cat"}).status_code == 200
        told = client.post("/inside/picture", json={"picture": "attention", "prompt": "The cat"})
        assert told.status_code == 400
        assert "unavailable" in told.json()["error"]["message"]


def test_words_are_labelled_as_by_the_library(start: Callable[..., Running], tagger_directory: Path) -> None:
    server = start(tagger_directory)
    texts = ["The cat sat on the mat. \U0001f408 Ärger", "the dog"]
    answer = httpx.post(f"{server.url}/inside/classify", json={"input": texts}, timeout=120).json()
    assert answer["labels"] == ["O", "B-PER", "I-PER", "B-LOC"]
    assert answer["probabilities"] is None
    model = loquela.load(tagger_directory)
    for text, words in zip(texts, answer["words"], strict=True):
        assert [text[one["start"] : one["end"]] for one in words] == [one["word"] for one in words]
        assert [(one["word"], one["label"]) for one in words] == [(one.word, one.tag) for one in model.tag(text)]
        assert all(0 <= one["probability"] <= 1 for one in words)
