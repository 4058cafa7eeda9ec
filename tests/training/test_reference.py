"""The training step against a loop that anyone can check: a refactoring that changes what is learnt fails here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.data.batch import Batch
from loquela.models import config_from_dict
from loquela.models.base import Network, architecture
from loquela.training import step as step_module
from loquela.training.optimizers import build, orthogonalise
from loquela.training.recipe import Recipe
from loquela.training.schedules import rate
from loquela.training.step import train_step

CONFIG = {
    "model_type": "llama",
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
STEPS, ROWS = 12, 6


def network_of() -> Network:
    torch.manual_seed(3)
    network: Network = architecture("llama").NETWORK(config_from_dict(CONFIG)).double()
    network.initialise()
    for parameter in network.parameters():  # zero-initialised outputs would hide most gradients
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def batches() -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    tokens = [torch.randint(29, (ROWS, 13), generator=g) for _ in range(STEPS)]
    return [Batch(t[:, :-1], t[:, 1:].masked_fill(torch.rand(ROWS, 12, generator=g) < 0.3, -100)) for t in tokens]


def plainly(recipe: Recipe) -> list[float]:
    """Train by the formulas of the papers, one parameter after the other, the whole batch at once."""
    network = network_of()
    first = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    second = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    losses = []
    for step, batch in enumerate(batches()):
        network.zero_grad()
        loss = F.cross_entropy(network(batch.inputs).flatten(0, 1), batch.labels.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        factor = rate("cosine", step, STEPS, 3)
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert recipe.max_grad_norm is not None
        clip = min(1.0, recipe.max_grad_norm / (norm + 1e-6))
        for name, parameter in network.named_parameters():
            g = gradients[name] * clip
            with torch.no_grad():
                if recipe.optim == "muon" and parameter.dim() == 2 and "layers" in name:
                    muon(parameter, g, first[name], step, factor, recipe)
                else:
                    adamw(parameter, g, first[name], second[name], step, factor, recipe)
    return losses


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, factor: float, recipe: Recipe) -> None:
    """arXiv:1711.05101, algorithm 2."""
    b1, b2, lr = recipe.adam_beta1, recipe.adam_beta2, recipe.learning_rate * factor
    if p.dim() == 2:
        p.mul_(1 - lr * recipe.weight_decay)
    m.mul_(b1).add_((1 - b1) * g)
    v.mul_(b2).add_((1 - b2) * g * g)
    m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
    p.sub_(lr * m_hat / (v_hat.sqrt() + recipe.adam_epsilon))


def muon(p: Tensor, g: Tensor, m: Tensor, step: int, factor: float, recipe: Recipe) -> None:
    """kellerjordan.github.io/posts/muon, with a momentum that warms up."""
    s = recipe.muon
    lr, momentum = s.learning_rate * factor, s.momentum_start + (s.momentum - s.momentum_start) * (step + 1) / 100
    m.mul_(momentum).add_((1 - momentum) * g)
    p.mul_(1 - lr * recipe.weight_decay)
    p.sub_(lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * orthogonalise(((1 - momentum) * g + momentum * m)[None], 4)[0])


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
@pytest.mark.parametrize("how", ["whole", "in parts", "sliced logits"])
def test_the_curve_is_that_of_the_plain_loop(optim: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, however the batch is cut, and however few logits may stand in memory.

    The weights agree to float64; the loss that is told is added up in float32, a part rounded and a sum rounded (2⁻²⁴
    each), on any processor. Nothing else of an update may be rounded to float32: Muon once was, and its curve strayed
    by 3.6e-7 on a processor whose products round in another order.
    """
    recipe = Recipe.load(
        {"model": CONFIG, "data": "shakespeare", "output_dir": "out", "optim": optim, "weight_decay": 0.1,
         "learning_rate": 0.02, "max_grad_norm": 0.8}
    )  # fmt: skip
    if how == "sliced logits":
        from loquela.training import loss

        monkeypatch.setattr(step_module, "LOGITS", 100)
        real: Any = loss.cross_entropy
        monkeypatch.setattr(step_module, "cross_entropy", lambda *a, **k: real(*a, **k, logits_at_once=100))
    network = network_of()
    optimizer = build(network, recipe)
    losses = []
    for step, batch in enumerate(batches()):
        report = train_step(
            network,
            optimizer,
            batch,
            step,
            rate("cosine", step, STEPS, 3),
            micro_batch=4 if how == "in parts" else ROWS,
            max_grad_norm=recipe.max_grad_norm,
        )
        assert report is not None
        losses.append(report.loss)
    expected = plainly(recipe)
    assert max(expected) - min(expected) > 0.3, "it must learn something"
    assert losses == pytest.approx(expected, rel=2e-7)


def test_the_loss_of_a_whole_run_is_what_it_was(tmp_path: Any) -> None:
    """The curve of a tiny run, as it was first measured: it may move in the fourth digit on other machines."""
    from interrupting import write_recipe

    from loquela.training.log import read_rows
    from loquela.training.run import train

    write_recipe(tmp_path)
    model = {**CONFIG, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 32}
    del model["vocab_size"]
    train(
        {
            "model": model,
            "tokenizer": {"kind": "bpe", "vocab_size": 280},
            "data": str(tmp_path / "text.txt"),
            "output_dir": str(tmp_path / "out"),
            "block_size": 32,
            "max_steps": 12,
            "logging_steps": 4,
            "learning_rate": 0.01,
        }
    )
    losses = [row.train_loss for row in read_rows(tmp_path / "out" / "loss.csv")]
    assert losses == pytest.approx([5.347709, 4.562429, 3.895211], rel=1e-3)
