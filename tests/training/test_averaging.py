from __future__ import annotations

import pytest
import torch

from loquela.errors import MismatchError
from loquela.training.averaging import Average


def test_the_mean_follows_its_formula_and_is_swapped_in_and_out() -> None:
    weight = torch.zeros(3)
    average = Average({"w": weight}, decay=0.5)
    expected = torch.zeros(3)
    for step in range(8):
        weight += step + 1
        average.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight
    own = weight.clone()
    with average.in_place():
        torch.testing.assert_close(weight, expected)
    assert torch.equal(weight, own)


def test_another_networks_means_are_refused() -> None:
    average = Average({"w": torch.ones(2)}, decay=0.9)
    average.restore({"w": torch.full((2,), 7.0)})
    assert average.means["w"].tolist() == [7.0, 7.0]
    with pytest.raises(MismatchError, match="the mean weights do not fit this run: v, w"):
        average.restore({"v": torch.ones(2)})
