"""Weights in several files with an index, written by one process or by several, read as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.checkpoint import parts
from loquela.checkpoint.parts import stored_tensors, write_parts
from loquela.errors import CheckpointError


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (40, 10), "b": (3,), "c": (7, 5), "d": (200,), "e": ()}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 12))
def test_every_part_has_a_tensor_and_none_is_much_larger(sizes: list[int], count: int) -> None:
    count = min(count, len(sizes))
    places = parts._places({str(i): size for i, size in enumerate(sizes)}, count)
    assert sorted(set(places.values())) == list(range(count))
    assert list(places.values()) == sorted(places.values()), "the order of the tensors is kept"
    held = [sum(size for i, size in enumerate(sizes) if places[str(i)] == part) for part in range(count)]
    assert max(held) <= sum(sizes) / count + 2 * max(sizes) + 1


def test_large_weights_go_into_several_files_that_transformers_names_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_FILE", 1000)
    given_tensors = tensors()
    write_parts(tmp_path, given_tensors, metadata={"format": "pt"})
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in given_tensors.values())
    read = stored_tensors(tmp_path)
    assert read.keys() == given_tensors.keys()
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in given_tensors.items())


def test_several_writers_write_what_one_reader_reads(tmp_path: Path) -> None:
    gathered: list[list[str]] = []
    for rank in range(3):
        order: list[str] = []
        held = tensors()
        names = {id(t): n for n, t in held.items()}

        def whole(tensor: torch.Tensor, order: list[str] = order, names: dict[int, str] = names) -> torch.Tensor:
            order.append(names[id(tensor)])
            return tensor

        write_parts(tmp_path, held, "optimizer", rank=rank, world=3, whole=whole)
        gathered.append(order)
    assert gathered[0] == gathered[1] == gathered[2], "all ranks gather in the same order"
    read = stored_tensors(tmp_path, "optimizer")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in tensors().items())
    assert len(list(tmp_path.glob("optimizer-*"))) == 3


def test_a_write_that_fails_leaves_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"in the way")
    seen: list[int] = []
    with pytest.raises(FileExistsError):
        write_parts(tmp_path, tensors(), rank=0, world=2, whole=lambda t: seen.append(1) or t)  # type: ignore[func-returns-value]
    assert len(seen) == 5, "the gathers of the other ranks are all answered"


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, tensors(), world=2)  # the other writer never came
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards: 'model-00002-of-00002\.safetensors'"):
        stored_tensors(tmp_path)
