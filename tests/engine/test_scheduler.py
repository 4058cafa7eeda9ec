"""Many requests at once: each gets, bit for bit, what it gets alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loquela.engine.requests import Ended, Failed, Request, Scores, Ticket, Written
from loquela.engine.rows import Rows
from loquela.engine.scheduler import Scheduler
from loquela.errors import BusyError, ContextWindowError, LoquelaError, UnavailableError, UsageError
from loquela.generation.completion import Completion, choices
from loquela.generation.constrain import regex_constraint
from loquela.generation.decode import CHUNK
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

Serve = Callable[..., Scheduler]


def asked(dice: random.Random, vocab: int, beginnings: list[list[int]]) -> Request:
    """A request as anyone might make it; many share a beginning."""
    own = [dice.randrange(1, vocab) for _ in range(dice.choice([1, 2, 7, 40, 130]))]
    prompt = (dice.choice(beginnings) if dice.random() < 0.6 else []) + own
    settings = GenerationSettings(
        max_new_tokens=dice.randint(1, 20),
        temperature=dice.choice([0, 0.8, 1.5]),
        top_k=dice.choice([0, 5, 25]),
        top_p=dice.choice([1.0, 0.9]),
        repetition_penalty=dice.choice([1.0, 1.2]),
        seed=dice.randrange(5),
        n=dice.choice([1, 1, 1, 2, 4]),
        stop=dice.choice([(), ("a",), ("the", "cat")]),
    )
    ends = frozenset(dice.sample(range(vocab), 8))
    return Request(tuple(prompt), settings, ends, top=dice.choice([0, 2]), owner=dice.choice("abc"))


def alone(network: Network, tokenizer: Tokenizer, request: Request) -> list[Completion]:
    return choices(network, tokenizer, request.prompt, request.settings, top=request.top, end_ids=request.end_ids)


def mixes(network: Network, tokenizer: Tokenizer, serve: Serve, requests: int) -> None:
    dice = random.Random(0)
    vocab = tokenizer.vocab_size
    beginnings = [[dice.randrange(1, vocab) for _ in range(length)] for length in (50, CHUNK, CHUNK + 60)]
    wanted = [asked(dice, vocab, beginnings) for _ in range(requests)]
    expected = [alone(network, tokenizer, request) for request in wanted]
    scheduler = serve(network, slots=7, queue=requests)
    order = list(range(requests))
    for _ in range(2):  # the second time much is known already
        dice.shuffle(order)
        tickets = {i: scheduler.submit(wanted[i]) for i in order}
        for i, ticket in tickets.items():
            assert ticket.result() == expected[i]


def test_in_any_mix_as_alone(network: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    mixes(network, tokenizer, serve, 16)


@pytest.mark.soak
def test_hundreds_of_mixes(network: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    mixes(network, tokenizer, serve, 500)


def test_a_known_beginning_is_not_read_again(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    read: list[int] = []
    scheduler = serve(llama)
    with spying(scheduler, lambda tokens: read.append(sum(len(row) for row in tokens if len(row) > 1))):
        prompt = tuple(range(1, 1 + 2 * CHUNK + 30))
        first = scheduler.submit(Request(prompt, GenerationSettings(max_new_tokens=3))).result()
        assert sum(read) == len(prompt)
        read.clear()
        again = scheduler.submit(Request(prompt, GenerationSettings(max_new_tokens=3))).result()
        assert sum(read) == 30
        assert again == first
        read.clear()
        scheduler.submit(Request(prompt[:CHUNK] + (9,) * 50, GenerationSettings(max_new_tokens=1))).result()
        assert sum(read) == 50
    assert scheduler.state()["prefix_bytes"] > 0


def test_beginnings_give_way_to_requests(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    per_position = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, float32
    limit = 2 * per_position * 400
    scheduler = serve(llama, cache_bytes=limit)
    for start in range(1, 6):
        prompt = tuple(range(start, start + CHUNK + 10))
        scheduler.submit(Request(prompt, GenerationSettings(max_new_tokens=2))).result()
        assert scheduler.state()["prefix_bytes"] <= limit // 2
    scheduler.submit(Request((1, 2), GenerationSettings(max_new_tokens=10**6, seed=1))).result()
    assert scheduler.state()["prefix_bytes"] == 0  # the whole window was promised to that one
    with pytest.raises(UsageError, match="bytes for caches"):
        scheduler.submit(Request((1, 2), GenerationSettings(max_new_tokens=10**6, n=2)))


def test_a_long_prompt_holds_nobody_up(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    """While a prompt of three pieces is read, others write on, and a short prompt overtakes it."""
    steps: list[list[int]] = []
    scheduler = serve(llama)
    with held(scheduler) as release:
        talk = scheduler.submit(Request((5,), GenerationSettings(max_new_tokens=30)))
        long = scheduler.submit(Request((7,) * (3 * CHUNK), GenerationSettings(max_new_tokens=3), owner="b"))
        short = scheduler.submit(Request((8, 9), GenerationSettings(max_new_tokens=3), owner="c"))
        with spying(scheduler, lambda tokens: steps.append([len(row) for row in tokens])):
            release()
            for ticket in (talk, long, short):
                ticket.result()
    assert steps[:5] == [[1], [1, CHUNK], [1, 2], [1, 1, CHUNK], [1, 1, CHUNK]]


def test_owners_take_turns(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama, slots=1)
    settings = GenerationSettings(max_new_tokens=1)
    with held(scheduler) as release:
        tickets = {
            name: scheduler.submit(Request((1,), settings, owner=name[0])) for name in ("a1", "a2", "a3", "b1", "c1")
        }
        release()
        for ticket in tickets.values():
            ticket.result()
    assert sorted(tickets, key=lambda name: tickets[name].started or 0) == ["a1", "b1", "c1", "a2", "a3"]


def test_cancelled_anywhere_the_place_is_free_at_the_next_step(
    llama: Network, tokenizer: Tokenizer, serve: Serve
) -> None:
    scheduler = serve(llama, slots=2)
    endless = GenerationSettings(max_new_tokens=390)
    tickets: list[Ticket] = []
    done = threading.Event()

    def leave(event: object) -> None:
        if isinstance(event, Written) and event.piece.id >= 0:
            tickets[0].cancel()
        if isinstance(event, Failed):
            done.set()

    with held(scheduler) as release:
        tickets.append(scheduler.submit(Request((1,), endless, frozenset()), leave))  # leaves while it writes
        reading = scheduler.submit(Request((2,) * 390, endless))
        waiting = scheduler.submit(Request((3,), endless))
        reading.cancel()
        waiting.cancel()
        release()
    assert done.wait(10)
    for ticket in (reading, waiting):
        with pytest.raises(UnavailableError):
            ticket.result()
    assert scheduler.state() == {"waiting": 0, "running": 0, "prefix_bytes": scheduler.state()["prefix_bytes"]}
    assert scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=2))).result()


def test_too_many_wait(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama, slots=1, queue=3)
    with held(scheduler) as release:
        kept = [scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=2))) for _ in range(3)]
        with pytest.raises(BusyError, match="3 requests wait"):
            scheduler.submit(Request((1,), GenerationSettings()))
        release()
    assert all(len(ticket.result()) == 1 for ticket in kept)


def test_time_is_up(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama, slots=1)
    with held(scheduler) as release:
        late = scheduler.submit(Request((1,), GenerationSettings(), seconds=0.01))
        time.sleep(0.02)
        release()
    with pytest.raises(UnavailableError, match=r"within 0\.01 s"):
        late.result()


def test_closing_lets_what_was_taken_end(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)
    ticket = scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=50)))
    scheduler.close(60)
    assert len(ticket.result()[0].tokens) == 50
    with pytest.raises(UnavailableError, match="closing"):
        scheduler.submit(Request((1,), GenerationSettings()))
    with pytest.raises(UnavailableError):
        scheduler.call(lambda: 1)


def test_closing_at_once_fails_the_rest(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)
    ticket = scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=10**6)))
    scheduler.close()
    with pytest.raises(UnavailableError, match="closing"):
        ticket.result()


def test_one_that_fails_fails_alone(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)
    good = scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=20)))
    bias = GenerationSettings(max_new_tokens=20, logit_bias={10**6: 1.0})
    with pytest.raises(UsageError, match="logit_bias"):
        scheduler.submit(Request((1,), bias)).result()
    assert len(good.result()[0].tokens) == 20


def test_a_broken_network_does_not_end_the_thread(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)

    def fail(tokens: object) -> None:
        raise ValueError("no such luck")

    with spying(scheduler, fail), pytest.raises(LoquelaError, match="ValueError: no such luck"):
        scheduler.submit(Request((1,), GenerationSettings())).result()
    assert scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=1))).result()


def test_what_can_never_be_served(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama, slots=4)
    for request, error in [
        (Request((), GenerationSettings()), "at least one token"),
        (Request((10**6,), GenerationSettings()), "token ids"),
        (Request((-1,), GenerationSettings()), "token ids"),
        (Request((1,), GenerationSettings(n=5)), "at most 4"),
        (Request((1,), GenerationSettings(num_beams=2)), "num_beams"),
    ]:
        with pytest.raises(UsageError, match=error):
            scheduler.submit(request)
    with pytest.raises(ContextWindowError):
        scheduler.submit(Request((1,) * 400, GenerationSettings()))
    assert scheduler.submit(Request((1,), GenerationSettings(max_new_tokens=0, n=2))).result()[0].tokens == ()


def test_the_prompt_is_scored(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    import torch

    prompt = tuple(range(1, 1 + CHUNK + 20))
    ticket = serve(llama).submit(Request(prompt, GenerationSettings(max_new_tokens=1), top=3, score_prompt=True))
    scores, written, end = ticket.events()
    assert isinstance(scores, Scores)
    assert isinstance(written, Written)
    assert isinstance(end, Ended)
    with torch.no_grad():
        expected = llama(torch.tensor([prompt]))[0].double().log_softmax(-1)
    assert [token.id for token in scores.tokens] == list(prompt)
    assert scores.tokens[0].log_prob is None
    for position, token in enumerate(scores.tokens[1:]):
        assert token.log_prob == pytest.approx(float(expected[position, token.id]), abs=1e-4)
        assert [a.log_prob for a in token.top] == pytest.approx(expected[position].topk(3).values.tolist(), abs=1e-4)


def test_constraints_are_followed_side_by_side(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)
    settings = GenerationSettings(max_new_tokens=20, n=3, temperature=1.5)
    patterns = ["[ab]{4}", "[0-9]{3}x"]
    for pattern in patterns:
        constraint = regex_constraint(tokenizer, pattern)
        request = Request((1, 2), settings, constraint=constraint)
        expected = choices(llama, tokenizer, (1, 2), settings, constraint=constraint, end_ids=frozenset())
        assert scheduler.submit(request).result() == expected


def test_jobs_run_between_steps(llama: Network, tokenizer: Tokenizer, serve: Serve) -> None:
    scheduler = serve(llama)
    assert scheduler.call(lambda: threading.current_thread().name).result(10) == "loquela-scheduler"
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda: 1 // 0).result(10)


@contextmanager
def held(scheduler: Scheduler) -> Iterator[Callable[[], None]]:
    """Hold the scheduler's thread until `release` is called."""
    gate, inside = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        gate.wait(10)

    scheduler.call(wait)
    assert inside.wait(10)
    yield gate.set
    gate.set()


@contextmanager
def spying(scheduler: Scheduler, see: Callable[[list[list[int]]], None]) -> Iterator[None]:
    """Show the tokens of every step to `see`."""
    rows: Rows = scheduler._rows
    plain = rows.hidden

    def hidden(tokens, caches, adapters, wanted):  # type: ignore[no-untyped-def]
        see([list(row) for row in tokens])
        return plain(tokens, caches, adapters, wanted)

    rows.hidden = hidden  # type: ignore[method-assign]
    yield
    rows.hidden = plain  # type: ignore[method-assign]
