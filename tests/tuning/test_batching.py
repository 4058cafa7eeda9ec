"""Which samples a step sees, and that putting them together changes no loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loquela.checkpoint.store import load_model
from loquela.data.batch import IGNORED, Sample
from loquela.training.step import summed_loss
from loquela.tuning.batching import Assembler, Order, shares


@given(n=st.integers(1, 30), batch=st.integers(1, 7), seed=st.integers(0, 2**40), epochs=st.integers(1, 3))
def test_every_epoch_has_every_sample_once(n: int, batch: int, seed: int, epochs: int) -> None:
    order = Order([0] * n, [1.0], batch, seed)
    steps = -(-n * epochs // batch)
    seen = np.concatenate([order.indices(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    again = Order([0] * n, [1.0], batch, seed)
    last = again.indices(steps - 1)  # asked for alone, as after an interruption
    assert last.tolist() == seen[(steps - 1) * batch :].tolist()


def test_another_epoch_has_another_order() -> None:
    order = Order([0] * 20, [1.0], 20, seed=1)
    assert order.indices(0).tolist() != order.indices(1).tolist()


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
    steps=st.integers(1, 12),
)
def test_a_mixture_holds_its_shares_at_every_step(counts: list[int], weights: list[float], steps: int) -> None:
    tasks = [task for task, count in enumerate(counts) for _ in range(count)]
    given_weights = weights[: len(counts)]
    order = Order(tasks, given_weights, 5, seed=3)
    seen = np.concatenate([order.indices(step) for step in range(steps)])
    found = Counter(tasks[i] for i in seen)
    for task, weight in enumerate(given_weights):
        assert abs(found[task] - weight / sum(given_weights) * len(seen)) <= len(counts)
    again = Order(tasks, given_weights, 5, seed=3)
    assert again.indices(steps - 1).tolist() == seen[-5:].tolist()


def test_temperature_evens_the_shares_out() -> None:
    assert shares([900, 100], [None, None], 1.0) == pytest.approx([0.9, 0.1])
    assert shares([900, 100], [None, None], 2.0) == pytest.approx([0.75, 0.25])
    assert shares([900, 100], [None, None], 1e9) == pytest.approx([0.5, 0.5])
    assert shares([900, 100], [1.0, 3.0], 1.0) == pytest.approx([0.25, 0.75])


def samples(lengths: list[int], vocab_size: int) -> list[Sample]:
    random = np.random.default_rng(5)
    made = []
    for length in lengths:
        ids = random.integers(2, vocab_size, length + 1)
        labels = np.where(random.random(length) < 0.5, ids[1:], IGNORED)
        labels[-1] = ids[-1]
        made.append(Sample(ids[:-1], labels))
    return made


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), at_most=st.integers(1, 9), packing=st.booleans())
def test_the_loss_is_the_sum_of_each_alone(decoder: Path, lengths: list[int], at_most: int, packing: bool) -> None:
    network = load_model(decoder).network
    each = samples(lengths, network.vocab_size)
    assembler = Assembler(network, at_most=at_most, limit=60, packing=packing)
    batches = assembler.packed(each)
    assert all(len(batch) <= at_most for batch in batches)
    with torch.no_grad():
        together = sum(summed_loss(network, batch).item() for batch in batches)
        alone = sum(summed_loss(network, assembler.together([sample])).item() for sample in each)
    assert together == pytest.approx(alone, rel=1e-5)


def test_unlike_lengths_do_not_fill_each_other_up(decoder: Path) -> None:
    network = load_model(decoder).network
    each = samples([400, 390, 30, 30, 30, 30, 30, 30, 30, 30], network.vocab_size)
    batches = Assembler(network, at_most=16, limit=512, packing=False).batches(each)
    positions = sum(batch.inputs.numel() for batch in batches)
    assert positions < 1.1 * sum(len(sample.inputs) for sample in each)


def test_a_network_with_adapters_packs_and_one_with_soft_prompts_does_not(decoder: Path, pairs: Path) -> None:
    from loquela.tuning.recipe import TuneRecipe
    from loquela.tuning.run import _assembled, read_tasks

    for method, packs in (("lora", True), ("full", True), ("prompt", False), ("prefix", False)):
        recipe = TuneRecipe(model=str(decoder), data=str(pairs), output_dir="x", method=method, probe_tokens=10)
        run = _assembled(recipe, read_tasks(recipe, str), Path("x"), lambda event: None, lambda: False)
        assert run.assembler.packs == packs
        with run.subject.tuned(), torch.no_grad():
            together = sum(summed_loss(run.subject.network, batch).item() for batch in run._batches(0, range(8)))
            alone = sum(
                summed_loss(run.subject.network, run.assembler.together([item.sample])).item()
                for item in run.prepared.train[:8]
            )
        assert together == pytest.approx(alone, rel=1e-5)
