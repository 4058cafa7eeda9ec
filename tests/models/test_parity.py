"""GPT-2, LLaMA and Qwen3 beside transformers' on random weights; decoding in pieces; padding on either side."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from loquela.checkpoint.store import load_model, save_model
from loquela.models.base import Network, architecture, config_from_dict
from loquela.models.rotary_decoder import RotaryDecoder

VOCABULARY = 97
BOUND = 1e-5
LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, narrow, exact gelu": (
        "GPT2",
        {**GPT2, "tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"},
    ),
    "llama, 3 heads share a key": ("Llama", LLAMA),
    "llama, one key for all, tied": ("Llama", {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, a key each, biases": (
        "Llama",
        {**LLAMA, "num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, wide heads, own base": (
        "Llama",
        {**LLAMA, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-3},
    ),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 12}),
    "qwen3, tied, biases": ("Qwen3", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
}
ENDING = {"GPT2": "LMHeadModel"}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> Any:
    """A model of transformers with scrambled weights, biases and norms too."""
    family, config = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    kind = getattr(transformers, family + ENDING.get(family, "ForCausalLM"))
    model = kind(getattr(transformers, family + "Config")(vocab_size=VOCABULARY, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@cache
def ours(name: str) -> Network:
    with TemporaryDirectory() as directory:
        make(name).save_pretrained(directory)
        return load_model(directory).network


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@every_model
def test_logits_are_those_of_transformers(name: str) -> None:
    theirs = make(name)
    with torch.no_grad():
        for length in (1, 2, 13, 63, 64):
            ids = tokens(3, length, length)
            expected = theirs(ids).logits
            assert expected.std() > 0.1  # a model that says the same of everything proves nothing
            assert gap(ours(name)(ids), expected) <= BOUND


@every_model
def test_hidden_states_are_those_of_transformers(name: str) -> None:
    ids = tokens(2, 17)
    with torch.no_grad():
        expected = make(name)(ids, output_hidden_states=True).hidden_states[-1]
        assert gap(ours(name).hidden(ids), expected) <= BOUND


@every_model
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_saved_back_every_bit_is_the_same(name: str, shard: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    files = sorted((tmp_path / "theirs").glob("*.safetensors"))
    assert len(files) == 1 if shard == "5GB" else len(files) > 3
    expected = {key: value for file in files for key, value in load_file(file).items()}
    save_model(load_model(tmp_path / "theirs").network, None, tmp_path / "ours")
    got = load_file(tmp_path / "ours" / "model.safetensors")
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value)


@every_model
def test_what_we_save_opens_in_transformers(name: str, tmp_path: Path) -> None:
    save_model(ours(name), None, tmp_path / "ours")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(again) is type(make(name))
    ids = tokens(2, 21)
    with torch.no_grad():
        assert gap(again(ids).logits, ours(name)(ids)) <= BOUND


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
def test_a_model_that_begins_here_opens_in_transformers(model_type: str, tmp_path: Path) -> None:
    raw = {**(GPT2 if model_type == "gpt2" else LLAMA), "model_type": model_type, "vocab_size": VOCABULARY}
    config = config_from_dict(raw)
    torch.manual_seed(3)
    network: Network = architecture(model_type).NETWORK(config).eval()
    network.initialise()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_model(network, None, tmp_path / "ours")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    ids = tokens(2, 33)
    with torch.no_grad():
        assert gap(again(ids).logits, network(ids)) <= BOUND


def test_greedy_text_is_that_of_transformers() -> None:
    name = "llama, 3 heads share a key"
    prompt = tokens(1, 5)
    with torch.no_grad():
        expected = make(name).generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
        network, got = ours(name), prompt
        memory, step = network.new_cache(), prompt
        for _ in range(40):
            step = network(step, cache=memory)[:, -1:].argmax(-1)
            got = torch.cat((got, step), dim=1)
    assert got.tolist() == expected.tolist()


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 3), st.lists(st.integers(1, 20), min_size=1, max_size=6))
@settings(max_examples=60)
def test_in_pieces_as_in_one(name: str, batch: int, pieces: list[int]) -> None:
    """However a text is cut into calls with a cache, the logits are those of one call."""
    network = ours(name)
    ids = tokens(batch, min(sum(pieces), 64), sum(pieces))
    with torch.no_grad():
        expected = network(ids)
        memory = network.new_cache()
        got = torch.cat([network(part, cache=memory) for part in ids.split(_fitting(pieces, ids), dim=1)], dim=1)
    assert memory.length == ids.shape[1]
    assert gap(got, expected) <= BOUND


def _fitting(pieces: list[int], ids: Tensor) -> list[int]:
    lengths, left = [], ids.shape[1]
    for piece in pieces:
        lengths.append(min(piece, left))
        left -= lengths[-1]
    return [length for length in lengths if length]


@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=40)
def test_padding_changes_nothing(name: str, lengths: list[int], side: str) -> None:
    """A row among longer rows gives the logits that it gives alone, whatever fills it up."""
    network, width = ours(name), max(lengths)
    rows = [tokens(1, length, seed) for seed, length in enumerate(lengths)]
    batch, real = tokens(len(rows), width, 99), torch.zeros(len(rows), width, dtype=torch.bool)
    where = [slice(width - n, width) if side == "left" else slice(n) for n in lengths]
    for index, (row, place) in enumerate(zip(rows, where, strict=True)):
        batch[index, place], real[index, place] = row[0], True
    with torch.no_grad():
        together = network(batch, padding=real)
        for index, (row, place) in enumerate(zip(rows, where, strict=True)):
            assert gap(together[index, place], network(row)[0]) <= BOUND


@given(st.sampled_from(sorted(MODELS)), st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 8))
@settings(max_examples=30)
def test_rows_padded_on_the_left_decode_as_alone(name: str, lengths: list[int], more: int) -> None:
    network, width = ours(name), max(lengths)
    rows = [tokens(1, length + more, seed) for seed, length in enumerate(lengths)]
    batch = torch.cat([torch.nn.functional.pad(row, (width - n, 0)) for row, n in zip(rows, lengths, strict=True)])
    real = torch.arange(width + more) >= torch.tensor([[width - n] for n in lengths])
    with torch.no_grad():
        memory = network.new_cache()
        steps = [network(batch[:, :width], cache=memory, padding=real[:, :width])[:, -1:]]
        for end in range(width + 1, width + more + 1):
            steps.append(network(batch[:, end - 1 : end], cache=memory, padding=real[:, :end]))
        together = torch.cat(steps, dim=1)
        for index, row in enumerate(rows):
            assert gap(together[index], network(row)[0, -more - 1 :]) <= BOUND


@every_model
def test_a_cache_cut_back_goes_on_as_if_nothing_had_been(name: str) -> None:
    network, ids = ours(name), tokens(2, 20)
    with torch.no_grad():
        memory = network.new_cache()
        network(ids, cache=memory)
        memory.truncate(7)
        again = network(ids[:, 7:], cache=memory)
        assert gap(again, network(ids)[:, 7:]) <= BOUND


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_disk_is_computed_in_float32(stored: torch.dtype, tmp_path: Path) -> None:
    make("llama, a key each, biases").to(stored).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    network = load_model(tmp_path).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    ids = tokens(2, 11)
    with torch.no_grad():
        assert gap(network(ids), theirs(ids).logits) <= BOUND


@pytest.mark.parametrize("name", ["float64", "bfloat16", "float16"])
def test_another_dtype_when_asked_for(name: str, tmp_path: Path) -> None:
    make("qwen3").save_pretrained(tmp_path)
    network = load_model(tmp_path, dtype=name).network
    assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, name)}
    assert isinstance(network, RotaryDecoder)
    assert network.rotary_frequencies.dtype == torch.float32  # angles of far positions need it
    with torch.no_grad():
        difference = gap(network(tokens(1, 9)).float(), ours("qwen3")(tokens(1, 9)))
    assert difference <= (1e-4 if name == "float64" else 0.3)
