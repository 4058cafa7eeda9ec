"""One thread for small models, and the person's own choice before ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from loquela.api import load
from loquela.cli import threads


def test_a_small_model_generates_with_one_thread(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = load(model_directory), torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(threads, "_LIGHT", 1)
        threads.suit_threads(model)
        assert torch.get_num_threads() == 2, "a large model keeps them"
        monkeypatch.undo()
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        threads.suit_threads(model)
        assert torch.get_num_threads() == 2, "so does a person who says how many"
        monkeypatch.delenv("OMP_NUM_THREADS")
        threads.suit_threads(model)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_give_up_their_core_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    threads.share_cores()
    assert os.environ.pop("GOMP_SPINCOUNT") == "3000"
