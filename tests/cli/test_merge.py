from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loquela import load, peft
from loquela.checkpoint.store import load_model, save_model


def adapter(directory: Path, base: Path, method: str = "lora", seed: int = 0, **settings: Any) -> Path:
    """Save an adapter for `base` that changes it."""
    network = load_model(base).network
    peft.attach(network, peft.config_for(method, **settings), "a", seed)
    with torch.no_grad():
        for parameter in peft.trainable(network, "a").values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    peft.save_adapter(network, "a", directory, base=str(base))
    return directory


@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {"r": 3}), ("lora", {"use_dora": True}), ("ia3", {}), ("selective", {"tune": ["norms"]})],
)
def test_what_is_written_needs_no_adapter(
    method: str, settings: dict[str, Any], loquela: Any, model_directory: Path, tmp_path: Path
) -> None:
    place = adapter(tmp_path / "a", model_directory, method, **settings)
    result = loquela("merge", "-m", model_directory, "--adapter", place, "--output", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed["model"] == str(tmp_path / "out")
    assert printed["parity"]["max_abs_logit_diff"] <= printed["parity"]["bound"]
    with_adapter, merged, plain = load(model_directory, adapter=place), load(tmp_path / "out"), load(model_directory)
    ids = [5, 9, 200, 14]
    torch.testing.assert_close(merged.logits(ids), with_adapter.logits(ids), atol=1e-5, rtol=1e-5)
    assert (merged.logits(ids) - plain.logits(ids)).abs().max() > 1e-2
    assert merged.tokenizer.fingerprint == plain.tokenizer.fingerprint


def test_there_and_back(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "a", model_directory, r=3)
    assert loquela("merge", "-m", model_directory, "--adapter", place, "--output", tmp_path / "in").code == 0
    back = loquela("merge", "--unmerge", "-m", tmp_path / "in", "--adapter", place, "--output", tmp_path / "out")
    assert back.code == 0, back.err
    assert "taken out of" in back.out
    ids = [5, 9, 200, 14]
    torch.testing.assert_close(
        load(tmp_path / "out").logits(ids), load(model_directory).logits(ids), atol=1e-5, rtol=1e-5
    )


def test_several_with_weights(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "one", model_directory, seed=1, r=3)
    two = adapter(tmp_path / "two", model_directory, seed=2, r=2, target_modules="all-linear")
    common = ("merge", "-m", model_directory, "--adapter", one, "--adapter", two)
    summed = loquela(*common, "--weights", "0.5,2", "--output", tmp_path / "sum", "--json")
    assert summed.code == 0, summed.err
    assert json.loads(summed.out)["weights"] == [0.5, 2.0]
    base, merged = load_model(model_directory).network, load_model(tmp_path / "sum").network
    expected = base.get_parameter("decoder.layers.0.attention.q_proj.weight").detach().clone()
    for place, weight in ((one, 0.5), (two, 2.0)):
        own = load_model(model_directory).network
        peft.load_adapter(own, place, "a")
        peft.merge(own, "a")
        name = "decoder.layers.0.attention.q_proj.weight"
        expected += weight * (own.get_parameter(name) - base.get_parameter(name)).detach()
    got = merged.get_parameter("decoder.layers.0.attention.q_proj.weight").detach()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    ties = loquela(*common, "--how", "ties", "--output", tmp_path / "ties", "--json")
    assert ties.code == 0, ties.err
    assert json.loads(ties.out)["how"] == "ties"


def test_adapters_may_have_names_as_serve_gives_them(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "one", model_directory, seed=1, r=3)
    two = adapter(tmp_path / "x=two", model_directory, seed=2, r=2)
    common = ("merge", "-m", model_directory, "--json", "--output")
    named = loquela(*common, tmp_path / "a", "--adapter", f"mine={one}", "--adapter", two)
    assert named.code == 0, named.err
    assert json.loads(named.out)["adapters"] == [str(one), str(two)]
    assert loquela(*common, tmp_path / "b", "--adapter", one, "--adapter", f"yours={two}").code == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    twice = loquela(*common, tmp_path / "c", "--adapter", f"mine={one}", "--adapter", f"mine={two}")
    assert (twice.code, "'mine' is there twice" in twice.err) == (2, True)
    empty = loquela(*common, tmp_path / "c", "--adapter", "mine=")
    assert (empty.code, "must be DIR or NAME=DIR" in empty.err) == (2, True)


def test_half_precision_has_its_own_bound(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    loaded = load_model(model_directory, dtype="bfloat16")
    save_model(loaded.network, loaded.tokenizer, tmp_path / "base")
    place = adapter(tmp_path / "a", tmp_path / "base", r=3)
    result = loquela("merge", "-m", tmp_path / "base", "--adapter", place, "--output", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["parity"]["max_abs_logit_diff"] > 1e-4  # bfloat16 rounds, and it is said
    assert next(load_model(tmp_path / "out", dtype="auto").network.parameters()).dtype == torch.bfloat16


def test_probes_that_differ_keep_everything_away(
    loquela: Any, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loquela.peft import folding

    monkeypatch.setitem(folding.BOUNDS, "float32", 1e-12)
    place = adapter(tmp_path / "a", model_directory, r=3)
    result = loquela("merge", "-m", model_directory, "--adapter", place, "--output", tmp_path / "out")
    assert result.code == 1
    assert "nothing is kept" in result.err
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_refusals_are_one_line(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", model_directory, r=3)
    soft = adapter(tmp_path / "soft", model_directory, "prompt")
    dora = adapter(tmp_path / "dora", model_directory, use_dora=True)
    (tmp_path / "there").mkdir()
    out = ("--output", tmp_path / "out")
    for code, arguments, said in (
        (1, ("--adapter", tmp_path / "nothing", *out), "an adapter must be a directory"),
        (2, ("--adapter", soft, *out), "cannot be merged into weights"),
        (2, ("--adapter", lora, "--output", tmp_path / "there"), "must be a new path"),
        (2, ("--adapter", lora, "--adapter", dora, *out), "plain LoRA"),
        (2, ("--adapter", lora, "--weights", "1,2", *out), "one for each adapter"),
        (2, ("--adapter", lora, "--weights", "much", *out), "must be numbers"),
        (2, ("--adapter", lora, "--adapter", lora, "--how", "magic", *out), "weighted or ties"),
        (2, ("--adapter", dora, "--unmerge", *out), "take the base itself"),
        (2, ("--adapter", lora, "--dtype", "int3", *out), "dtype must be"),
    ):
        result = loquela("merge", "-m", model_directory, *arguments)
        assert result.code == code, (arguments, result.err)
        assert said in result.err
        assert result.err.count("\n") == 1
        assert result.out == ""
    assert not (tmp_path / "out").exists()
