"""Learning rates that suit the base."""

from __future__ import annotations

import pytest

from loquela.tuning.recipe import TuneRecipe


def test_fresh_matrices_learn_faster_beside_a_narrow_base() -> None:
    given = {"model": "base", "data": "rows.jsonl", "output_dir": "out"}
    lora, full = (TuneRecipe.load({**given, "method": method}) for method in ("lora", "full"))
    assert [lora.rate(dim) for dim in (8192, 4096, 1024, 384, 32)] == pytest.approx([2e-4, 2e-4, 8e-4, 2e-3, 2e-3])
    assert full.rate(32) == full.rate(8192)
    assert TuneRecipe.load({**given, "method": "lora", "learning_rate": 3e-5}).rate(32) == 3e-5
