"""What every method must keep to, on every architecture that it makes sense for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import CONFIGS, USUAL, make, scramble, tokens  # type: ignore[import-not-found]
from torch import Tensor

from loquela import peft
from loquela.checkpoint.rules import load_into, to_disk
from loquela.errors import UsageError
from loquela.models.base import Network

BOUND = 1e-5
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 3, "lora_alpha": 5}),
    "lora everywhere": ("lora", {"r": 2, "target_modules": "all-linear"}),
    "rslora": ("lora", {"r": 3, "use_rslora": True}),
    "dora": ("lora", {"r": 3, "use_dora": True}),
    "adapter": ("adapter", {"bottleneck_size": 3, "non_linearity": "gelu"}),
    "adapter beside the feed-forward": ("adapter", {"mh_adapter": False, "is_parallel": True, "bottleneck_size": 3}),
    "ia3": ("ia3", {}),
    "prompt": ("prompt", {"num_virtual_tokens": 3}),
    "prompt of the vocabulary": ("prompt", {"num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    "prefix": ("prefix", {"num_virtual_tokens": 4}),
    "biases": ("selective", {"tune": ["biases"]}),
    "norms": ("selective", {"tune": ["norms"]}),
    "embeddings": ("selective", {"tune": ["embeddings"]}),
    "attention": ("selective", {"tune": ["attention"]}),
    "cells": ("selective", {"tune": ["recurrent"]}),
    "last layer": ("selective", {"layers_to_transform": [-1]}),
}
MAKES_NO_SENSE = {
    (model, way)
    for model in ("lstm", "gru", "rnn")
    for way in SETTINGS
    if way in ("ia3", "prefix", "norms", "attention")
}
MAKES_NO_SENSE |= {(model, "cells") for model in CONFIGS if model not in ("lstm", "gru", "rnn")}
MAKES_NO_SENSE |= {(model, "prefix") for model in ("bert", "roberta", "distilbert")}
MAKES_NO_SENSE |= {
    (model, "biases")
    for model in "llama qwen3 phi3 t5 gemma3_text mixtral gemma2 mistral mt5 position_switch qwen3_moe smollm3".split()
}
"""Refused with a reason: no matrices to aim at, no blocks, no decoder, no biases."""
IN_CELLS = ("lora", "lora everywhere", "rslora", "dora", "biases", "cells", "last layer")
"""What changes the matrices of recurrent layers, which all rows of a batch share."""
SOFT = ("prompt", "prefix")
MODELS = [pytest.param(m, marks=() if m in USUAL else pytest.mark.soak) for m in sorted(CONFIGS)]
CASES = [
    pytest.param(model, way, marks=() if model in USUAL else pytest.mark.soak)
    for model in sorted(CONFIGS)
    for way in SETTINGS
    if (model, way) not in MAKES_NO_SENSE
]
every_case = pytest.mark.parametrize(("model", "way"), CASES)


def put(network: Network, way: str, name: str = "a", seed: int = 1, *, moved: bool = True) -> None:
    method, settings = SETTINGS[way]
    peft.attach(network, peft.config_for(method, **settings), name, seed)
    if moved:
        scramble(peft.trainable(network, name))


@torch.no_grad()
def run(network: Network, worn: Any, rows: int = 3, padding: Tensor | None = None) -> Tensor:
    ids = tokens(rows, 9)
    with peft.wearing(network, worn):
        if network.kind == "encoder-decoder":
            source = tokens(rows, 7, 1)
            return network(ids, source=source, source_padding=None if padding is None else padding[:, -7:])  # type: ignore[no-any-return]
        return network(ids, padding=padding)  # type: ignore[no-any-return]


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


@every_case
def test_the_base_stays_what_it_was(model: str, way: str) -> None:
    network, untouched = make(model), make(model)
    before, disk = run(network, None), to_disk(network)
    put(network, way)
    assert torch.equal(run(network, None), before)
    assert gap(run(network, "a"), before) > 1e-3
    assert torch.equal(run(network, None), before)
    assert list(network.state_dict()) == list(untouched.state_dict())
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in untouched.named_parameters()]
    assert network.parameter_count() == untouched.parameter_count()
    assert {k: v.tolist() for k, v in to_disk(network).items()} == {k: v.tolist() for k, v in disk.items()}
    load_into(network, to_disk(make(model, seed=7)))  # a base checkpoint still loads
    assert torch.equal(run(network, None), run(make(model, seed=7), None))
    peft.detach(network, "a")
    assert type(network) is type(untouched)
    assert [type(m) for m in network.modules()] == [type(m) for m in untouched.modules()]


@every_case
def test_at_the_start_nothing_is_changed(model: str, way: str) -> None:
    network = make(model)
    before = run(network, None)
    put(network, way, moved=False)
    if SETTINGS[way][0] not in SOFT:  # a soft prompt is more text, and changes what follows
        assert gap(run(network, "a"), before) <= BOUND
    put(network, way, "same seed", moved=False)
    assert torch.equal(run(network, "same seed"), run(network, "a"))


@every_case
def test_saved_and_restored_it_is_the_same(model: str, way: str, tmp_path: Path) -> None:
    network = make(model)
    put(network, way)
    expected = run(network, "a")
    peft.save_adapter(network, "a", tmp_path / "a", base="base")
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    other = make(model)
    peft.load_adapter(other, tmp_path / "a", "b")
    assert torch.equal(run(other, "b"), expected)
    assert peft.trainable(other, "b").keys() == peft.trainable(network, "a").keys()
    assert torch.equal(run(copy.deepcopy(other), "b"), expected)


@every_case
def test_only_it_is_trained(model: str, way: str) -> None:
    network = make(model).train()
    put(network, way)
    put(network, way, "other")
    run_before = run(network.eval(), None)
    own = peft.train_only(network.train(), "a")
    with peft.wearing(network, "a"):
        ids = tokens(3, 9)
        extra = {"source": tokens(3, 7, 1)} if network.kind == "encoder-decoder" else {}
        network(ids, **extra).square().mean().backward()
    for key, parameter in own.items():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached or "encoder" in key or "gate" in key, key  # padding rows of a position table get none
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(p.grad is None for p in peft.trainable(network, "other").values())
    with torch.no_grad():
        for parameter in own.values():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert gap(run(network.eval(), None), run_before) <= BOUND  # recurrent kernels differ with gradients


@every_case
def test_the_cache_gives_the_same(model: str, way: str) -> None:
    network = make(model)
    if network.kind == "encoder":
        pytest.skip("reads its text whole")
    put(network, way)
    expected = run(network, "a")
    ids, pieces = tokens(3, 9), []
    with torch.no_grad(), peft.wearing(network, "a"):
        if network.kind == "encoder-decoder":
            cache, _ = network.start(tokens(3, 7, 1))
        else:
            cache, _ = network.start(ids)
        for start, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
            pieces.append(network(ids[:, start:end], cache=cache))
    assert gap(torch.cat(pieces, dim=1), expected) <= BOUND


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("padded", [False, True])
def test_rows_wear_different_ones(model: str, padded: bool) -> None:
    network = make(model)
    shared = {  # what all rows go through together
        **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), ("last layer",)),
        **dict.fromkeys(("lstm", "gru", "rnn"), IN_CELLS),
    }.get(model, ())
    ways = [way for way in SETTINGS if (model, way) not in MAKES_NO_SENSE and way not in shared]
    names: list[str | None] = [*ways, None, ways[0]]
    for way in ways:
        put(network, way, way)
    padding = None
    if padded:
        padding = torch.ones(len(names), 9, dtype=torch.bool)
        for row in range(len(names)):
            padding[row, : row % 3] = False  # on the left, as prompts are
    if padded and model == "position_switch":  # ALiBi's distances
        with pytest.raises(UsageError, match="counts padding as distance"):
            run(network, names, len(names), padding)
        return
    mixed = run(network, names, len(names), padding)
    for row, name in enumerate(names):
        one = padding[row : row + 1] if padding is not None else None
        with torch.no_grad(), peft.wearing(network, name):
            ids = tokens(len(names), 9)[row : row + 1]
            if network.kind == "encoder-decoder":
                source = tokens(len(names), 7, 1)[row : row + 1]
                alone = network(ids, source=source, source_padding=None if one is None else one[:, -7:])[0]
                assert gap(mixed[row], alone) <= BOUND, name
                continue
            real = slice(None) if one is None else one[0]
            alone = network(ids[:, real])[0]
        assert gap(mixed[row][real], alone) <= BOUND, name


@pytest.mark.parametrize("model", ["gpt2", "llama", "gemma3_text", "lstm"])
def test_rows_wear_different_ones_through_the_cache(model: str) -> None:
    network = make(model)
    shared = IN_CELLS if model == "lstm" else ()
    ways = [way for way in SETTINGS if (model, way) not in MAKES_NO_SENSE and way not in shared]
    names: list[str | None] = [*ways, None]
    for way in ways:
        put(network, way, way)
    expected, ids, pieces = run(network, names, len(names)), tokens(len(names), 9), []
    with torch.no_grad(), peft.wearing(network, names):
        cache, _ = network.start(ids)
        for start, end in ((0, 5), (5, 6), (6, 9)):
            pieces.append(network(ids[:, start:end], cache=cache))
    assert gap(torch.cat(pieces, dim=1), expected) <= BOUND


@pytest.mark.parametrize("way", [way for way in IN_CELLS if way != "lora everywhere"])
def test_rows_share_recurrent_matrices(way: str) -> None:
    network = make("lstm")
    put(network, way)
    with pytest.raises(UsageError, match="shared by all rows of a batch"):
        run(network, ["a", None, "a"])
    assert gap(run(network, ["a"] * 3), run(network, "a")) == 0


@pytest.mark.parametrize("setting", ["lora_dropout", "lora_bias"])
def test_lora_of_recurrent_matrices_refuses_what_it_cannot_do(setting: str) -> None:
    config = peft.config_for("lora", **{setting: 0.1 if setting == "lora_dropout" else True})
    with pytest.raises(UsageError, match=f"{setting} must be off where recurrent layers"):
        peft.attach(make("gru"), config)


def test_a_layer_of_a_recurrent_stack_is_chosen_by_its_number() -> None:
    network = make("gru", num_hidden_layers=3)
    for wanted, number in ((-1, 2), ([0], 0)):
        peft.attach(network, peft.config_for("selective", layers_to_transform=wanted), str(number))
        leaves = {key.rpartition(".")[2] for key in peft.trainable(network, str(number))}
        assert leaves == {f"{kind}_l{number}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


@every_case
def test_merged_it_computes_the_same(model: str, way: str) -> None:
    network = make(model)
    put(network, way)
    worn, plain = run(network, "a"), run(network, None)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    can = SETTINGS[way][0] in ("lora", "ia3", "selective")
    if not can:
        with pytest.raises(UsageError, match="cannot be merged"):
            peft.merge(network, "a")
    else:
        peft.merge(network, "a")
        assert gap(run(network, None), worn) <= BOUND
        with pytest.raises(UsageError, match="merged already"):
            peft.merge(network, "a")
        with pytest.raises(UsageError, match="unmerged before"):
            peft.detach(network, "a")
        peft.unmerge(network, "a")
    assert torch.equal(run(network, None), plain)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize(("model", "way"), sorted(MAKES_NO_SENSE))
def test_what_makes_no_sense_is_refused(model: str, way: str) -> None:
    network = make(model)
    kinds = [type(module) for module in network.modules()]
    with pytest.raises(UsageError):
        put(network, way)
    assert [type(module) for module in network.modules()] == kinds
    assert peft.adapters(network) == {}


def test_every_method_is_held_to_it() -> None:
    assert sorted({method for method, _ in SETTINGS.values()}) == list(peft.METHODS)
