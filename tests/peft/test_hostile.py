"""Adapters that lie, are damaged, or are for another base: one typed error, at once, and the network untouched."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import make, scramble, tokens  # type: ignore[import-not-found]

from loquela import peft
from loquela.errors import CheckpointError, ConfigError, LoquelaError, MismatchError, StorageError
from loquela.models.base import Network

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"]},
    "adapter": {"bottleneck_size": 3},
    "ia3": {},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
    "selective": {"tune": ["norms"]},
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save(directory: Path, method: str = "lora", model: str = "llama", **settings: Any) -> Path:
    network = make(model)
    peft.attach(network, peft.config_for(method, **(settings or METHODS[method])), "a")
    scramble(peft.trainable(network, "a"))
    peft.save_adapter(network, "a", directory, base="some/base")
    return directory


def edit(directory: Path, **changes: Any) -> None:
    """Change the config, and drop the manifest as a stranger's directory has none."""
    (directory / "manifest.json").unlink(missing_ok=True)
    raw = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**raw, **changes}))


def refused(network: Network, directory: Path, kind: type[LoquelaError] = LoquelaError) -> str:
    """Load: it must be refused in one line, and leave the network as it was."""
    before = type(network)
    with pytest.raises(kind) as caught:
        peft.load_adapter(network, directory, "x")
    assert type(network) is before
    assert peft.adapters(network) == {}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_base_is_refused_with_the_shapes(tmp_path: Path) -> None:
    save(tmp_path / "a")
    said = refused(make("llama", hidden_size=32), tmp_path / "a", MismatchError)
    assert "made for 'some/base'" in said
    assert "q_proj.lora_A.weight must be [3, 32] for this base but is [3, 24]" in said
    assert "lm_head.weight must be [61, 32] for this base but is [61, 24]" in said
    assert "4 missing" in refused(make("llama", num_hidden_layers=3), tmp_path / "a", MismatchError)
    assert "4 extra" in refused(make("llama", num_hidden_layers=1), tmp_path / "a", MismatchError)
    assert "q_proj" in refused(make("gpt2"), tmp_path / "a")
    for method in ("prompt", "prefix"):
        save(tmp_path / method, method)
        assert "token_dim must be" in refused(make("llama", hidden_size=32, head_dim=8), tmp_path / method)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    network = make("llama")
    assert "does not exist" in refused(network, tmp_path / "nothing", CheckpointError)
    (tmp_path / "empty").mkdir()
    assert CONFIG in refused(network, tmp_path / "empty", CheckpointError)
    save(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "a" / "adapter_model.bin")
    assert "never opened" in refused(network, tmp_path / "a", CheckpointError)


def flipped(directory: Path, count: int, seed: int) -> None:
    network, rng = make("llama"), random.Random(seed)
    files = sorted(directory.glob("*.*"))
    for _ in range(count):
        file = rng.choice(files)
        content = bytearray(file.read_bytes())
        place = rng.randrange(len(content))
        old = content[place]
        content[place] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        refused(network, directory, CheckpointError)
        content[place] = old
        file.write_bytes(content)
    peft.load_adapter(network, directory, "x")


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    flipped(save(tmp_path / "a"), 40, 1)


@pytest.mark.soak
def test_one_flipped_bit_at_1000_places_is_noticed(tmp_path: Path) -> None:
    flipped(save(tmp_path / "a"), 1000, 2)


def mutant(rng: random.Random, file: bytes) -> bytes:
    """Damage a safetensors file where it hurts: a bit, the end, the header's length, a name, a shape, an offset."""
    length = int.from_bytes(file[:8], "little")
    content = bytearray(file)
    kind = rng.randrange(6)
    if kind == 0:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[rng.randrange(len(content)) :]
    elif kind == 2:
        content[:8] = rng.choice([0, 1, length - 1, length + 1, 2**32, 2**63]).to_bytes(8, "little")
    else:
        header = json.loads(file[8 : 8 + length])
        name = rng.choice(sorted(set(header) - {"__metadata__"}))
        entry = header.pop(name)
        if kind == 3:
            name = rng.choice(["", "../x", name + ".x", name.replace("0", "7"), "x" * 5000, "base_model.model.lm_head"])
        elif kind == 4:
            entry["shape"] = rng.choice([[], [0], [2**40, 2**40], entry["shape"][::-1], [-1], [1.5], None, [[1]]])
        else:
            entry[rng.choice(["dtype", "data_offsets"])] = rng.choice(
                ["I8", "F16", "Q4", None, 7, [0, 0], [0, 2**63], [8, 4]]
            )
        header[name] = entry
        text = json.dumps(header).encode()
        content = bytearray(len(text).to_bytes(8, "little") + text + file[8 + length :])
    return bytes(content)


def survive(tmp_path: Path, count: int, seed: int) -> int:
    """Load mutants; returns how many were refused. What loads must run."""
    rng, out = random.Random(seed), 0
    for method in sorted(METHODS):
        directory = save(tmp_path / method, method)
        (directory / "manifest.json").unlink()
        original = (directory / WEIGHTS).read_bytes()
        network = make("llama")
        for _ in range(count // len(METHODS)):
            (directory / WEIGHTS).write_bytes(mutant(rng, original))
            try:
                peft.load_adapter(network, directory, "x")
            except LoquelaError:
                assert peft.adapters(network) == {}
                out += 1
            else:
                with torch.no_grad(), peft.wearing(network, "x"):
                    network(tokens(1, 3))
                peft.detach(network, "x")
    return out


def test_mutants_load_or_are_refused(tmp_path: Path) -> None:
    assert 50 < survive(tmp_path, 90, 1) < 90


@pytest.mark.soak
def test_20_000_mutants_load_or_are_refused(tmp_path: Path) -> None:
    assert survive(tmp_path, 20_000, 2) > 10_000


VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 10**9, 2**63, 1.5, -0.5, "x", "", "../../x", "/etc/passwd", "\0", [], ["x"], [1],
    [None], [[]], {}, {"x": 1}, {"q_proj": 10**9}, {"x": None}, "os.system", "all-linear", ".*", "(", ["q_proj"] * 1000,
    float("1e308"), "gaussian", "pissa", [0], [-1], [10**9],
]  # fmt: skip


def nonsense(tmp_path: Path, count: int, seed: int) -> None:
    rng, network = random.Random(seed), make("llama")
    imported = set(sys.modules)
    for method in sorted(METHODS):
        directory = save(tmp_path / method, method)
        raw = json.loads((directory / CONFIG).read_text())
        keys = [*raw, "auto_map", "trust_remote_code", "custom_modules", "hook", "corda_config", "runtime_config", "x"]
        for _ in range(count // len(METHODS)):
            changes = {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2, 4]))}
            (directory / "manifest.json").unlink(missing_ok=True)
            (directory / CONFIG).write_text(json.dumps({**raw, **changes}))
            started = time.process_time()
            try:
                peft.load_adapter(network, directory, "x")
            except LoquelaError as error:
                lines, left = str(error).count("\n"), peft.adapters(network)
                assert (lines, left) == (0, {}), changes
            else:
                peft.detach(network, "x")
            assert time.process_time() - started < 2, changes
    assert {name for name in set(sys.modules) - imported if not name.startswith("loquela.")} == set()


def test_a_config_of_nonsense_is_one_error(tmp_path: Path) -> None:
    nonsense(tmp_path, 120, 1)


@pytest.mark.soak
def test_10_000_configs_of_nonsense(tmp_path: Path) -> None:
    nonsense(tmp_path, 10_000, 2)


BOMBS: dict[str, tuple[str, dict[str, Any]]] = {
    "a rank of two billion": ("lora", {"r": 2**31 - 1}),
    "the largest rank": ("lora", {"r": 2**16 - 1}),
    "a rank by name": ("lora", {"rank_pattern": {"q_proj": 2**16 - 1}}),
    "a pattern that takes years": ("lora", {"target_modules": "(.*)*" * 100 + "x"}),
    "a pattern by name": ("lora", {"rank_pattern": {"(.|..)+" * 100 + "b": 2}}),
    "a million targets": ("lora", {"target_modules": [f"x{i}" for i in range(100_001)]}),
    "100,000 virtual tokens": ("prompt", {"num_virtual_tokens": 99_999}),
    "virtual tokens without end": ("prefix", {"num_virtual_tokens": 10**9}),
    "a bottleneck as wide as the world": ("adapter", {"bottleneck_size": 2**20}),
    "a thousandth": ("adapter", {"reduction_factor": 1e-3, "bottleneck_size": None}),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_are_refused_before_they_take_memory(name: str, tmp_path: Path) -> None:
    method, changes = BOMBS[name]
    edit(save(tmp_path / "a", method), **changes)
    network = make("llama")
    tracemalloc.start()
    try:
        started = time.process_time()
        with suppress(LoquelaError) if name == "a pattern by name" else pytest.raises(LoquelaError):
            peft.load_adapter(network, tmp_path / "a", "x")
        assert time.process_time() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"peft_type":' * 50_000, "\xff", '{"peft_type": "LOHA"}'])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    directory = save(tmp_path / "a")
    (directory / "manifest.json").unlink()
    (directory / CONFIG).write_text(text)
    refused(make("llama"), directory, CheckpointError)


def test_what_changes_the_base_is_refused_by_name(tmp_path: Path) -> None:
    directory = save(tmp_path / "a")
    for changes in (
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1, 2]},
        {"target_parameters": ["x"]},
        {"trainable_token_indices": [3]},
        {"r": "8"},
        {"use_rsloar": True},
    ):
        edit(directory, **{"init_lora_weights": True, "bias": "none", **changes})
        assert next(iter(changes)) in refused(make("llama"), directory, ConfigError)
        edit(save(tmp_path / "a"))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_no_link_leads_out_of_the_directory(name: str, tmp_path: Path) -> None:
    directory = save(tmp_path / "a")
    (directory / "manifest.json").unlink()
    outside = tmp_path / "outside"
    (directory / name).rename(outside)
    (directory / name).symlink_to(outside)
    assert "leads out" in refused(make("llama"), directory, CheckpointError)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_leaves_what_was_there(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make("llama")
    peft.attach(network, peft.config_for("lora", r=2), "a")
    peft.save_adapter(network, "a", tmp_path / "a")
    old = {key: value.clone() for key, value in peft.trainable(network, "a").items()}
    scramble(peft.trainable(network, "a"))
    asked = count_and_fail(monkeypatch, 0, code)
    peft.save_adapter(network, "a", tmp_path / "new")
    total, failed = asked(), 0
    new = peft.trainable(network, "a")
    for at in range(1, total + 1):
        with monkeypatch.context() as patch:
            count_and_fail(patch, at, code)
            try:
                peft.save_adapter(network, "a", tmp_path / "a")
            except StorageError:
                failed += 1
        other = make("llama")
        peft.load_adapter(other, tmp_path / "a", "x")
        found = peft.trainable(other, "x")
        assert any(all(torch.equal(found[key], values[key]) for key in values) for values in (old, new))
    assert failed > total / 2


def count_and_fail(patch: pytest.MonkeyPatch, at: int, code: int) -> Callable[[], int]:
    """Let the `at`th call that asks something of the disk fail; returns what counts the calls."""
    calls = 0

    def wrapped(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(code, os.strerror(code))
            return operation(*args, **kwargs)

        return call

    for name in ("write", "fsync", "rename", "replace", "mkdir"):
        patch.setattr(os, name, wrapped(getattr(os, name)))
    return lambda: calls
