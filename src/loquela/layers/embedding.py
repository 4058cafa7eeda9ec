"""What enters the first block: a vector for each token, and one for where it stands."""

from __future__ import annotations

from torch import Tensor, nn

from loquela.layers.cache import Cache, positions

__all__ = ["InputEmbedding"]


class InputEmbedding(nn.Module):
    """`dropout(norm(tokens(id) · scale + positions(where)))`; no norm where the architecture has none.

    `tokens` and `positions` map indices (…) to vectors (…, dim). `scale` is √dim in the 2017 transformer, so that
    embeddings drawn as small as a head needs them are not drowned by the positions (arXiv:1706.03762, 3.4).
    """

    def __init__(
        self,
        tokens: nn.Module,
        positions: nn.Module,
        *,
        scale: float = 1.0,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens, self.positions, self.norm = tokens, positions, norm
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:
        """Map `tokens` (batch, seq), which come after what `cache` holds, to the stream (batch, seq, dim).

        `padding` (batch, cached + seq) is True where a token is real; only those are counted.
        """
        where = positions(cache, tokens.shape[1], tokens.device, padding=padding)
        x = self.tokens(tokens) * self.scale + self.positions(where)
        return self.dropout(x if self.norm is None else self.norm(x))  # type: ignore[no-any-return]
