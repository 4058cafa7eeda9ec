from __future__ import annotations

import pytest
import torch

from loquela.errors import RecipeError
from loquela.training import precision
from loquela.training.precision import LossScale, device_of, dtype_of

CPU = torch.device("cpu")
LARGE = {"tokens": 768, "dim": 64}
TINY = {"tokens": 767, "dim": 64}
FEW = {"tokens": 63, "dim": 4096}
"""Just enough for bfloat16 to gain, just not, and too few to gain at any width."""


@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_a_type_that_is_slow_here_is_not_used_and_that_is_said(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: False)
    dtype, said = dtype_of(wanted, CPU, **LARGE)
    assert dtype == torch.float32
    assert said == f"dtype is float32 instead of {wanted}, at which this cpu is slow"
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    assert dtype_of(wanted, CPU, **TINY) == (getattr(torch, wanted), None), "who names a type gets it"


@pytest.mark.parametrize(
    ("fast", "size", "expected", "why"),
    [
        (True, LARGE, torch.bfloat16, "in bfloat16, in which this cpu is fast"),
        (False, LARGE, torch.float32, "this cpu has none fast in bfloat16"),
        (True, TINY, torch.float32, "767 tokens of width 64 at once gain nothing"),
        (True, FEW, torch.float32, "63 tokens of width 4096 at once gain nothing"),
    ],
)
def test_auto_takes_what_is_fast_at_this_size_and_says_why(
    fast: bool, size: dict[str, int], expected: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: fast)
    dtype, said = dtype_of("auto", CPU, **size)
    assert dtype == expected
    assert said is not None
    assert why in said


@pytest.mark.parametrize("began", ["float32", "bfloat16"])
def test_what_began_in_a_type_goes_on_in_it_whatever_auto_would_choose(
    began: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    for size in (LARGE, TINY, FEW):
        assert dtype_of("auto", CPU, **size, began=began) == (getattr(torch, began), None)
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: False)
    dtype, said = dtype_of("auto", CPU, **LARGE, began=began)
    assert dtype == torch.float32
    assert (said is None) == (began == "float32"), "a type that changes on the way is said"


@pytest.mark.parametrize("wanted", ["tpu", "cuda:99", "cuda:x", "meta", ""])
def test_a_device_that_is_not_here_is_refused_in_a_line(wanted: str) -> None:
    with pytest.raises(RecipeError, match=rf"device must be .* but is '{wanted}', which is not here$"):
        device_of(wanted)


def test_what_the_processor_says_agrees_with_torch() -> None:
    assert precision.is_fast(torch.bfloat16, CPU) >= torch.cpu._is_avx512_bf16_supported()
    assert dtype_of("float32", CPU, **LARGE) == (torch.float32, None)
    assert device_of("cpu") == CPU


def test_a_loss_scale_halves_and_doubles_and_gives_up() -> None:
    scale = LossScale(scale=4.0, patience=2)
    assert scale.overflowed()
    assert scale.overflowed()
    assert scale.scale == 1.0
    assert not scale.overflowed(), "below one it is not the scale that overflows"
    scale = LossScale(scale=4.0, patience=2)
    scale.held()
    assert scale.scale == 4.0
    scale.held()
    assert (scale.scale, scale.steps) == (8.0, 0)
