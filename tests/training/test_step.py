from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from loquela.data.objectives import Batch
from loquela.errors import DataError, NonFiniteError
from loquela.models import config_from_dict
from loquela.models.base import Network, architecture
from loquela.training.optimizers import build
from loquela.training.recipe import Recipe
from loquela.training.step import Report, summed_loss, train_step

CONFIG = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
RECIPE = Recipe.load({"model": CONFIG, "data": "shakespeare", "output_dir": "out"})


def network_of(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network: Network = architecture("llama").NETWORK(config_from_dict(CONFIG)).double()
    network.initialise()
    for parameter in network.parameters():  # zero-initialised outputs would hide most gradients
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def batch_of(seed: int, rows: int = 8, masked: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(31, (rows, 13), generator=generator)
    labels = tokens[:, 1:].masked_fill(torch.rand(rows, 12, generator=generator) < masked, -100)
    return Batch(tokens[:, :-1], labels)


@pytest.mark.parametrize("masked", [0.0, 0.7])
def test_the_loss_is_that_of_all_logits(masked: float) -> None:
    network, batch = network_of(), batch_of(1, masked=masked)
    expected = F.cross_entropy(network(batch.inputs).flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(summed_loss(network, batch), expected)


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0, 0.9))
def test_however_a_batch_is_cut_the_update_is_the_same(seed: int, micro_batch: int, masked: float) -> None:
    """Law 9: the loss is divided by the valid tokens of the whole batch, so unevenly masked parts weigh rightly."""
    batch = batch_of(seed, masked=masked)
    results = []
    for size in (8, micro_batch):
        network = network_of()
        report = train_step(network, build(network, RECIPE), batch, 0, 1.0, micro_batch=size)
        assert report is not None
        results.append((report, [p.grad for p in network.parameters()]))
    (whole, gradients), (cut, others) = results
    assert cut.tokens == whole.tokens == int((batch.labels != -100).sum())
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_clipped_to_its_norm_but_reported_whole() -> None:
    network = network_of()
    optimizer = build(network, RECIPE)
    report = train_step(network, optimizer, batch_of(0), 0, 1.0, micro_batch=8, max_grad_norm=0.01)
    assert report is not None
    assert report.gradient_norm > 0.01
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))
    assert norm == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_is_changed_by_what_is_not_finite(poison: float, where: str) -> None:
    network = network_of()
    optimizer = build(network, RECIPE)
    train_step(network, optimizer, batch_of(0), 0, 1.0, micro_batch=8)
    before = [t.detach().clone() for t in (*network.parameters(), *optimizer.state().values())]
    if where == "loss":
        handle = network.lm_head.register_forward_hook(  # type: ignore[union-attr]
            lambda module, args, out: out * poison
        )
    else:
        handle = network.lm_head.weight.register_hook(lambda g: g * poison)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match=r"loss is .*, norm of the gradient (nan|inf)"):
        train_step(network, optimizer, batch_of(1), 1, 1.0, micro_batch=3)
    handle.remove()
    after = [*network.parameters(), *optimizer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_step_that_is_stopped_between_micro_batches_changes_nothing() -> None:
    network = network_of()
    optimizer = build(network, RECIPE)
    before = [t.detach().clone() for t in (*network.parameters(), *optimizer.state().values())]
    answers = iter([False, False, True])
    assert train_step(network, optimizer, batch_of(0), 0, 1.0, micro_batch=2, stopping=lambda: next(answers)) is None
    after = [*network.parameters(), *optimizer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert isinstance(train_step(network, optimizer, batch_of(0), 0, 1.0, micro_batch=2), Report)


def test_a_batch_without_labels_is_no_silent_zero() -> None:
    network = network_of()
    with pytest.raises(DataError, match="a label that is not -100"):
        train_step(network, build(network, RECIPE), batch_of(0, masked=2.0), 0, 1.0, micro_batch=8)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights() -> None:
    network, batch = network_of().float(), batch_of(0)
    exact = summed_loss(network, batch)
    rough = summed_loss(network, batch, torch.bfloat16)
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()
    report = train_step(network, build(network, RECIPE), batch, 0, 1.0, micro_batch=8, dtype=torch.bfloat16)
    assert report is not None
    assert {p.dtype for p in network.parameters()} == {torch.float32}
