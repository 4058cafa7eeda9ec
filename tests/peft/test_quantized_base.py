"""LoRA on a base whose matrices are stored in few bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_networks import make, scramble, tokens  # type: ignore[import-not-found]

from loquela import peft
from loquela.checkpoint.rules import to_disk
from loquela.errors import UsageError
from loquela.layers.quantized import QuantizedLinear


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model", ["gpt2", "llama", "phi3", "bert", "t5", "mixtral"])
def test_it_learns_on_a_quantised_base(model: str, bits: int, tmp_path: Path) -> None:
    plain, network = make(model), make(model)
    assert peft.quantize_base(network, bits, group=8) > 0
    assert any(isinstance(module, QuantizedLinear) for module in network.modules())
    ids, extra = tokens(3, 9), {"source": tokens(3, 7, 1)} if model == "t5" else {}
    with torch.no_grad():
        near = network(ids, **extra)
        assert 0 < (near - plain(ids, **extra)).abs().mean() < (0.05 if bits == 8 else 0.8) * near.abs().mean()
    peft.attach(network, peft.config_for("lora", r=4, target_modules="all-linear"), "a")
    own = peft.train_only(network, "a")
    optimizer = torch.optim.Adam(own.values(), 0.01)
    losses = []
    for _ in range(8):
        with peft.wearing(network, "a"):
            loss = network(ids, **extra).log_softmax(-1)[..., 3].mean().neg()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    peft.save_adapter(network, "a", tmp_path / "a")
    peft.load_adapter(plain, tmp_path / "a", "a")  # it is an adapter like any other
    with torch.no_grad(), peft.wearing(plain, "a"):
        plain(ids, **extra)


def test_dora_measures_the_weights_as_they_are_read() -> None:
    network = make("llama")
    peft.quantize_base(network, 8, group=8)
    with torch.no_grad():
        before = network(tokens(2, 9))
        peft.attach(network, peft.config_for("lora", use_dora=True), "a")
        with peft.wearing(network, "a"):
            torch.testing.assert_close(network(tokens(2, 9)), before)


def test_it_is_neither_saved_nor_merged() -> None:
    network = make("llama")
    peft.quantize_base(network, 4, group=8)
    with pytest.raises(UsageError, match="full weights"):
        to_disk(network)
    peft.attach(network, peft.config_for("lora"), "a")
    scramble(peft.trainable(network, "a"))
    with pytest.raises(UsageError, match="full weights"):
        peft.merge(network, "a")
    with pytest.raises(UsageError, match="before adapters are attached"):
        peft.quantize_base(network, 4)
