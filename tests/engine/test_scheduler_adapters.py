"""Requests that wear different adapters share one scheduler, and each gets what it gets alone."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from strange import estrange

from loquela import peft
from loquela.engine.decoder import compiled
from loquela.engine.requests import Request
from loquela.engine.scheduler import Scheduler
from loquela.engine.terms import Limits
from loquela.errors import ContextWindowError, UsageError
from loquela.generation.completion import choices
from loquela.generation.decode import CHUNK
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "ia3": {},
    "adapter": {},
    "prompt": {"num_virtual_tokens": 5},
    "prefix": {"num_virtual_tokens": 3},
    "selective": {"tune": ["attention"]},
    "unknown": {},
}
"""Settings by method; the last is an (IA)³ of a kind that the compiled engine does not know."""


@pytest.fixture(scope="module")
def dressed(llama: Network) -> Network:
    """A network with one adapter of each method, none of which leaves it as it was."""
    network = copy.deepcopy(llama)
    generator = torch.Generator().manual_seed(11)
    for name, settings in METHODS.items():
        peft.attach(network, peft.config_for("ia3" if name == "unknown" else name, **settings), name, seed=0)
        with torch.no_grad():
            for parameter in peft.trainable(network, name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    estrange(network, "unknown")
    return network.eval()


def mixes(network: Network, tokenizer: Tokenizer, requests: int, form: Network | None, alone: Network | None) -> None:
    """Ask for adapters in a mix; expect what each gives `alone` in its compiled form, else in torch."""
    dice = random.Random(1)
    vocab = tokenizer.vocab_size
    beginning = [dice.randrange(1, vocab) for _ in range(CHUNK + 10)]
    wanted = []
    for _ in range(requests):
        own = [dice.randrange(1, vocab) for _ in range(dice.choice([1, 9, 40]))]
        settings = GenerationSettings(
            max_new_tokens=12, seed=dice.randrange(9), temperature=1.2, top_k=0, n=dice.choice([1, 2])
        )
        adapter = dice.choice([None, *METHODS])
        prompt = (beginning if dice.random() < 0.5 else []) + own
        wanted.append(Request(tuple(prompt), settings, adapter=adapter))
    expected = []
    for request in wanted:
        with peft.wearing(network, request.adapter):
            known = alone is not None and (request.adapter is None or alone.refusal(request.adapter) is None)  # type: ignore[operator]
            runs = alone if alone is not None and known else network
            expected.append(choices(runs, tokenizer, request.prompt, request.settings, end_ids=frozenset()))
    scheduler = Scheduler(
        network,
        tokenizer,
        Limits(slots=6, queue=len(wanted)),
        wear=lambda name: peft.wearing(network, name),
        compiled=form,
    )
    reasons = {name: reason for name in METHODS if (reason := scheduler.know(name)) is not None}
    assert set(reasons) == (set() if form is None else {"unknown"})
    try:
        for _ in range(2):
            tickets = [scheduler.submit(request) for request in wanted]
            assert [ticket.result() for ticket in tickets] == expected
    finally:
        scheduler.close()
    assert len({choice[0].text for choice in expected}) > requests // 2


def test_every_kind_of_adapter_beside_the_others(dressed: Network, tokenizer: Tokenizer) -> None:
    mixes(dressed, tokenizer, 24, None, None)


def test_in_the_compiled_engine(dressed: Network, tokenizer: Tokenizer) -> None:
    """On two threads among others what comes on one thread alone; what the engine does not know runs beside it."""
    mixes(dressed, tokenizer, 16, compiled(dressed, threads=2), compiled(dressed, threads=1))


@pytest.mark.soak
@pytest.mark.parametrize("with_compiled", [False, True])
def test_hundreds_of_mixed_requests(dressed: Network, tokenizer: Tokenizer, with_compiled: bool) -> None:
    forms = [compiled(dressed, threads=threads) if with_compiled else None for threads in (2, 1)]
    mixes(dressed, tokenizer, 600, *forms)


def test_over_rounded_weights(dressed: Network, tokenizer: Tokenizer) -> None:
    """A network of few bits is the one that serves and that is asked alone."""
    network = copy.deepcopy(dressed)
    peft.detach(network, "unknown")
    engine, settings = compiled(network, quantize="int8"), GenerationSettings(max_new_tokens=10, seed=3)
    scheduler = Scheduler(engine, tokenizer, wear=lambda name: peft.wearing(engine, name))
    names = [name for name in METHODS if name != "unknown"]
    try:
        assert [scheduler.know(name) for name in names] == [None] * len(names)
        tickets = {name: scheduler.submit(Request((5, 6, 7), settings, adapter=name)) for name in (None, *names)}
        found = {name: ticket.result() for name, ticket in tickets.items()}
    finally:
        scheduler.close()
    for name, completions in found.items():
        with peft.wearing(engine, name):
            assert completions == choices(engine, tokenizer, (5, 6, 7), settings, end_ids=frozenset())


def test_a_soft_prompt_takes_its_part_of_the_window(dressed: Network, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(dressed, tokenizer, wear=lambda name: peft.wearing(dressed, name))
    try:
        scheduler.know("prompt")
        assert scheduler.window("prompt") == scheduler.window(None) - 5
        settings = GenerationSettings(max_new_tokens=50)
        full = scheduler.submit(Request((1,) * (400 - 6), settings, adapter="prompt")).result()
        assert len(full[0].tokens) == 1
        with pytest.raises(ContextWindowError, match="395 tokens"):
            scheduler.submit(Request((1,) * 395, settings, adapter="prompt"))
        with pytest.raises(UsageError, match="no adapter 'lora'"):
            scheduler.submit(Request((1,), settings, adapter="lora"))
    finally:
        scheduler.close()


def test_an_adapter_in_use_stays(dressed: Network, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(dressed, tokenizer, wear=lambda name: peft.wearing(dressed, name))
    try:
        scheduler.know("lora")
        ticket = scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=390), adapter="lora"))
        with pytest.raises(UsageError, match="out of use"):
            scheduler.call(lambda: scheduler.forget("lora")).result(10)
        ticket.cancel()
        scheduler.call(lambda: None).result(10)
        scheduler.call(lambda: scheduler.forget("lora")).result(10)
        with pytest.raises(UsageError, match="no adapter"):
            scheduler.submit(Request((1,), GenerationSettings(), adapter="lora"))
    finally:
        scheduler.close()
