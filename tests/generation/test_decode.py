"""The decode loop on small random networks: against transformers, against no cache, and against itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from loquela.checkpoint.store import save_model
from loquela.errors import ContextWindowError, UsageError
from loquela.generation.decode import generate_ids, log_probability
from loquela.generation.rules import History
from loquela.generation.sampling import GenerationSettings, choose, distribution, uniform
from loquela.models.base import Network

PROMPT = [3, 14, 15, 92, 65]


def ids(network: Network, prompt: Sequence[int] = PROMPT, choice: int = 0, **given: object) -> list[int]:
    return [step.id for step in generate_ids(network, prompt, GenerationSettings(**given), choice=choice)]


def test_greedy_equals_transformers(network: Network, tmp_path: Path) -> None:
    save_model(network, None, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for start in range(1, 11):
        prompt = [start, 5 * start + 1, 40]
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :]
        assert ids(network, prompt, temperature=0, max_new_tokens=30) == expected.tolist()


def test_the_loop_without_a_cache_gives_the_same(network: Network) -> None:
    """Spelled out: the whole text through the network at each step, one draw from the last row."""
    chosen = GenerationSettings(max_new_tokens=25, seed=5, repetition_penalty=1.1)
    tokens = list(PROMPT)
    for position, step in enumerate(generate_ids(network, PROMPT, chosen)):
        with torch.no_grad():
            row = network(torch.tensor([tokens]))[0, -1].double().numpy()
        np.testing.assert_allclose(step.logits, row, atol=1e-5)
        history = History(PROMPT, tokens[len(PROMPT) :])
        assert step.id == choose(distribution(row, history, chosen), uniform(5, 0, position))
        assert step.log_prob == pytest.approx(float(torch.tensor(row).log_softmax(-1)[step.id]), abs=1e-5)
        tokens.append(step.id)
    assert len(tokens) == len(PROMPT) + 25


def test_temperature_0_greedy_and_top_k_1_agree(network: Network) -> None:
    greedy = ids(network, do_sample=False, max_new_tokens=30)
    assert greedy == ids(network, temperature=0, max_new_tokens=30, seed=9)
    assert greedy == ids(network, top_k=1, max_new_tokens=30, seed=4)
    assert greedy != ids(network, top_k=0, temperature=1.5, max_new_tokens=30)


def test_seeds_and_choices(llama: Network) -> None:
    assert ids(llama, seed=1) == ids(llama, seed=1)
    many = {tuple(ids(llama, seed=seed, choice=choice, temperature=1.5)) for seed in range(4) for choice in range(4)}
    assert len(many) == 16


def test_a_caller_s_cache_that_holds_the_beginning(network: Network) -> None:
    expected = ids(network, max_new_tokens=20)
    for held in range(len(PROMPT)):
        cache = network.new_cache()
        if held:
            with torch.no_grad():
                network.hidden(torch.tensor([PROMPT[:held]]), cache=cache)
        steps = generate_ids(network, PROMPT, GenerationSettings(max_new_tokens=20), cache=cache)
        assert [step.id for step in steps] == expected
        assert cache.length == len(PROMPT) + 19  # all but the last token went through the network
    with pytest.raises(UsageError, match="go on after the 24 tokens"):
        next(generate_ids(network, PROMPT, GenerationSettings(), cache=cache))


@pytest.mark.parametrize("wanted", [0, 1, 2, 17])
def test_max_new_tokens_is_exact(network: Network, wanted: int) -> None:
    steps = list(generate_ids(network, PROMPT, GenerationSettings(max_new_tokens=wanted)))
    assert len(steps) == wanted
    assert [step.finish_reason for step in steps] == [None] * (wanted - 1) + ["length"] * min(wanted, 1)


def test_the_context_window_ends_the_text(network: Network) -> None:
    for length in (1, 30, 47):
        steps = list(generate_ids(network, [1] * length, GenerationSettings(max_new_tokens=10**30)))
        assert length + len(steps) == network.context_length == 48
        assert steps[-1].finish_reason == "length"
    with pytest.raises(ContextWindowError, match="48 tokens, but has 48"):
        ids(network, [1] * 48)
    with pytest.raises(UsageError, match="but has 0"):
        ids(network, [])


def test_an_end_token_ends_the_text(network: Network) -> None:
    plain = ids(network, max_new_tokens=30)
    end = plain[12]
    first = plain.index(end)
    steps = list(generate_ids(network, PROMPT, GenerationSettings(max_new_tokens=30), end_ids=frozenset({end, 0})))
    if 0 not in plain[:first]:
        assert [step.id for step in steps] == plain[: first + 1]
        assert steps[-1].finish_reason == "stop"


def test_neither_training_mode_nor_gradients_leak(llama: Network) -> None:
    network = copy.deepcopy(llama)
    network.decoder.layers[0].dropout.p = 0.9  # type: ignore[union-attr]
    expected = ids(llama)
    network.train()
    steps = generate_ids(network, PROMPT, GenerationSettings())
    got = []
    for step in steps:
        assert network.training
        assert torch.is_grad_enabled()
        got.append(step.id)
    assert got == expected


@settings(max_examples=20)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=20))
def test_log_probability_is_log_softmax(row: list[float]) -> None:
    expected = torch.tensor(row, dtype=torch.float64).log_softmax(-1)
    for token in range(len(row)):
        assert log_probability(np.array(row), token) == pytest.approx(float(expected[token]), abs=1e-9)
