from __future__ import annotations

import pytest
import torch

from loquela.training import precision
from loquela.training.precision import LossScale, device_of, dtype_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_a_type_that_is_slow_here_is_not_used_and_that_is_said(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: False)
    dtype, said = dtype_of(wanted, CPU)
    assert dtype == torch.float32
    assert said == f"dtype is float32 instead of {wanted}, at which this cpu is slow"
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: True)
    assert dtype_of(wanted, CPU) == (getattr(torch, wanted), None)


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_what_is_fast_and_needs_no_word(
    fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda dtype, device: fast)
    assert dtype_of("auto", CPU) == (expected, None)


def test_what_the_processor_says_agrees_with_torch() -> None:
    assert precision.is_fast(torch.bfloat16, CPU) >= torch.cpu._is_avx512_bf16_supported()
    assert dtype_of("float32", CPU) == (torch.float32, None)
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
