"""Recurrent layers: the state goes on wherever a text is cut, and passes over padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.layers.recurrent import Recurrent, StateCache

KINDS = (nn.RNN, nn.LSTM, nn.GRU)
Kind = type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]


def layers(kind: Kind, depth: int = 2) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(kind, 5, 7, depth, dropout=0.0).double()


def by_hand(cells: Recurrent, x: Tensor) -> Tensor:
    """The formulas of torch's documentation, one token after the other, for x (seq, input_dim)."""
    for level in range(cells.cells.num_layers):
        wi, wh, bi, bh = (
            getattr(cells.cells, f"{name}_l{level}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(7, dtype=x.dtype)
        rows = []
        for token in x:
            a, b = wi @ token + bi, wh @ h + bh
            if isinstance(cells.cells, nn.LSTM):
                i, f, g, o = (a + b).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif isinstance(cells.cells, nn.GRU):
                (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
                z, n = (az + bz).sigmoid(), (an + (ar + br).sigmoid() * bn).tanh()
                h = (1 - z) * n + z * h
            else:
                h = (a + b).tanh()
            rows.append(h)
        x = torch.stack(rows)
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind: Kind) -> None:
    cells = layers(kind)
    x = torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(cells(x[None])[0], by_hand(cells, x), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=25)
def test_a_text_may_be_cut_anywhere(kind: Kind, cuts: list[int]) -> None:
    cells, cache = layers(kind), StateCache()
    x = torch.randn(3, sum(cuts), 5, dtype=torch.float64)
    with torch.no_grad():
        pieces = [cells(piece, cache=cache) for piece in x.split(cuts, dim=1)]
        assert torch.allclose(torch.cat(pieces, 1), cells(x), atol=1e-12)
    assert cache.length == sum(cuts)


@pytest.mark.parametrize("kind", KINDS)
@given(real=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4), more=st.integers(0, 3))
@settings(max_examples=40)
def test_padding_anywhere_is_passed_over(kind: Kind, real: list[list[bool]], more: int) -> None:
    """Left, right, in the middle, or a whole row of it; and what comes after goes on from the last real token."""
    cells, cache = layers(kind), StateCache()
    padding = torch.tensor([row + [True] * more for row in real])
    x = torch.randn(len(real), 6 + more, 5, dtype=torch.float64)
    with torch.no_grad():
        y = cells(x[:, :6], cache=cache, padding=padding[:, :6])
        if more:
            y = torch.cat((y, cells(x[:, 6:], cache=cache, padding=padding)), 1)
        for row, mask in enumerate(padding):
            if mask.any():
                assert torch.allclose(y[row, mask], cells(x[row : row + 1, mask])[0], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_chosen(kind: Kind) -> None:
    cells, cache = layers(kind), StateCache()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    cache.select(torch.tensor([0]))  # nothing read yet: nothing to choose
    with torch.no_grad():
        cells(x[:, :2], cache=cache)
        cache.select(torch.tensor([2, 2, 0]))
        assert torch.allclose(cells(x[[2, 2, 0], 2:], cache=cache), cells(x)[[2, 2, 0], 2:], atol=1e-12)


def test_a_state_cannot_be_unread() -> None:
    cells, cache = layers(nn.GRU), StateCache()
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        first = cells(x, cache=cache)
        cache.truncate(4)
        assert cache.length == 4
        with pytest.raises(UsageError, match="go back to 0"):
            cache.truncate(2)
        cache.truncate(0)
        assert torch.equal(cells(x, cache=cache), first)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_over_padding_too(kind: Kind) -> None:
    cells = layers(kind)
    x = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])
    (cells(x, padding=padding) * padding[..., None]).sum().backward()
    assert x.grad is not None
    assert (x.grad[padding] != 0).any(-1).all()
    assert (x.grad[~padding] == 0).all()
