"""One base in memory; which adapter a call wears, and that none leaks into another call."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import make, scramble, tokens  # type: ignore[import-not-found]

from loquela import load, peft
from loquela.checkpoint.store import load_model
from loquela.errors import ConfigError, ContextWindowError, UsageError

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 3}),
    "bottleneck": ("adapter", {"bottleneck_size": 3}),
    "ia3": ("ia3", {}),
    "prompt": ("prompt", {"num_virtual_tokens": 4}),
    "prefix": ("prefix", {"num_virtual_tokens": 6}),
    "norms": ("selective", {"tune": ["norms"]}),
}
SETTINGS = {"max_new_tokens": 9, "temperature": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def places(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind for the tiny model."""
    network, root = load_model(model_directory).network, tmp_path_factory.mktemp("adapters")
    for name, (method, settings) in KINDS.items():
        peft.attach(network, peft.config_for(method, **settings), name, seed=len(name))
        scramble(peft.trainable(network, name), 0.4)
        peft.save_adapter(network, name, root / name, base=str(model_directory))
    return {name: root / name for name in KINDS}


def test_one_base_wears_what_each_call_says(model_directory: Path, places: dict[str, Path]) -> None:
    model, bare = load(model_directory, adapter=places), load(model_directory)
    assert model.adapters == tuple(KINDS)
    assert model.generate("The cat", **SETTINGS) == bare.generate("The cat", **SETTINGS)
    alone = {
        name: load(model_directory, adapter=place).generate("The cat", **SETTINGS) for name, place in places.items()
    }
    assert len({completion.text for completion in alone.values()} | {bare.generate("The cat", **SETTINGS).text}) > 4
    names: list[str | None] = [*KINDS, None]
    together = model.generate(["The cat"] * len(names), adapter=names, **SETTINGS)
    for name, completion in zip(names, together, strict=True):
        assert completion.text == (bare.generate("The cat", **SETTINGS) if name is None else alone[name]).text
    ids = [[5, 9, 200]] * len(names)
    mixed = model.logits(ids, adapter=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], model.logits(ids[0], adapter=name)[0], atol=1e-5, rtol=1e-5)
    assert model.score("The cat sat", adapter="lora").log_prob != model.score("The cat sat").log_prob
    assert not torch.equal(model.embed("The cat", adapter="prefix"), model.embed("The cat"))


def test_one_adapter_is_worn_unless_a_call_says_otherwise(model_directory: Path, places: dict[str, Path]) -> None:
    model, bare = load(model_directory, adapter=places["lora"]), load(model_directory)
    assert not torch.equal(model.logits([1, 2]), bare.logits([1, 2]))
    assert torch.equal(model.logits([1, 2], adapter=None), bare.logits([1, 2]))
    with model.wearing():
        assert torch.equal(model.network(torch.tensor([[1, 2]])).detach(), model.logits([1, 2]))


def test_streams_side_by_side_do_not_change_each_others_clothes(model_directory: Path, places: dict[str, Path]) -> None:
    model = load(model_directory, adapter=places)
    expected = {name: model.generate("The dog", adapter=name, **SETTINGS).text for name in KINDS}
    streams = {name: model.stream("The dog", adapter=name, **SETTINGS) for name in KINDS}
    texts = dict.fromkeys(KINDS, "")
    plain = model.logits([3, 4])
    while streams:
        for name in list(streams):
            piece = next(streams[name], None)
            if piece is None:
                del streams[name]
            else:
                texts[name] += piece.text
            assert torch.equal(model.logits([3, 4]), plain)
    assert texts == expected


def test_threads_take_turns(model_directory: Path, places: dict[str, Path]) -> None:
    model = load(model_directory, adapter=places)
    expected = {name: model.logits([3, 4, 5], adapter=name) for name in KINDS}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(15):
            if not torch.equal(model.logits([3, 4, 5], adapter=name), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_soft_prompt_takes_its_part_of_the_window(name: str, model_directory: Path, places: dict[str, Path]) -> None:
    model, virtual = load(model_directory, adapter=places), KINDS[name][1]["num_virtual_tokens"]
    assert peft.virtual_tokens(model.network, [name, None]) == virtual
    model.logits([1] * (64 - virtual), adapter=name)
    with pytest.raises(ContextWindowError, match=str(64 - virtual)):
        model.logits([1] * (65 - virtual), adapter=name)
    done = model.generate("The", adapter=name, max_new_tokens=100, truncate=True)
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 64 - virtual
    assert (
        model.generate("The", max_new_tokens=100, truncate=True).usage.completion_tokens > done.usage.completion_tokens
    )
    beams = model.generate("The cat", adapter=name, max_new_tokens=4, num_beams=3)
    assert beams == load(model_directory, adapter=places[name]).generate("The cat", max_new_tokens=4, num_beams=3)


def test_what_an_adapter_learns_shows_at_once() -> None:
    network = make("llama")
    peft.attach(network, peft.config_for("prompt", num_virtual_tokens=3), "p")
    ids = tokens(2, 5)
    with torch.no_grad(), peft.wearing(network, "p"):
        before = network(ids)
    own = peft.train_only(network, "p")
    optimizer = torch.optim.AdamW(own.values(), 0.1, fused=True)
    with peft.wearing(network, "p"):
        network(ids).square().mean().backward()
    optimizer.step()
    with torch.no_grad(), peft.wearing(network, "p"):
        assert not torch.equal(network(ids), before)


def test_a_prompt_from_a_text_starts_as_its_tokens(model_directory: Path) -> None:
    loaded = load_model(model_directory)
    config = peft.config_for(
        "prompt", num_virtual_tokens=5, prompt_tuning_init="TEXT", prompt_tuning_init_text="The dog sat"
    )
    with pytest.raises(UsageError, match="tokenizer"):
        peft.attach(loaded.network, config, "p")
    peft.attach(loaded.network, config, "p", tokenizer=loaded.tokenizer)
    assert loaded.tokenizer is not None
    ids = (loaded.tokenizer.encode("The dog sat") * 5)[:5]
    text = torch.tensor([[*ids, 7, 8]])
    with torch.no_grad(), peft.wearing(loaded.network, "p"):
        worn = loaded.network(text[:, 5:])
    with torch.no_grad(), peft.wearing(loaded.network, None):
        torch.testing.assert_close(worn, loaded.network(text)[:, 5:], atol=1e-5, rtol=1e-5)


def test_wrong_calls_say_what_is_right(model_directory: Path, places: dict[str, Path]) -> None:
    model = load(model_directory, adapter=places)
    with pytest.raises(UsageError, match="did you mean 'prefix'"):
        model.logits([1], adapter="prefx")
    with pytest.raises(UsageError, match="worn by 3 rows"):
        model.logits([[1], [2]], adapter=["lora", None, "ia3"])
    with pytest.raises(UsageError, match="2 have 1"):
        model.generate(["a", "b"], adapter=["lora"])
    with pytest.raises(UsageError, match="did you mean 'lora_alpha'"):
        peft.config_for("lora", lora_alfa=3)
    with pytest.raises(UsageError, match="did you mean 'lora'"):
        peft.config_for("lorra")
    with pytest.raises(ConfigError, match="r of an adapter"):
        peft.config_for("lora", r=0)
    with pytest.raises(UsageError, match="must be a new one"):
        peft.attach(model.network, peft.config_for("lora"), "lora")
    with pytest.raises(UsageError, match="such as"):
        peft.attach(model.network, peft.config_for("lora", target_modules=["query"]), "new")
    cache = model.network.new_cache()
    with torch.no_grad(), peft.wearing(model.network, "prompt"):
        model.network(tokens(1, 3), cache=cache)
    with torch.no_grad(), pytest.raises(UsageError, match="begun with a soft prompt"):
        model.network(tokens(1, 3), cache=cache)
    with peft.wearing(model.network, "lora"), pytest.raises(UsageError, match="nothing is worn"):
        peft.detach(model.network, "lora")
