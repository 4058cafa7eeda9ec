"""Weights of few bits: they go from the file into tiles, nothing else of them is kept, and what they cost is little."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loquela.api import load
from loquela.checkpoint import few_bits
from loquela.checkpoint.few_bits import StoredCodes, described, to_disk_rounded, unrounded
from loquela.checkpoint.store import load_model, opened, save_model, write_model
from loquela.checkpoint.tensors import read_tensors, write_tensors
from loquela.data.corpora import path
from loquela.data.readers import Piece, read_pieces
from loquela.engine.decoder import CompiledNetwork, compiled
from loquela.engine.quantize import Codes, laid_out, packed, quantised, together
from loquela.errors import CheckpointError, UsageError
from loquela.evaluation.perplexity import score
from loquela.models.base import Network

CHARACTERS = 24_000


@pytest.fixture
def model(llama: Network, tmp_path: Path) -> Path:
    save_model(llama, None, tmp_path / "model")
    return tmp_path / "model"


def matrices(network: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (37, 96), (5, 70), (50, 48), (1, 2)])
def test_a_matrix_lies_the_same_wherever_it_comes_from(
    bits: int, rows: int, columns: int, llama: Network, tmp_path: Path
) -> None:
    weights = [torch.randn(n, columns, generator=torch.Generator().manual_seed(n)) for n in (rows, 19)]
    each = [quantised(weight, bits) for weight in weights]
    rounded = to_disk_rounded(llama, {f"own.{i}": (bits, c.codes, c.scales) for i, c in enumerate(each)})
    stored = {name: tensor for name, tensor in rounded.items() if name.startswith("own.")}
    write_tensors(tmp_path / "codes.safetensors", stored)
    write_tensors(tmp_path / "floats.safetensors", {f"{i}.w": weight for i, weight in enumerate(weights)})
    codes = unrounded(read_tensors(tmp_path / "codes.safetensors"))
    assert all(isinstance(tensor, StoredCodes) for tensor in codes.values())
    expected, tile, padded = packed(each, bits)
    for parts in (weights, [*codes.values()], [*read_tensors(tmp_path / "floats.safetensors").values()]):
        out, *shape, work = laid_out(parts, bits)
        together(work[::-1], 3)
        assert shape == [tile, padded]
        assert np.array_equal(out, expected)


def test_codes_of_another_width_are_rounded_again() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    wide = quantised(weight, 8)
    assert np.array_equal(packed([wide], 4)[0], packed([quantised(wide.dequantised(), 4)], 4)[0])


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e4])
def test_no_scale_of_four_bits_fits_much_better(spread: float) -> None:
    weight = spread * torch.randn(400, 32, generator=torch.Generator().manual_seed(2))
    error = (quantised(weight, 4).dequantised() - weight).square().sum(1)
    least = torch.full_like(error, torch.inf)
    largest = weight.abs().amax(1, keepdim=True)
    for part in torch.linspace(4.5, 9.5, 201):
        for sign in (1, -1):
            scale = sign * (largest / part).bfloat16().float()
            least = least.minimum(((weight / scale).round().clamp(-8, 7) * scale - weight).square().sum(1))
    assert error.sum() < 1.003 * least.sum()
    assert (error / least).max() < 1.15


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_matrices_are_never_in_the_network(quantize: Any, model: Path) -> None:
    with opened(model, unread=True) as loaded:
        assert matrices(loaded.network)
        assert all(weight.is_meta or weight.dtype == torch.float16 for weight in matrices(loaded.network))
        assert {f"{name}.weight" for name, m in loaded.network.named_modules() if isinstance(m, nn.Linear)} <= {
            *loaded.unread
        }
        made = compiled(loaded.network, quantize=quantize, stored=loaded.unread)
    assert all(weight.is_meta or weight.dtype == torch.float16 for weight in matrices(made.base))
    whole = load_model(model).network
    whole.token_embedding.weight.data = whole.token_embedding.weight.half()  # type: ignore[union-attr, operator]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert (made(ids) - compiled(whole, quantize=quantize)(ids)).abs().max() < 1e-2 * made(ids).abs().max()


def test_what_was_left_can_be_read_after_all(model: Path) -> None:
    before = load_model(model).network.state_dict()
    with opened(model, unread=True) as loaded:
        after = loaded.read_rest().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    tied = loaded.network
    assert (tied.lm_head.weight is tied.token_embedding.weight) == tied.config.tie_word_embeddings  # type: ignore[union-attr, attr-defined]


def test_a_damaged_file_is_noticed_though_it_is_read_in_pieces(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match="has changed"):
        load(model, quantize="int8")


def test_an_embedding_beyond_float16_stays_in_float32(llama: Network, tmp_path: Path) -> None:
    llama = copy.deepcopy(llama)
    with torch.no_grad():
        llama.token_embedding.weight[3, 0] = 1e5  # type: ignore[union-attr, index, operator]
    save_model(llama, None, tmp_path / "model")
    with opened(tmp_path / "model", unread=True) as loaded:
        weight: Any = loaded.network.token_embedding.weight  # type: ignore[union-attr]
    assert weight.dtype == torch.float32
    assert weight[3, 0] == 1e5


def test_few_bits_that_the_engine_does_not_know_run_in_torch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((model / "config.json").read_text())
    network = load_model(model).network
    rounded = {
        stored: (8, made.codes, made.scales)
        for stored, layer in few_bits.matrices(network).values()
        for made in [quantised(layer.weight, 8)]
    }
    place = model.parent / "rounded"
    place.mkdir()
    write_model(network, None, place, rounded=rounded)
    assert json.loads((place / "config.json").read_text())["quantization_config"] == described(8)
    assert config["model_type"] == "llama"
    assert isinstance(load(place).network, CompiledNetwork)

    def refuse(*_: Any, **__: Any) -> Any:
        raise UsageError("the compiled engine does not know this")

    monkeypatch.setattr("loquela.engine.decoder.compiled", refuse)
    found, expected = load(place), load(place, engine="torch")
    assert not isinstance(found.network, CompiledNetwork)
    ids = torch.arange(12)
    assert torch.equal(found.logits(ids), expected.logits(ids))
    with pytest.raises(UsageError, match="does not know"):
        load(place, quantize="int8")


@pytest.mark.parametrize(
    ("given", "bound"),
    [({"quantize": "int8"}, 0.001), ({"quantize": "int4"}, 0.02), ({"cache_dtype": "float16"}, 0.0001),
     ({"cache_dtype": "int8"}, 0.001)],
)  # fmt: skip
def test_what_rounding_costs_a_trained_model(given: Any, bound: float, trained: tuple[Any, list[Piece], float]) -> None:
    loaded, text, exact = trained
    network = compiled(loaded.network, **given)
    found = score(network, loaded.tokenizer, text, stride=network.context_length).perplexity
    assert abs(found / exact - 1) < bound


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[Piece], float]:
    """A house model, a text, and its perplexity in float32."""
    loaded = load_model("cuentos")
    text = [Piece(next(iter(read_pieces(str(path("quijote"))))).text[:CHARACTERS], True)]
    network = compiled(loaded.network)
    return loaded, text, score(network, loaded.tokenizer, text, stride=network.context_length).perplexity


def test_codes_say_their_shape() -> None:
    made = quantised(torch.randn(3, 40), 8)
    assert isinstance(made, Codes)
    assert made.shape == (3, 40) == made.dequantised().shape
