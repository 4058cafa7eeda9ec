"""Recurrent networks and n-grams go through the same training as any other model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loquela.checkpoint.store import load_model
from loquela.errors import RecipeError
from loquela.models.ngram import NGram
from loquela.training.events import Event, Note
from loquela.training.run import train

TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(99, 0, -1))


def recipe(directory: Path, model: dict[str, Any], **settings: Any) -> dict[str, Any]:
    text = directory.parent / "text.txt"
    text.write_text(TEXT)
    given = {"tokenizer": {"kind": "char"}, "data": str(text), "block_size": 16, "per_device_train_batch_size": 4}
    return {"model": model, "output_dir": str(directory), "seed": 3, "learning_rate": 5e-3, **given, **settings}


def tensors(directory: Path) -> list[torch.Tensor]:
    return list(load_model(directory, dtype="auto").network.state_dict().values())


def cut_and_gone_on(directory: Path, model: dict[str, Any], **settings: Any) -> None:
    """Train, lose all that came after the checkpoint of step 20, and train on from there."""
    train(recipe(directory, model, **settings))
    for name in ("model.safetensors", "train_results.json", "manifest.json"):
        (directory / name).unlink()
    shutil.rmtree(directory / "checkpoint-40")
    notes: list[Event] = []
    train(recipe(directory, model, **settings), on_event=notes.append)
    assert Note("going on from checkpoint-20") in notes


@pytest.mark.parametrize("model_type", ["rnn", "lstm", "gru"])
def test_recurrent_networks_learn_and_resume_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = {"model_type": model_type, "hidden_size": 24, "hidden_dropout_prob": 0.1}
    settings = {"max_steps": 40, "save_steps": 20, "logging_steps": 10}
    result = train(recipe(tmp_path / "whole", model, **settings))
    assert result.val_loss < 2.7  # a uniform guess costs 3.3
    cut_and_gone_on(tmp_path / "cut", model, **settings)
    assert (tmp_path / "cut" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()
    for a, b in zip(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"), strict=True):
        assert torch.equal(a, b)


def test_an_ngram_model_counts_the_text_once(tmp_path: Path) -> None:
    given = recipe(tmp_path / "model", {"model_type": "ngram", "order": 4})
    events: list[Event] = []
    result = train(given, on_event=events.append)
    assert any(isinstance(event, Note) and "has no effect" in event.message for event in events)
    assert result.steps == 1
    assert result.val_loss < 0.5
    network = load_model(tmp_path / "model").network
    assert isinstance(network, NGram)
    tokens = np.fromfile(next((tmp_path / "model" / "data").glob("train*.bin")), dtype="<u2")
    assert result.tokens == len(tokens)
    again = NGram(network.config)
    again.fit(tokens)
    for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert train(given) == result
    (tmp_path / "model" / "train_results.json").unlink()
    assert train(given).val_loss == result.val_loss


RESIDUAL = {"model_type": "ngram_residual", "order": 3, "residual": {"model_type": "lstm", "hidden_size": 24}}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_a_decoder_beside_counts_learns_and_resumes_bit_for_bit(optim: str, tmp_path: Path) -> None:
    settings = {"max_steps": 40, "save_steps": 20, "logging_steps": 10, "eval_steps": 10, "optim": optim}
    settings |= {"ema_decay": 0.9, "load_best_model_at_end": True}
    alone = train(recipe(tmp_path / "alone", {"model_type": "ngram", "order": 3}))
    events: list[Event] = []
    result = train(recipe(tmp_path / "whole", RESIDUAL, **settings), on_event=events.append)
    assert any(isinstance(event, Note) and "counted 4," in event.message for event in events)
    assert result.val_loss < alone.val_loss - 0.01
    network, counts = load_model(tmp_path / "whole").network, load_model(tmp_path / "alone").network
    for name, tensor in counts.state_dict().items():
        assert torch.equal(network.state_dict()[f"ngram.{name}"], tensor)
    cut_and_gone_on(tmp_path / "cut", RESIDUAL, **settings)
    for a, b in zip(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"), strict=True):
        assert torch.equal(a, b)


def test_counts_need_a_causal_objective(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must have objective causal and parallel ddp, not objective prefix_lm"):
        train(recipe(tmp_path / "model", RESIDUAL, objective="prefix_lm", max_steps=1))
