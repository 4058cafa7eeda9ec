"""Two processes over gloo learn what one learns: the same samples, the same sums, but for the order of additions."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from interrupting import RECIPE, write_recipe

from loquela.checkpoint.parts import stored_tensors
from loquela.checkpoint.store import load_model
from loquela.data.batch import IGNORED, Batch
from loquela.training.log import Row, read_rows
from loquela.training.ranks import Ranks, rows_of
from loquela.training.run import train
from loquela.training.step import _parts

STEPS = 8
TOLERANCE = 1e-4  # relative, of every loss in the curve; float32 sums in another order differ by 1e-7, which grows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("text")
    write_recipe(directory)
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=32, intermediate_size=64)
    raw.update(data=str(directory / "text.txt"), max_steps=STEPS, logging_steps=1, eval_steps=4, save_steps=4)
    raw.update(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=0.5, ema_decay=0.9)
    return raw


@pytest.fixture(scope="module")
def one(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the global batch of two."""
    output = tmp_path_factory.mktemp("one") / "out"
    train({**recipe, "output_dir": str(output), "per_device_train_batch_size": 4})
    return output


@pytest.fixture(scope="module")
def two(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes: both ways to share the work, and the second stopped in the midst by a signal to one of them."""
    directory = tmp_path_factory.mktemp("two")
    changes: dict[str, dict[str, Any]] = {
        "ddp": {},
        "fsdp": {"parallel": "fsdp", "sample_steps": 3, "gradient_checkpointing": True},
        "half ddp": {"dtype": "bfloat16"},
        "half fsdp": {"dtype": "bfloat16", "parallel": "fsdp"},
        "stopped": {"parallel": "fsdp", "signal_at": 3},  # the last: its signal stays set
    }
    files = []
    for name, change in changes.items():
        files.append(directory / f"{name}.json")
        files[-1].write_text(json.dumps({**recipe, "output_dir": str(directory / name), **change}))
    launch(2, files)
    return directory


def launch(world: int, recipes: list[Path]) -> list[str]:
    """Start the processes as torchrun does: a rank each, and where they meet; return what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("rank.py")), *map(str, recipes)]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)
    return outputs


def curve(output: Path) -> list[Row]:
    return read_rows(output / "loss.csv")


def assert_same_curve(ours: list[Row], theirs: list[Row]) -> None:
    assert [row.step for row in ours] == [row.step for row in theirs]
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=TOLERANCE)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=10 * TOLERANCE)
        assert (a.val_loss is None) == (b.val_loss is None)
        assert a.val_loss is None or a.val_loss == pytest.approx(b.val_loss, rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(one: Path, two: Path, kind: str) -> None:
    """Muon and AdamW, clipping, accumulation, mean weights, and (fsdp) layers computed again."""
    assert_same_curve(curve(two / kind), curve(one))
    ours, theirs = load_model(two / kind), load_model(one)
    for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    result = json.loads((two / kind / "train_results.json").read_text())
    assert result["tokens"] == STEPS * 8 * 48
    assert json.loads((two / kind / "receipt.json").read_text())["processes"] == 2


def test_two_processes_learn_in_bfloat16_what_one_learns(recipe: dict[str, Any], two: Path, tmp_path: Path) -> None:
    """The same rows computed at once, so that each product is rounded alike; a machine slow at it takes float32."""
    train({**recipe, "output_dir": str(tmp_path / "out"), "gradient_accumulation_steps": 4, "dtype": "bfloat16"})
    for kind in ("half ddp", "half fsdp"):
        for ours, alone in zip(curve(two / kind), curve(tmp_path / "out"), strict=True):
            assert ours.train_loss == pytest.approx(alone.train_loss, rel=20 * TOLERANCE)
            assert ours.tokens == alone.tokens
    made = {
        json.loads((place / "receipt.json").read_text())["precision"]["products"]
        for place in (two / "half ddp", two / "half fsdp", tmp_path / "out")
    }
    assert len(made) == 1


def test_a_signal_to_one_stops_all_at_the_same_boundary_and_one_process_goes_on(
    recipe: dict[str, Any], one: Path, two: Path
) -> None:
    """What two processes have saved in slices opens on one, which makes the batches of two."""
    output = two / "stopped"
    assert [p.name for p in output.glob("checkpoint-*")] == ["checkpoint-3"]
    names = {p.name for p in (output / "checkpoint-3").iterdir()}
    assert {"model-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"} <= names
    notes: list[str] = []
    train(
        {**recipe, "output_dir": str(output)}, on_event=lambda event: notes.append(str(getattr(event, "message", "")))
    )
    assert "going on from checkpoint-3" in notes
    assert "1 processes go on with the batches of 8 samples that 2 began" in notes
    assert_same_curve(curve(output), curve(one))


def test_slices_hold_what_one_process_holds(one: Path, two: Path) -> None:
    ours, theirs = (stored_tensors(place / f"checkpoint-{STEPS}", "optimizer") for place in (two / "fsdp", one))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].read(), tensor.read(), rtol=0, atol=1e-4, msg=name)


# -- how rows are shared


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_every_row_is_computed_once_and_all_ranks_have_as_many_parts(rows: int, world: int, micro_batch: int) -> None:
    batch = Batch(torch.arange(rows)[:, None], torch.arange(rows)[:, None])
    parts = [list(_parts(batch, micro_batch, Ranks(rank=rank, world=world))) for rank in range(world)]
    assert len({len(own) for own in parts}) == 1, "a backward pass on one is a backward pass on all"
    labels = [int(label) for own in parts for part in own for label in part.labels[:, 0] if label != IGNORED]
    assert labels == list(range(rows))
    assert all(1 <= len(part) <= micro_batch for own in parts for part in own)


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_stand_side_by_side_and_differ_by_one_at_most(count: int, world: int) -> None:
    shares = [rows_of(count, rank, world) for rank in range(world)]
    assert shares[0].start == 0
    assert shares[-1].stop == count
    assert all(a.stop == b.start for a, b in itertools.pairwise(shares))
    sizes = {share.stop - share.start for share in shares}
    assert max(sizes) - min(sizes) <= 1


# -- compiled layers


@pytest.mark.soak
def test_compiled_layers_of_two_processes_learn_what_one_learns(
    recipe: dict[str, Any], one: Path, tmp_path: Path
) -> None:
    """Both ways to share the work, and that each is compiled indeed: a block of the model has 39 operations.

    Takes a minute or two of compiling.
    """
    files = []
    for kind in ("ddp", "fsdp"):
        files.append(tmp_path / f"{kind}.json")
        changes = {"parallel": kind, "torch_compile": True, "output_dir": str(tmp_path / kind)}
        files[-1].write_text(json.dumps({**recipe, **changes}))
    files.append(tmp_path / "plain.json")
    files[-1].write_text(json.dumps({**recipe, "max_steps": 1, "output_dir": str(tmp_path / "plain")}))
    for printed in launch(2, files):
        ddp, fsdp, plain = (int(line.split()[1]) for line in printed.splitlines() if line.startswith("captured "))
        assert (ddp >= 39, fsdp >= 39, plain) == (True, True, 0), printed
    for kind in ("ddp", "fsdp"):
        assert_same_curve(curve(tmp_path / kind), curve(one))


# -- a process that dies


@pytest.mark.soak
def test_killed_again_and_again_and_restarted_by_torchrun_it_ends_bit_for_bit_the_same(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """kill -9 of one of two processes, five times: torchrun starts both again, they go on from the last checkpoint."""
    raw = {**recipe, "parallel": "fsdp", "max_steps": 60, "output_dir": str(tmp_path / "undisturbed")}
    (tmp_path / "recipe.json").write_text(json.dumps(raw))
    launch(2, [tmp_path / "recipe.json"])
    output = tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**raw, "output_dir": str(output)}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "9"]
    with (tmp_path / "log.txt").open("w") as log:
        launcher = subprocess.Popen(
            [*torchrun, "-m", "loquela", "train", str(tmp_path / "recipe.yaml")],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        choose = random.Random(5)
        for kill in range(5):
            rows = choose.randint(2, 10) + 10 * kill
            while rows_in(output) < rows and launcher.poll() is None:
                time.sleep(0.02)
            victim = rank_of(launcher.pid, kill % 2)
            assert victim is not None, (tmp_path / "log.txt").read_text()
            os.kill(victim, signal.SIGKILL)
        assert launcher.wait(600) == 0, (tmp_path / "log.txt").read_text()
    assert (output / "loss.csv").read_bytes() == (tmp_path / "undisturbed" / "loss.csv").read_bytes()
    ours, theirs = (stored_tensors(place) for place in (output, tmp_path / "undisturbed"))
    assert all(torch.equal(tensor.read(), theirs[name].read()) for name, tensor in ours.items())


def rows_in(output: Path) -> int:
    file = output / "loss.csv"
    return file.read_bytes().count(b"\n") - 1 if file.exists() else 0


def rank_of(launcher: int, rank: int) -> int | None:
    """Return the process that is `rank` now, waiting for it to be started."""
    for _ in range(600):
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            try:
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return int(child)
            except OSError:
                continue
        time.sleep(0.1)
    return None
