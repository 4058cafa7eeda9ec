"""Adapters by name: loaded and dropped while others are served, each with what it gives in the library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import loquela
from loquela import peft

Running = Any  # conftest.Running
ADMIN = "an-admin-key-of-32-characters-012"
KEY = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def adapters(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    network = loquela.load(model_directory).network
    generator = torch.Generator().manual_seed(5)
    for name, method, settings in (
        ("low", "lora", {"r": 4}),
        ("soft", "prompt", {"num_virtual_tokens": 7}),
        ("ahead", "prefix", {"num_virtual_tokens": 4}),
    ):
        peft.attach(network, peft.config_for(method, **settings), name, seed=0)
        with torch.no_grad():
            for parameter in peft.trainable(network, name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        peft.save_adapter(network, name, place / name, base=str(model_directory))
    (place / "low" / "chat_template.jinja").write_text("LOW {{ messages[-1]['content'] }}")
    return {name: place / name for name in ("low", "soft", "ahead")}


@pytest.fixture(scope="module")
def http(
    start: Callable[..., Running], model_directory: Path, adapters: dict[str, Path]
) -> Iterator[tuple[httpx.Client, Running]]:
    given = {name: adapters[name] for name in ("low", "soft")}
    server = start(model_directory, engine="torch", adapters=given, admin_key=ADMIN)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client, server


def text(client: httpx.Client, model: str | None, seed: int = 0) -> str:
    body = {"model": model, "prompt": "The cat", "max_tokens": 20, "seed": seed}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_each_gives_what_it_gives_alone(
    http: tuple[httpx.Client, Running], model_directory: Path, adapters: dict[str, Path]
) -> None:
    client, _ = http
    model = loquela.load(model_directory, adapter=adapters)
    expected = {
        (name, seed): model.generate(
            "The cat", adapter=name, max_new_tokens=20, seed=seed, temperature=1.0, top_k=0
        ).text
        for name in (None, "low", "soft")
        for seed in range(4)
    }
    found: dict[Any, str] = {}

    def ask(name: str | None, seed: int) -> None:
        found[name, seed] = text(client, name, seed)

    threads = [threading.Thread(target=ask, args=pair) for pair in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert len(set(expected.values())) == len(expected)
    vectors = [
        client.post("/v1/embeddings", json={"model": name, "input": "The cat"}).json()["data"][0]["embedding"]
        for name in ("tiny", "low", "soft")
    ]
    for name, vector in zip((None, "low", "soft"), vectors, strict=True):
        torch.testing.assert_close(torch.tensor([vector]), model.embed("The cat", adapter=name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_in_one_batch_of_the_compiled_engine(
    quantize: Any, start: Callable[..., Running], model_directory: Path, adapters: dict[str, Path]
) -> None:
    """Two are there from the start, one is loaded later; all write beside each other what the library writes."""
    given = {name: adapters[name] for name in ("low", "soft")}
    server = start(model_directory, engine="compiled", quantize=quantize, adapters=given, admin_key=ADMIN)
    model = loquela.load(model_directory, adapter=adapters, engine="compiled", quantize=quantize)
    expected = {
        name: model.generate("The cat", adapter=name, max_new_tokens=20, seed=0, temperature=1.0, top_k=0).text
        for name in (None, *adapters)
    }
    found: dict[str | None, str] = {}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"lora_name": "ahead", "lora_path": str(adapters["ahead"])}
        assert client.post("/v1/load_lora_adapter", json=body, headers=KEY).status_code == 200
        threads = [threading.Thread(target=lambda n=name: found.update({n: text(client, n)})) for name in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected
        assert len(set(expected.values())) == len(expected)
        gone = client.post("/v1/unload_lora_adapter", json={"lora_name": "ahead"}, headers=KEY)
        assert gone.status_code == 200, gone.text
        assert "ahead" not in {card["id"] for card in client.get("/v1/models").json()["data"]}


def test_the_list_says_whose_they_are(http: tuple[httpx.Client, Running]) -> None:
    client, _ = http
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert {"tiny", "low", "soft"} <= cards.keys()
    assert cards["low"]["parent"] == "tiny"
    assert cards["soft"]["max_model_len"] == cards["tiny"]["max_model_len"] - 7


def test_an_adapter_speaks_by_its_own_template(http: tuple[httpx.Client, Running]) -> None:
    client, _ = http
    for name, prompt in (("low", "LOW Hi"), ("soft", "<user>Hi\n<assistant>")):
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
        tokens = client.post("/tokenize", json=body).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == prompt


def test_loaded_and_dropped_while_others_write(
    http: tuple[httpx.Client, Running], model_directory: Path, adapters: dict[str, Path]
) -> None:
    client, server = http
    before = text(client, "low")
    long = {"model": "low", "prompt": "The", "max_tokens": 400, "stream": True, "logit_bias": {"0": -100}}
    with client.stream("POST", "/v1/completions", json=long) as stream:
        lines = stream.iter_lines()
        next(lines)
        body = {"lora_name": "ahead", "lora_path": str(adapters["ahead"])}
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 401
        assert client.post("/v1/load_lora_adapter", json=body, headers=KEY).status_code == 200
        assert client.post("/v1/load_lora_adapter", json=body, headers=KEY).status_code == 400  # the name is taken
        model = loquela.load(model_directory, adapter=adapters)
        wanted = model.generate("The cat", adapter="ahead", max_new_tokens=20, seed=0, temperature=1.0, top_k=0).text
        assert text(client, "ahead") == wanted
        assert next(lines) == ""  # the other one still writes
    dropped = client.post("/v1/unload_lora_adapter", json={"lora_name": "ahead"}, headers=KEY)
    assert dropped.status_code == 200, dropped.text
    assert client.post("/v1/completions", json={"model": "ahead", "prompt": "a"}).status_code == 404
    for body in ({"lora_name": "tiny"}, {"lora_name": "ahead"}):
        assert client.post("/v1/unload_lora_adapter", json=body, headers=KEY).status_code in (400, 404)
    missing = client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/nowhere"}, headers=KEY)
    assert missing.status_code == 400
    assert text(client, "low") == before
    assert server.served.scheduler.state()["waiting"] == 0
