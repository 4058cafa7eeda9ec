"""Activations by name: all that is asked for, nothing else, and nothing left behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from specimens import Make

from loquela.errors import UsageError

IDS = [5, 9, 14, 20, 33, 7]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_watched_and_unwatched_logits_agree(model: Make, name: str) -> None:
    found = model(name)
    expected = found.logits(IDS)
    with found.watch("decoder.layers.*", "decoder.layers.*.attention:weights", "token_embedding") as seen:
        logits = found.logits(IDS)
    assert (logits - expected).abs().max() < 1e-5
    assert list(seen) == [
        "decoder.layers.0",
        "decoder.layers.1",
        "decoder.layers.0.attention:weights",
        "decoder.layers.1.attention:weights",
        "token_embedding",
    ]
    weights = seen["decoder.layers.1.attention:weights"][0]
    assert weights.shape == (1, 4, 6, 6)
    assert torch.equal(found.logits(IDS), expected)  # as before: nobody listens any more


def test_inputs_outputs_and_each_call(model: Make) -> None:
    found = model("llama")
    with found.watch("decoder.layers.1:input", "decoder.layers.0", "lm_head:input") as seen:
        found.logits(IDS)
        found.logits(IDS[:3])
    assert [x.shape[1] for x in seen["decoder.layers.0"]] == [6, 3]
    for came, went in zip(seen["decoder.layers.0"], seen["decoder.layers.1:input"], strict=True):
        assert torch.equal(came, went)
    assert torch.equal(seen["lm_head:input"][0], found.hidden(IDS))
    assert not seen["decoder.layers.0"][0].requires_grad


def test_nothing_is_left_in_the_network(model: Make) -> None:
    found = model("llama")
    with found.watch("decoder.layers.*", "decoder.layers.*.attention:weights") as seen:
        found.logits(IDS)
    kept = weakref.ref(seen["decoder.layers.0"][0])
    assert kept() is not None
    del seen
    gc.collect()
    assert kept() is None
    for module in found.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert getattr(module, "probe", None) is None


def test_it_stops_listening_when_something_fails(model: Make) -> None:
    found = model("llama")
    with pytest.raises(RuntimeError), found.watch("decoder.layers.*.attention:weights"):
        raise RuntimeError
    with found.watch("decoder.layers.*.attention:weights"):
        pass


def test_wrong_names(model: Make) -> None:
    found = model("llama")
    for names, said in [
        (["decoder.layer.0"], "did you mean 'decoder.layers.0'"),
        (["decoder.layers.0.feedforward:weights"], "only an attention"),
        (["decoder.layers.0:outputs"], "did you mean 'output'"),
    ]:
        with pytest.raises(UsageError, match=said), found.watch(*names):
            pass
    with (
        found.watch("decoder.layers.0.attention:weights"),
        pytest.raises(UsageError, match="nobody watches"),
        found.watch("decoder.layers.*.attention:weights"),
    ):
        pass
    assert all(getattr(module, "probe", None) is None for module in found.network.modules())
