"""The chunked loss is the plain one: same number, same gradients, far fewer logits in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.models import config_from_dict
from loquela.models.base import Network, architecture
from loquela.training.loss import cross_entropy, linear_head

DIM, VOCAB = 6, 23


def tensors(tokens: int, seed: int = 0, masked: float = 0.3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, DIM, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, DIM, generator=g, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCAB, generator=g, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCAB, (tokens,), generator=g)
    return [hidden, weight, bias, labels.masked_fill(torch.rand(tokens, generator=g) < masked, -100)]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(DIM, VOCAB, dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 300), st.sampled_from([0.0, 0.1]), st.booleans())
def test_loss_and_gradients_are_those_of_all_logits(
    tokens: int, seed: int, at_once: int, smoothing: float, through_a_function: bool
) -> None:
    hidden, weight, bias, labels = tensors(tokens, seed)
    expected = F.cross_entropy(
        F.linear(hidden, weight, bias), labels, reduction="sum", label_smoothing=smoothing, ignore_index=-100
    )
    expected.mul(0.3).backward()
    layer, h = linear(weight, bias), hidden.detach().clone().requires_grad_()
    head = (lambda x: layer(x)) if through_a_function else layer
    loss = cross_entropy(h, head, labels, smoothing=smoothing, logits_at_once=at_once)
    torch.testing.assert_close(loss, expected)
    loss.mul(0.3).backward()
    for ours, theirs in ((h, hidden), (layer.weight, weight), (layer.bias, bias)):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bare_weight_is_a_head() -> None:
    hidden, weight, _, labels = tensors(9)
    expected = F.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(cross_entropy(hidden, weight, labels, logits_at_once=50), expected)


def test_a_frozen_head_gets_no_buffer_and_frozen_states_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = tensors(20)
    layer = linear(weight, bias).requires_grad_(False)
    made: list[tuple[int, ...]] = []
    real = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda t, **kw: made.append(tuple(t.shape)) or real(t, **kw))
    cross_entropy(hidden, layer, labels, logits_at_once=50).backward()
    assert not made
    assert layer.weight.grad is None
    assert hidden.grad is not None
    frozen = hidden.detach()
    layer.requires_grad_(True)
    cross_entropy(frozen, layer, labels, logits_at_once=50).backward()
    assert frozen.grad is None
    assert layer.weight.grad is not None


def test_no_more_logits_than_said_are_ever_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = tensors(40)
    seen: list[int] = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda *a: seen.append((out := real(*a)).numel()) or out)
    cross_entropy(hidden, linear(weight, bias), labels, logits_at_once=4 * VOCAB).backward()
    assert len(seen) == -(-int((labels != -100).sum()) // 4)
    assert max(seen) == 4 * VOCAB


def test_without_a_label_it_is_zero_and_still_has_gradients() -> None:
    """One of several processes may have no label in its share; its backward pass must run all the same."""
    hidden, weight, bias, labels = tensors(5, masked=2.0)
    layer = linear(weight, bias)
    loss = cross_entropy(hidden, layer, labels, logits_at_once=1)
    assert loss.item() == 0
    loss.backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_it_is_differentiated_once_and_says_so() -> None:
    hidden, weight, bias, labels = tensors(20)
    loss = cross_entropy(hidden, linear(weight, bias), labels, logits_at_once=50)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


def test_under_autocast_products_are_rough_and_sums_exact() -> None:
    hidden, weight, bias, labels = tensors(30, dtype=torch.float32)
    exact = cross_entropy(hidden, linear(weight, bias), labels)
    layer = linear(weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        rough = cross_entropy(hidden, layer, labels, logits_at_once=50)
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def network_of(model_type: str, **keys: object) -> Network:
    common = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    raw = {"model_type": model_type, **common, "num_attention_heads": 2, "max_position_embeddings": 16, **keys}
    network: Network = architecture(model_type).NETWORK(config_from_dict(raw))
    return network


def test_a_plain_head_is_told_from_one_that_does_more() -> None:
    llama = network_of("llama")
    assert linear_head(llama) is llama.lm_head
    assert linear_head(network_of("gemma2", head_dim=8, num_key_value_heads=1)) is None, "it caps its logits"
    assert linear_head(network_of("bert")) is None
    llama.lm_head.register_forward_hook(lambda module, args, output: output * 2)  # type: ignore[union-attr]
    assert linear_head(llama) is None
