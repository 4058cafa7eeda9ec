from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loquela.errors import MismatchError
from loquela.models import config_from_dict
from loquela.models.base import Network, architecture
from loquela.training.optimizers import Muon, Optimizers, build, orthogonalise
from loquela.training.recipe import Recipe

LLAMA = {
    "model_type": "llama",
    "vocab_size": 24,  # as wide as the model: the head is told from the other matrices by what it is, not by its shape
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 24, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16}


def network_of(config: dict[str, object]) -> Network:
    torch.manual_seed(0)
    network: Network = architecture(str(config["model_type"])).NETWORK(config_from_dict(config))
    network.initialise()
    return network


def recipe_of(config: dict[str, object], **settings: object) -> Recipe:
    return Recipe.load({"model": config, "data": "shakespeare", "output_dir": "out", **settings})


def gradients(network: Network, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def run(network: Network, optimizer: Optimizers, first: int, last: int) -> list[Tensor]:
    for step in range(first, last):
        gradients(network, step)
        optimizer.update(step, 1 / (step + 1))
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 64), (2, 64, 8), (1, 24, 20), (1, 1, 7)])
def test_orthogonalise_gives_the_polar_factor(shape: tuple[int, int, int]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    # Five iterations are tuned to end within 15 %; four, which are faster and train as well, within 60 %.
    for iterations, least, most in ((4, 0.4, 1.6), (5, 0.85, 1.15)):
        x = orthogonalise(g, iterations)
        assert x.shape == g.shape
        values = torch.linalg.svdvals(x)
        assert least < values.min()
        assert values.max() < most
        assert (x - u @ v).norm() / (u @ v).norm() < most - 1


@pytest.mark.parametrize("shape", [(2, 48, 48), (2, 48, 130), (2, 130, 48)])
def test_orthogonalise_in_bfloat16_keeps_small_directions_in_bounds(shape: tuple[int, int, int]) -> None:
    """Singular values over four orders of magnitude, as gradients have them: none grows beyond what float32 gives."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * torch.logspace(0, -4, shape[2])
    exact, rough = orthogonalise(g, 4), orthogonalise(g, 4, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert torch.linalg.svdvals(rough).max() < 1.6
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_both_ways_to_iterate_agree() -> None:
    """A wide matrix iterates on its Gram matrix alone; rows of zeros below it change nothing but the way taken."""
    g = torch.randn(1, 8, 17, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    square = torch.cat((g, torch.zeros(1, 9, 17, dtype=g.dtype)), dim=1)
    torch.testing.assert_close(orthogonalise(square, 4)[:, :8], orthogonalise(g, 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(config: dict[str, object]) -> None:
    network = network_of(config)
    optimizer = build(network, recipe_of(config))
    state = optimizer.state()
    muon = {name.removesuffix(".momentum").removeprefix("muon.") for name in state if name.startswith("muon.")}
    adamw = {name.rsplit(".", 1)[0].removeprefix("adamw.") for name in state if name.startswith("adamw.")}
    assert muon | adamw == {n for n, _ in network.named_parameters()}
    assert muon & adamw == set()
    assert {n for n in adamw if "norm" not in n and "bias" not in n} <= {
        "token_embedding.weight",
        "position_embedding.weight",
        "lm_head.weight",
    }
    if config is GPT2:  # query, key and value are matrices of their own, whoever holds them
        first = optimizer.parts[0]
        assert isinstance(first, Muon)
        matrices = [matrix for group in first.groups for matrix in group]
        rows = {(m.first, m.last) for m in matrices if m.whole_name == "decoder.layers.0.attention.qkv_proj.weight"}
        assert rows == {(0, 24), (24, 48), (48, 72)}


def test_a_fused_matrix_is_updated_as_three() -> None:
    network = network_of(GPT2)
    weight = network.get_parameter("decoder.layers.0.attention.qkv_proj.weight")
    before = weight.detach().clone()
    optimizer = build(network, recipe_of(GPT2))
    gradients(network, 0)
    assert weight.grad is not None
    gradient = weight.grad.clone()
    optimizer.update(0, 1.0)
    for first in (0, 24, 48):
        rows = slice(first, first + 24)
        expected = before[rows] - 0.05 * orthogonalise(gradient[None, rows], 4)[0]
        torch.testing.assert_close(weight[rows], expected, rtol=0, atol=2e-3)


def test_muon_follows_its_formula() -> None:
    network = network_of(LLAMA)
    recipe = recipe_of(LLAMA, muon={"momentum_warmup_steps": 4}, weight_decay=0.1)
    optimizer = build(network, recipe)
    weight = network.get_parameter("decoder.layers.1.feedforward.up_proj.weight")  # (48, 24)
    expected, mean = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(6):
        gradients(network, step)
        gradient = weight.grad
        assert gradient is not None
        momentum = 0.85 + 0.03 * min(1, (step + 1) / 4)
        mean = momentum * mean + (1 - momentum) * gradient
        nesterov = (1 - momentum) * gradient + momentum * mean
        expected *= 1 - 0.05 * 0.5 * 0.1
        expected -= 0.05 * 0.5 * 2**0.5 * orthogonalise(nesterov[None], 4)[0]
        optimizer.update(step, 0.5)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_adamw_is_torchs() -> None:
    ours, theirs = network_of(GPT2), network_of(GPT2)
    optimizer = build(ours, recipe_of(GPT2, optim="adamw_torch_fused", learning_rate=0.01, weight_decay=0.1))
    decays, rest = ([p for p in theirs.parameters() if (p.dim() > 1) is big] for big in (True, False))
    reference = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-10,
        fused=True,
    )
    for step in range(4):
        for network in (ours, theirs):
            gradients(network, step)
        optimizer.update(step, 1.0)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optim", ["muon", "adamw_torch_fused"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_going_on_from_a_restored_state_is_bit_exact(config: dict[str, object], optim: str) -> None:
    recipe = recipe_of(config, optim=optim)
    network = network_of(config)
    optimizer = build(network, recipe)
    run(network, optimizer, 0, 3)
    weights = {n: p.detach().clone() for n, p in network.named_parameters()}
    state = {n: t.clone() for n, t in optimizer.state().items()}
    expected = run(network, optimizer, 3, 7)

    other = network_of(config)
    other.load_state_dict({**other.state_dict(), **weights})
    restored = build(other, recipe)
    restored.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(other, restored, 3, 7), strict=True))
    assert all(torch.equal(tensor, restored.state()[name]) for name, tensor in optimizer.state().items())


def test_the_state_of_another_optimizer_is_refused_whole() -> None:
    network = network_of(LLAMA)
    muon = build(network, recipe_of(LLAMA))
    adamw = build(network, recipe_of(LLAMA, optim="adamw_torch_fused"))
    with pytest.raises(MismatchError, match=r"q_proj.weight.exp_avg is missing"):
        adamw.restore(muon.state())
    wrong = {**muon.state(), "adamw.token_embedding.weight.exp_avg": torch.zeros(3)}
    with pytest.raises(MismatchError, match=r"exp_avg is \(3,\) instead of \(24, 24\)"):
        muon.restore(wrong)


def test_frozen_parameters_stay() -> None:
    network = network_of(LLAMA)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("norm" not in name and "layers.0" not in name)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = build(network, recipe_of(LLAMA))
    assert any(isinstance(part, Muon) for part in optimizer.parts)
    run(network, optimizer, 0, 2)
    for name, parameter in network.named_parameters():
        assert torch.equal(before[name], parameter) is not parameter.requires_grad, name
