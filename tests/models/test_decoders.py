"""Every decoder beside its counterpart in transformers, on random weights; newcomers are found by themselves."""

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
from transformers import AutoConfig, AutoModelForCausalLM

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError
from loquela.models.base import Network, architecture, architectures, config_from_dict

VOCABULARY = 97
LENGTH = 48  # longer than every window and every original context below
BOUND = 1e-5  # of the largest logit

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = {
    **COMMON,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.3], "long_factor": [2.0, 4.5]}

TINY: dict[str, dict[str, dict[str, Any]]] = {
    # One entry for each models/*.py that has a counterpart: small configs by what is special about them.
    "gpt2": {"": {**COMMON, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}},
    "llama": {
        "": {**ROTARY, "attention_bias": True, "mlp_bias": True},
        "3.1": {**ROTARY, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}},
        "linear": {**ROTARY, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        "yarn": {
            **ROTARY,
            "rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3},
        },
    },
    "mistral": {"": {**ROTARY, "sliding_window": 7}, "no window": {**ROTARY, "sliding_window": None, "head_dim": 12}},
    "mixtral": {"": {**ROTARY, "num_local_experts": 5, "sliding_window": 7}},
    "qwen2": {
        "": {**ROTARY, "tie_word_embeddings": True},
        "window": {**ROTARY, **WINDOW, "max_window_layers": 2},
        "yarn": {**ROTARY, "rope_parameters": YARN},
        "yarn, weighted": {**ROTARY, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
    },
    "qwen3": {
        "": {**ROTARY, "head_dim": 12},
        "window": {**ROTARY, **WINDOW, "max_window_layers": 2, "head_dim": 8, "attention_bias": True},
    },
    "qwen2_moe": {
        "": {**ROTARY, **EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
        "window": {**ROTARY, **EXPERTS, **WINDOW, "max_window_layers": 3, "norm_topk_prob": True, "qkv_bias": False},
    },
    "qwen3_moe": {
        "": {**ROTARY, **EXPERTS, "mlp_only_layers": [2]},
        "window": {**ROTARY, **EXPERTS, **WINDOW, "norm_topk_prob": True, "decoder_sparse_step": 2},
    },
    "olmo2": {"": ROTARY, "biases": {**ROTARY, "attention_bias": True, "tie_word_embeddings": True}},
    "smollm3": {"": ROTARY, "window": {**ROTARY, **WINDOW, "no_rope_layers": [1, 0, 0, 1]}},
    "phi3": {
        "": {**ROTARY, "sliding_window": 7},
        "long": {
            **ROTARY,
            "original_max_position_embeddings": 32,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
        },
    },
    "gemma2": {
        "": {
            **ROTARY,
            "head_dim": 12,
            "sliding_window": 7,
            "attn_logit_softcapping": 0.7,
            "final_logit_softcapping": 1.5,
            "query_pre_attn_scalar": 3,
        },
        "no caps": {**ROTARY, "head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    },
    "gemma3_text": {
        "": {
            **ROTARY,
            "head_dim": 12,
            "sliding_window": 7,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }
    },
}
OURS: dict[str, dict[str, Any]] = {
    # The same for those of ours that transformers does not have.
    "rnn": {"vocab_size": VOCABULARY, "hidden_size": 24},
    "lstm": {"vocab_size": VOCABULARY, "hidden_size": 24},
    "gru": {"vocab_size": VOCABULARY, "hidden_size": 24},
    "ngram": {"vocab_size": VOCABULARY, "order": 3},
    "ngram_residual": {
        "vocab_size": VOCABULARY,
        "order": 3,
        "residual": {"model_type": "qwen3", **{k: v for k, v in ROTARY.items() if k != "vocab_size"}},
    },
    "textgenrnn": {"vocab_size": VOCABULARY, "embedding_size": 12, "hidden_size": 16, "window": 8},
    "position_switch": ROTARY,
}
CASES = [(model_type, special) for model_type, configs in TINY.items() for special in configs]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]} {c[1]}".strip())
every_type = pytest.mark.parametrize("model_type", TINY)
Case = tuple[str, str]


@pytest.mark.parametrize("model_type", architectures())
def test_every_decoder_is_tested(model_type: str) -> None:
    module = architecture(model_type)
    if module.NETWORK.kind != "decoder":
        return
    counterpart = hasattr(transformers, module.CONFIG.hf_architecture)
    table = "TINY" if counterpart else "OURS"
    assert model_type in (TINY if counterpart else OURS), (
        f"models/{model_type}.py is a decoder that nothing tests: add {model_type!r} with a tiny config to {table} in "
        "tests/models/test_decoders.py; every test there runs on it then"
    )


def make(model_type: str, config: dict[str, Any]) -> Any:
    """A model of transformers with scrambled weights, biases and norms too."""
    torch.manual_seed(len(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@cache
def theirs(case: Case) -> Any:
    return make(case[0], TINY[case[0]][case[1]])


@cache
def ours(case: Case) -> Network:
    with TemporaryDirectory() as directory:
        theirs(case).save_pretrained(directory)
        return load_model(directory).network


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor, bound: float = BOUND) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= bound * float(expected.abs().max())


@every_case
@torch.no_grad()
def test_logits_are_those_of_transformers(case: Case) -> None:
    for length in (1, 2, 13, 32, 33, LENGTH):
        ids = tokens(3, length, length)
        expected = theirs(case)(ids).logits
        assert expected.std() > 0.1  # a model that says the same of everything proves nothing
        assert_close(ours(case)(ids), expected)


@every_case
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_are_those_of_transformers(case: Case, side: str) -> None:
    width, lengths = 29, torch.tensor([29, 12, 1])
    place = torch.arange(width)
    real = place < lengths[:, None] if side == "right" else place >= width - lengths[:, None]
    ids = tokens(3, width)
    where = (real.long().cumsum(1) - 1).clamp_min(0)
    expected = theirs(case)(ids, attention_mask=real.long(), position_ids=where).logits
    together = ours(case)(ids, padding=real)
    assert_close(together[real], expected[real])
    for row in range(3):
        assert_close(together[row, real[row]], ours(case)(ids[row : row + 1, real[row]])[0])


@every_case
@torch.no_grad()
def test_greedy_text_is_that_of_transformers(case: Case) -> None:
    prompt, network = tokens(1, 28), ours(case)
    expected = theirs(case).generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
    memory, step = network.start(prompt)
    text = [prompt]
    for _ in range(16):
        step = network(step, cache=memory)[:, -1:].argmax(-1)
        text.append(step)
    assert torch.cat(text, dim=1).tolist() == expected.tolist()


@every_case
@torch.no_grad()
def test_saved_back_bit_for_bit_and_open_in_transformers(case: Case, tmp_path: Path) -> None:
    theirs(case).save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs").network, None, tmp_path / "ours")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(again) is type(theirs(case))
    ids = tokens(2, LENGTH)
    assert torch.equal(again(ids).logits, theirs(case)(ids).logits)
    assert torch.equal(load_model(tmp_path / "ours").network(ids), ours(case)(ids))


@every_type
def test_a_model_that_begins_here_learns_and_opens_in_transformers(model_type: str, tmp_path: Path) -> None:
    raw = next(iter(TINY[model_type].values()))
    torch.manual_seed(0)
    network: Network = architecture(model_type).NETWORK(config_from_dict({"model_type": model_type, **raw}))
    network.initialise()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    ids, losses = tokens(4, 24), []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    save_model(network.eval(), None, tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert_close(network(ids), again(ids).logits)


@every_type
@torch.no_grad()
def test_every_key_of_a_config_is_honoured_or_refused(model_type: str, tmp_path: Path) -> None:
    """Each number, switch and name in transformers' config is changed: the logits follow, or the key is refused."""
    special, raw = next(iter(TINY[model_type].items()))
    ids = tokens(2, 21)
    followed = []
    for key, value in theirs((model_type, special)).config.to_dict().items():
        if key in (*COMMON, "dtype", "model_type", "transformers_version", "architectures", "chunk_size_feed_forward"):
            continue
        changed = _changed(key, value)
        if changed is None:
            continue
        try:
            model = make(model_type, {**raw, key: changed})
            model(ids)
            model.save_pretrained(tmp_path / key)
        except Exception:
            continue  # not even transformers can
        refusal = _refusal(tmp_path / key)
        if refusal is None:
            assert_close(load_model(tmp_path / key).network(ids), model(ids).logits)
            followed.append(key)
        else:
            assert key in refusal
    assert len(followed) > 8, followed


def _refusal(directory: Path) -> str | None:
    try:
        load_model(directory)
    except ConfigError as error:
        return str(error)
    return None


def _changed(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value if value else 2
    if isinstance(value, float):
        return value + 0.1
    if isinstance(value, str) and "act" in key:
        return "relu"
    return None


class TestCached:
    """However a text is cut into calls with a cache, each call gives what the text so far gives in one."""

    @given(st.sampled_from(CASES), st.lists(st.integers(1, 12), min_size=2, max_size=5))
    @settings(max_examples=60)
    def test_in_pieces_as_in_one(self, case: Case, pieces: list[int]) -> None:
        _in_pieces(ours(case), pieces)

    @given(st.sampled_from(CASES), st.integers(1, 30), st.integers(2, 8))
    @settings(max_examples=40)
    @torch.no_grad()
    def test_rows_padded_on_the_left_decode_as_alone(self, case: Case, short: int, more: int) -> None:
        network, width = ours(case), 33
        real = torch.arange(width + more) >= torch.tensor([[0], [width - short]])
        ids = tokens(2, width + more)
        memory = network.new_cache()
        steps = [network(ids[:, :width], cache=memory, padding=real[:, :width])[:, -1:]]
        for end in range(width + 1, width + more + 1):
            steps.append(network(ids[:, end - 1 : end], cache=memory, padding=real[:, :end]))
        together = torch.cat(steps, dim=1)
        for row in range(2):
            text = ids[row : row + 1, real[row]]
            for back in range(more + 1):
                alone = network(text[:, : text.shape[1] - back])[0, -1]
                assert_close(together[row, more - back], alone)

    @every_case
    @torch.no_grad()
    def test_cut_back_and_reordered(self, case: Case) -> None:
        network, ids = ours(case), tokens(3, 40)
        memory = network.new_cache()
        network(ids, cache=memory)
        memory.truncate(11)
        memory.select(torch.tensor([2, 0]))
        rows = ids[[2, 0], :20]
        assert_close(network(rows[:, 11:], cache=memory), network(rows)[:, 11:])
        assert memory.length == 20


@torch.no_grad()
def _in_pieces(network: Network, pieces: list[int]) -> None:
    ids = tokens(2, sum(pieces), sum(pieces))
    memory, end = network.new_cache(), 0
    for piece in pieces:
        start, end = end, end + piece
        assert_close(network(ids[:, start:end], cache=memory), network(ids[:, :end])[:, start:])
    assert memory.length == end


@pytest.mark.parametrize("model_type", OURS)
@torch.no_grad()
def test_decoders_without_a_counterpart_keep_the_contract_too(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Network = architecture(model_type).NETWORK(
        config_from_dict({"model_type": model_type, **OURS[model_type]})
    )
    network.initialise()
    network.eval()
    _in_pieces(network, [5, 1, 9, 1, 20])
    save_model(network, None, tmp_path / "saved")
    again = load_model(tmp_path / "saved").network
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    ids, real = tokens(2, 17), torch.arange(17) >= torch.tensor([[0], [6]])
    assert torch.equal(again(ids), network(ids))
    assert_close(network(ids, padding=real)[1, 6:], network(ids[1:, 6:])[0])
