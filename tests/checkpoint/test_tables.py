"""What a rounded network keeps of an embedding is the same, whether it comes from memory or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loquela.checkpoint import tables
from loquela.checkpoint.tables import in_16_bits
from loquela.checkpoint.tensors import read_tensors, write_tensors

NUMBERS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
AT_THE_EDGE = NUMBERS.clone()
AT_THE_EDGE[31, 2] = 65_519.0  # float16 rounds it to its largest number
BEYOND = NUMBERS.clone()
BEYOND[39, 5] = 65_520.0
LATE = NUMBERS.bfloat16().float()
LATE[39, 0] = 1.0009765625  # float16 has it, bfloat16 has not
EXACT = (NUMBERS * 1e-7).bfloat16().float()  # float16 would lose most of their digits
NO_NUMBER = NUMBERS.clone()
NO_NUMBER[3, 3] = torch.nan


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        (NUMBERS, torch.float16),
        (NUMBERS.bfloat16(), torch.bfloat16),
        (NUMBERS.half(), torch.float16),
        (EXACT, torch.bfloat16),
        (LATE, torch.float16),
        (AT_THE_EDGE, torch.float16),
        (BEYOND, torch.float32),
        (NO_NUMBER, torch.float32),
        (BEYOND.bfloat16().float(), torch.bfloat16),
        (torch.empty(0, 6), torch.bfloat16),
    ],
)
@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_one_rule(
    table: Tensor, kept: torch.dtype, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_PIECE", piece)
    write_tensors(tmp_path / "t.safetensors", {"table": table})
    for found in in_16_bits(table), in_16_bits(read_tensors(tmp_path / "t.safetensors")["table"]):
        assert found.dtype == kept
        assert torch.equal(found.nan_to_num(7.0), table.to(kept).nan_to_num(7.0))
