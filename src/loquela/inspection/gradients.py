"""How far back a network can learn from: the gradient of a prediction's loss at the tokens before it.

In a recurrent network the gradient passes through every state on its way back, and each step multiplies it by the same
matrices: it fades or explodes as a power of the distance (Bengio et al., 1994). An LSTM's cell lets it through
(Hochreiter and Schmidhuber, 1997); attention reaches every token in one step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.models.base import Network

__all__ = ["gradient_norms"]


def gradient_norms(network: Network, tokens: Tensor) -> dict[int, float]:
    """Return distance k → norm of the gradient of the last token's loss at the embedding k tokens before it.

    `tokens` (batch, seq ≥ 2; int64) gives distances 1 to seq - 1; norms are averaged over the batch. Raises
    `UsageError` for a network that does not read from left to right through `token_embedding`.
    """
    embedding = getattr(network, "token_embedding", None)
    if network.kind != "decoder" or not isinstance(embedding, nn.Module):
        raise UsageError(
            f"gradients by distance need a decoder that embeds its tokens, not {network.config.model_type}"
        )
    if tokens.dim() != 2 or tokens.shape[1] < 2:
        raise UsageError(f"tokens must be (batch, seq) with two tokens or more in a row, but are {list(tokens.shape)}")
    embedded: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    training = network.training
    handle = embedding.register_forward_hook(catch)
    try:
        with torch.enable_grad():
            hidden = network.eval().hidden(tokens[:, :-1])  # without dropout
            loss = F.cross_entropy(network.head(hidden[:, -1]).float(), tokens[:, -1], reduction="sum")
            if embedded[-1].shape[:2] != tokens[:, :-1].shape:
                raise UsageError(
                    f"gradients by distance need each token embedded once; {network.config.model_type} reads windows"
                )
            (gradient,) = torch.autograd.grad(loss, embedded[-1])  # (batch, seq - 1, dim)
    finally:
        handle.remove()
        network.train(training)
    norms = gradient.float().norm(dim=-1).mean(0)
    return {k: float(norms[-k]) for k in range(1, len(norms) + 1)}
