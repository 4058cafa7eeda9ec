"""Several adapters joined into one, and merging where weights are tied."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import make, scramble, tokens  # type: ignore[import-not-found]
from torch import Tensor

from loquela import peft
from loquela.errors import UsageError
from loquela.models.base import Network
from loquela.peft.attaching import adapter_of
from loquela.peft.lora import LoRA

LAYER = "decoder.layers.1.attention.q_proj"


def two() -> Network:
    network = make("llama")
    for name, settings in (("a", {"r": 3}), ("b", {"r": 2, "lora_alpha": 5, "target_modules": "all-linear"})):
        peft.attach(network, peft.config_for("lora", **settings), name, seed=len(name))
        scramble(peft.trainable(network, name))
    return network


def delta(network: Network, name: str, layer: str = LAYER) -> Tensor:
    part = adapter_of(network, name).parts[layer]
    assert isinstance(part, LoRA)
    return part.scaling * (part.b @ part.a).detach()


def test_weighted_is_the_sum() -> None:
    network = two()
    peft.combine(network, ["a", "b"], [0.3, -2.0], into="sum")
    torch.testing.assert_close(delta(network, "sum"), 0.3 * delta(network, "a") - 2 * delta(network, "b"))
    only_b = "decoder.layers.0.feedforward.up_proj"
    torch.testing.assert_close(delta(network, "sum", only_b), -2 * delta(network, "b", only_b))


def test_ties_is_the_papers_algorithm() -> None:
    network = two()
    peft.combine(network, ["a", "b"], [1.0, 0.5], how="ties", into="ties", density=0.3)
    trimmed = []
    for name, weight in (("a", 1.0), ("b", 0.5)):
        flat = (weight * delta(network, name)).flatten().tolist()
        least = sorted(map(abs, flat))[-round(0.3 * len(flat))]
        trimmed.append([x if abs(x) >= least else 0.0 for x in flat])
    expected = []
    for x, y in zip(*trimmed, strict=True):
        sign = 1 if x + y > 0 else -1
        agreeing = [v for v in (x, y) if v * sign > 0]
        expected.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    found = delta(network, "ties")
    torch.testing.assert_close(found, torch.tensor(expected).view_as(found), atol=1e-5, rtol=1e-4)


def test_a_combined_one_is_saved_and_opens(tmp_path: object) -> None:
    from pathlib import Path

    network, directory = two(), Path(str(tmp_path)) / "c"
    peft.combine(network, ["a", "b"], [1.0, 1.0], into="c")
    peft.save_adapter(network, "c", directory)
    peft.load_adapter(network, directory, "again")
    ids = tokens(2, 9)
    with torch.no_grad():
        with peft.wearing(network, "c"):
            expected = network(ids)
        with peft.wearing(network, "again"):
            assert torch.equal(network(ids), expected)


@pytest.mark.parametrize(
    ("names", "weights", "settings"),
    [
        (["a"], [1.0, 2.0], {}),
        (["a", "x"], [1.0, 1.0], {}),
        (["a", "b"], [1.0, 1.0], {"how": "average"}),
        (["a", "b"], [1.0, 1.0], {"into": "a"}),
        (["a", "b"], [1.0, 1.0], {"density": 0.0}),
        (["a", "i"], [1.0, 1.0], {}),
        (["d"], [1.0], {}),
    ],
)
def test_what_cannot_be_joined_is_refused(names: list[str], weights: list[float], settings: dict[str, object]) -> None:
    network = two()
    peft.attach(network, peft.config_for("ia3"), "i")
    peft.attach(network, peft.config_for("lora", use_dora=True), "d")
    before = list(peft.adapters(network))
    with pytest.raises(UsageError):
        peft.combine(network, names, weights, **settings)  # type: ignore[arg-type]
    assert list(peft.adapters(network)) == before


def test_a_tied_weight_is_not_merged_behind_ones_back() -> None:
    network = make("gpt2")
    peft.attach(network, peft.config_for("lora", target_modules=["wte"]), "a")
    scramble(peft.trainable(network, "a"))
    with pytest.raises(UsageError, match="is tied to lm_head"):
        peft.merge(network, "a")
    peft.attach(network, peft.config_for("selective", tune=["embeddings"]), "s")  # which reaches both places
    scramble(peft.trainable(network, "s"))
    ids = tokens(2, 9)
    with torch.no_grad():
        with peft.wearing(network, "s"):
            worn = network(ids)
        peft.merge(network, "s")
        torch.testing.assert_close(network(ids), worn, atol=1e-5, rtol=1e-5)


def test_merges_come_off_in_reverse() -> None:
    network = two()
    ids = tokens(2, 9)
    with torch.no_grad():
        before = network(ids)
        peft.merge(network, "a")
        peft.merge(network, "b", 0.5)
        with pytest.raises(UsageError, match="reverse order"):
            peft.unmerge(network, "a")
        peft.unmerge(network, "b")
        peft.unmerge(network, "a")
        assert torch.equal(network(ids), before)
