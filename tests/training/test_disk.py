"""A disk that fills or fails: one typed error, and what was saved before goes on bit for bit."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from interrupting import RECIPE, Tally, write_recipe

from loquela.errors import StorageError
from loquela.training.run import train


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("text")
    write_recipe(directory)
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=32, intermediate_size=64)
    raw.update(data=str(directory / "text.txt"), max_steps=9, save_steps=2, eval_steps=5)
    return raw


def decided(output: Path) -> dict[str, bytes]:
    names = ["model.safetensors", "loss.csv", "checkpoint-9/model.safetensors", "checkpoint-9/optimizer.safetensors"]
    return {name: (output / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    train({**recipe, "output_dir": str(output)})
    return decided(output)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a size that can be changed: real writes that really fail."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_loses_nothing(
    recipe: dict[str, Any], undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    output = small_disk / "out"
    refusals = []
    for kilobytes in (64, 128, 300, 500, 700, 900, 1200, 1600, 2400, 64_000):  # a little more each time
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
        try:
            train({**recipe, "output_dir": str(output)})
        except StorageError as error:
            refusals.append(str(error))
    assert len(refusals) >= 4
    assert all("No space left on device" in line and "\n" not in line for line in refusals)
    assert decided(output) == undisturbed


class Fault:
    """Lets the `n`-th write, fsync or rename fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, number: int, short: bool = False) -> None:
        self.count, self.n, self.number, self.short = 0, n, number, short
        for name in ("write", "fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self.n:
                if self.short and real.__name__ == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments, **keywords)

        return call


def calls(recipe: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as context:
        fault = Fault(context, 0, 0)
        train({**recipe, "output_dir": str(output)})
        return fault.count


def fail_and_go_on(
    recipe: dict[str, Any], output: Path, n: int, number: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        Fault(context, n, number, short)
        with pytest.raises(StorageError) as caught:
            train({**recipe, "output_dir": str(output)})
    assert os.strerror(number) in str(caught.value)
    train({**recipe, "output_dir": str(output)})


def test_any_write_may_fail(
    recipe: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random()
    total = calls(recipe, tmp_path / "counted", monkeypatch)
    for n in choose.sample(range(1, total + 1), 8):
        number = choose.choice((errno.ENOSPC, errno.EIO))
        fail_and_go_on(recipe, tmp_path / f"out-{n}", n, number, choose.random() < 0.5, monkeypatch)
        assert decided(tmp_path / f"out-{n}") == undisturbed, n


@pytest.mark.soak
@pytest.mark.parametrize(("number", "short"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_every_write_may_fail(
    recipe: dict[str, Any],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    short: bool,
) -> None:
    """RELIABILITY 12; see `Tally` for parts."""
    tally = Tally(f"disk-{errno.errorcode[number]}", tmp_path)
    for n in range(tally["writes"] + 1, calls(recipe, tmp_path / "counted", monkeypatch) + 1):
        fail_and_go_on(recipe, tmp_path / f"out-{n}", n, number, short, monkeypatch)
        assert decided(tmp_path / f"out-{n}") == undisturbed, n
        shutil.rmtree(tmp_path / f"out-{n}")
        tally.add(writes=1)
