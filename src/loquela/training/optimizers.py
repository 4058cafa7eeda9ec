"""What an update does with the gradients: Muon for the matrices inside the blocks, AdamW for the rest.

Both keep their state in named tensors, so that a checkpoint holds it as safetensors and a resumed run goes on bit by
bit. `update(step, factor)` takes the number of the update (from 0) and the schedule's factor on the learning rates.

Where each rank has a slice of the weights only, it has the same slice of the state. AdamW never needs more. Muon does:
it gathers the momentum of a matrix, makes the whole of it orthogonal on every rank, and takes its own slice of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from loquela.checkpoint.tensors import StoredTensor
from loquela.errors import MismatchError
from loquela.layers.attention import MultiHeadAttention
from loquela.models.base import Network
from loquela.training import recipe as recipes
from loquela.training.ranks import alike, first_row, local, take, whole
from loquela.training.recipe import Recipe

__all__ = ["AdamW", "Muon", "Optimizer", "Optimizers", "build", "orthogonalise"]

_AT_ONCE = 1 << 28
"""Numbers of matrices that are gathered and made orthogonal together (1 GB)."""


class Optimizer(Protocol):
    """What the training step and the checkpoint know of an optimizer."""

    def update(self, step: int, factor: float) -> None:
        """Change the weights by their gradients."""

    def state(self) -> dict[str, Tensor]:
        """Return all that the next update depends on, by names that stay the same; tensors are not copied.

        Those of a sliced weight are sliced as it is (`DTensor`).
        """

    def restore(self, state: Mapping[str, Tensor | StoredTensor]) -> None:
        """Take over what `state` returned, each tensor whole, by copying.

        Raises `MismatchError` when tensors are missing or misshapen.
        """


class Optimizers:
    """Several optimizers, each with parameters of its own, as one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts

    def update(self, step: int, factor: float) -> None:
        """Change the weights of all parts."""
        for part in self.parts:
            part.update(step, factor)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let Muon make its updates orthogonal in `dtype`, if that is bfloat16; all that is kept stays as it is."""
        for part in self.parts:
            if isinstance(part, Muon):
                part.dtype = torch.bfloat16 if dtype == torch.bfloat16 else None

    def state(self) -> dict[str, Tensor]:
        """Return the state of all parts."""
        return {name: tensor for part in self.parts for name, tensor in part.state().items()}

    def restore(self, state: Mapping[str, Tensor | StoredTensor]) -> None:
        """Restore all parts; raises `MismatchError` when `state` is another optimizer's."""
        expected = self.state()
        wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
        wrong += [f"{name} is unknown" for name in state.keys() - expected.keys()]
        wrong += [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if wrong:
            raise MismatchError(f"the optimizer's state does not fit this run: {'; '.join(sorted(wrong))}")
        for part in self.parts:
            part.restore(state)


def build(network: Network, recipe: Recipe) -> Optimizers:
    """Return the optimizer that a recipe names, over the trainable parameters of a network."""
    matrices = [] if recipe.optim != "muon" else list(_matrices(network))
    taken = {id(m.parameter) for m in matrices}
    rest = {n: p for n, p in network.named_parameters() if p.requires_grad and id(p) not in taken}
    adamw = AdamW(
        rest,
        learning_rate=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        epsilon=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
    )
    return Optimizers(adamw) if not matrices else Optimizers(Muon(matrices, recipe.muon, recipe.weight_decay), adamw)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), torch's fused kernel.

    Matrices decay, vectors (norms, biases) do not.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.own = {n: p if local(p) is p else nn.Parameter(local(p)) for n, p in self.parameters.items()}
        """The weights themselves, or this rank's slices of them, in the same memory."""
        groups = [
            {"params": [p for p in self.own.values() if (p.dim() >= 2) is decays], "weight_decay": decay}
            for decays, decay in ((True, weight_decay), (False, 0.0))
        ]
        self.inner = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
        for parameter in self.own.values():  # as torch would at the first update
            self.inner.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def update(self, step: int, factor: float) -> None:
        """Change the weights by their gradients."""
        for group in self.inner.param_groups:
            group["lr"] = self.learning_rate * factor
        for name, parameter in self.parameters.items():
            if self.own[name] is not parameter:
                self.own[name].grad = None if parameter.grad is None else local(parameter.grad)
        self.inner.step()

    def state(self) -> dict[str, Tensor]:
        """Return the two running means and the count of every parameter."""
        return {
            f"adamw.{name}.{key}": alike(tensor, parameter) if tensor.dim() else tensor
            for name, parameter in self.parameters.items()
            for key, tensor in self.inner.state[self.own[name]].items()
        }

    def restore(self, state: Mapping[str, Tensor | StoredTensor]) -> None:
        """Take over what `state` returned."""
        _copy(state, self.state())


def _copy(source: Mapping[str, Tensor | StoredTensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        value = source[name]
        local(tensor).copy_(take(value.read() if isinstance(value, StoredTensor) else value, tensor))


@dataclass(frozen=True)
class Matrix:
    """Rows `first` to `last` of a parameter, which Muon treats as a matrix of its own."""

    whole_name: str
    parameter: Tensor
    first: int
    last: int

    def on_this_rank(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of the weight that this rank has, and the part of a `direction` that belongs to it."""
        begin, weight = first_row(self.parameter), local(self.parameter)
        first, last = max(self.first, begin), min(self.last, begin + len(weight))
        last = max(first, last)  # this rank may have none of these rows
        return weight[first - begin : last - begin], direction[first - self.first : last - self.first]


def _matrices(network: Network) -> Iterator[Matrix]:
    """The weights of all linear layers but the head; query, key and value apart where one matrix holds them."""
    cuts = {
        id(module.qkv_proj): module.splits
        for module in network.modules()
        if isinstance(module, MultiHeadAttention) and module.fused
    }
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear) or name.rpartition(".")[2] == "lm_head" or not module.weight.requires_grad:
            continue
        first = 0
        for rows in cuts.get(id(module), (module.out_features,)):
            yield Matrix(f"{name}.weight", module.weight, first, first + rows)
            first += rows


class Muon:
    """Momentum, made orthogonal (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    Every direction that a matrix could move in gets a step of the same size. Matrices of one shape are treated as one
    batch. The momentum is Nesterov's, a running mean that rises from `momentum_start` to `momentum`.
    """

    def __init__(self, matrices: list[Matrix], settings: recipes.Muon, weight_decay: float) -> None:
        self.settings, self.weight_decay = settings, weight_decay
        self.parameters = {matrix.whole_name: matrix.parameter for matrix in matrices}
        self.means = {name: torch.zeros_like(local(p)) for name, p in self.parameters.items()}
        self.groups = list(_alike(matrices))
        self.dtype: torch.dtype | None = None
        """What the products of `orthogonalise` are computed in; None: in the type of the weights."""

    @torch.no_grad()
    def update(self, step: int, factor: float) -> None:
        """Change the weights by their gradients."""
        s = self.settings
        risen = min(1.0, (step + 1) / s.momentum_warmup_steps) if s.momentum_warmup_steps else 1.0
        momentum = s.momentum_start + (s.momentum - s.momentum_start) * risen
        rate = s.learning_rate * factor
        gradients = [_gradient(name, p) for name, p in self.parameters.items()]
        means = list(self.means.values())
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = dict(zip(self.means, torch._foreach_lerp(gradients, means, momentum), strict=True))
        for matrices in self.groups:
            names = {m.whole_name: m.parameter for m in matrices}
            gathered = {name: whole(alike(ahead[name], parameter)) for name, parameter in names.items()}
            stacked = torch.stack([gathered[m.whole_name][m.first : m.last] for m in matrices])
            update = orthogonalise(stacked, s.ns_steps, self.dtype)
            size = -rate * math.sqrt(max(1.0, update.shape[1] / update.shape[2]))
            for matrix, direction in zip(matrices, update, strict=True):
                weight, direction = matrix.on_this_rank(direction)
                if self.weight_decay:
                    weight.mul_(1 - rate * self.weight_decay)
                weight.add_(direction, alpha=size)

    def state(self) -> dict[str, Tensor]:
        """Return the momentum of every matrix."""
        return {f"muon.{name}.momentum": alike(mean, self.parameters[name]) for name, mean in self.means.items()}

    def restore(self, state: Mapping[str, Tensor | StoredTensor]) -> None:
        """Take over what `state` returned."""
        _copy(state, self.state())


def _alike(matrices: list[Matrix]) -> Iterator[list[Matrix]]:
    """Put matrices of one shape together, as many as fit into `_AT_ONCE`."""
    shapes: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        shapes.setdefault((matrix.last - matrix.first, matrix.parameter.shape[1]), []).append(matrix)
    for (rows, columns), group in shapes.items():
        count = max(1, _AT_ONCE // (rows * columns))
        yield from (group[first : first + count] for first in range(0, len(group), count))


def _gradient(name: str, parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, name
    return local(parameter.grad)


# Optimal quintics a·x + b·x³ + c·x⁵ for each iteration (Polar Express, arXiv:2505.16932, table 1 with safety 1.02).
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(g: Tensor, iterations: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the nearest orthogonal matrix (U Vᵀ of the SVD), roughly, of each in a batch `g` (n, rows, columns).

    Iterates x ← (a + b·G + c·G²) x with the Gram matrix G = x xᵀ of the shorter side. Where x is at least twice as
    wide as high, the iteration runs on G alone (G and the polynomials commute) and x is multiplied once at the end.
    Not so where `dtype`, by default that of `g`, is bfloat16: its rounding drowns the small eigenvalues of G.
    """
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g  # (n, short, long)
    size: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    x = (x / (size * 1.02 + 1e-7)).to(dtype or g.dtype)
    coefficients = _POLAR_EXPRESS[:iterations]
    gram = x @ x.mT
    if x.shape[2] < 2 * x.shape[1] or x.dtype == torch.bfloat16:
        for i, (a, b, c) in enumerate(coefficients):
            gram = x @ x.mT if i else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if tall else x).to(g.dtype)
    product: Tensor | None = None
    for i, (a, b, c) in enumerate(coefficients):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else torch.bmm(p, product)
        if i < len(coefficients) - 1:
            gram = torch.bmm(torch.bmm(p, gram), p)
    assert product is not None
    x = torch.bmm(product, x)
    return x.mT if tall else x
