"""Guessing ahead changes the time and nothing else: token by token where that can be, in distribution everywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loquela.engine.decoder import compiled
from loquela.errors import UsageError
from loquela.generation import writer as writing
from loquela.generation.completion import choices, complete, stream
from loquela.generation.constrain import regex_constraint
from loquela.generation.decode import Step, generate_ids
from loquela.generation.rules import History, Logits
from loquela.generation.sampling import GenerationSettings, Guess, distribution, verified
from loquela.generation.speculative import Draft, DraftModel, Pace, PromptLookup, draft_of
from loquela.layers.cache import Cache
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer

VOCAB = 40
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "gpt2": {"n_positions": 96, "n_embd": 32, "n_layer": 1, "n_head": 4},
}
GREEDY = GenerationSettings(do_sample=False, max_new_tokens=40)
WARM = GenerationSettings(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.1, max_new_tokens=40)


def make(model_type: str, seed: int, vocab_size: int = VOCAB, **other: Any) -> Network:
    module = architecture(model_type)
    fields = {"model_type": model_type, "vocab_size": vocab_size, **FIELDS.get(model_type, {}), **other}
    network: Network = module.NETWORK(module.CONFIG.from_dict(fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    return network.eval()


TARGETS: dict[str, Network] = {name: make(name, 7) for name in sorted(FIELDS)}
COMPILED: dict[str, Network] = {
    "llama": compiled(TARGETS["llama"], threads=1),
    "llama int8": compiled(TARGETS["llama"], quantize="int8", threads=1),
    "gpt2": compiled(TARGETS["gpt2"], threads=1),
}
DOUBLE: dict[str, Network] = {name: make(name, 7).double() for name in sorted(FIELDS)}
DRAFTS: dict[str, Network] = {"llama": make("llama", 8), "gpt2": make("gpt2", 9)}


def guessing(network: Network, target: Network, most: int) -> DraftModel:
    """A draft that guesses as if it cost nothing, as small as the target may be."""
    draft = DraftModel(network, target, most)
    draft.cost = 0.05
    return draft


def steps(network: Network, prompt: Sequence[int], how: GenerationSettings, draft: Draft | None = None) -> list[Step]:
    cache = network.new_cache()
    drafter = None if draft is None else draft.start(prompt)
    found = list(generate_ids(network, prompt, how, end_ids=frozenset({0}), cache=cache, drafter=drafter))
    assert cache.length == len(prompt) + len(found) - 1, "what was guessed wrong is no longer in the cache"
    return found


def same_bits(found: Sequence[Step], expected: Sequence[Step]) -> None:
    assert [step.id for step in found] == [step.id for step in expected]
    for step, other in zip(found, expected, strict=True):
        assert (step.logits == other.logits).all()
        assert (step.log_prob, step.finish_reason) == (other.log_prob, other.finish_reason)


def same_but_for_rounding(found: Sequence[Step], expected: Sequence[Step]) -> None:
    """The first token that differs, if any, must be a tie as far as the rounding of float64 goes."""
    for step, other in zip(found, expected, strict=False):
        np.testing.assert_allclose(step.logits, other.logits, rtol=0, atol=1e-12)
        if step.id != other.id:
            assert abs(other.logits[step.id] - other.logits[other.id]) < 1e-12
            return
    assert len(found) == len(expected)


prompts = st.one_of(
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=30),
    st.lists(st.integers(1, 4), min_size=1, max_size=40),  # one that repeats itself
    st.lists(st.integers(1, VOCAB - 1), min_size=2, max_size=9).map(lambda ids: (ids * 9)[:60]),
)


@settings(max_examples=25)
@given(prompts, st.sampled_from(sorted(COMPILED)), st.integers(1, 12), st.integers(0, 99))
def test_prompt_lookup_gives_the_very_tokens_and_bits(prompt: list[int], name: str, most: int, seed: int) -> None:
    network = COMPILED[name]
    for how in (GREEDY, WARM.replace(seed=seed)):
        same_bits(steps(network, prompt, how, PromptLookup(most)), steps(network, prompt, how))


@settings(max_examples=12)
@given(prompts, st.sampled_from(sorted(COMPILED)), st.sampled_from(sorted(DRAFTS)), st.integers(1, 9))
def test_a_draft_gives_the_greedy_tokens_and_bits(prompt: list[int], name: str, other: str, most: int) -> None:
    network = COMPILED[name]
    for guesser in (DRAFTS[other], TARGETS["llama"]):
        same_bits(steps(network, prompt, GREEDY, guessing(guesser, network, most)), steps(network, prompt, GREEDY))


@settings(max_examples=8)
@given(prompts, st.sampled_from(sorted(DOUBLE)), st.integers(1, 9), st.integers(0, 99))
def test_in_torch_tokens_differ_only_where_rounding_decides(prompt: list[int], name: str, most: int, seed: int) -> None:
    network = DOUBLE[name]
    for how in (GREEDY, WARM.replace(seed=seed)):
        same_but_for_rounding(steps(network, prompt, how, PromptLookup(most)), steps(network, prompt, how))
    for draft in (guessing(DRAFTS["llama"], network, most), guessing(network, network, most)):
        same_but_for_rounding(steps(network, prompt, GREEDY, draft), steps(network, prompt, GREEDY))


@pytest.mark.parametrize("how", [GREEDY, WARM, GenerationSettings(temperature=1.3, top_k=0, max_new_tokens=60)])
def test_a_draft_that_is_the_target_is_always_right(how: GenerationSettings) -> None:
    network = COMPILED["llama"]
    for seed in range(5):
        draft = guessing(network, network, 4)
        found = steps(network, [5, 6, 7], how.replace(seed=seed), draft)
        count = draft.speculation
        assert count.drafted > 0
        if found[-1].finish_reason == "length":
            assert count.accepted == count.drafted
        assert count.tokens == len(found) - 1
        assert count.accepted <= count.tokens <= count.accepted + count.forwards
        assert count.tokens_per_forward > 1.5


def test_one_seed_gives_the_same_text_again() -> None:
    network, draft = COMPILED["llama"], guessing(DRAFTS["llama"], COMPILED["llama"], 5)
    once = [steps(network, [9, 8], WARM.replace(seed=seed), draft) for seed in range(6)]
    for seed, expected in enumerate(once):
        same_bits(steps(network, [9, 8], WARM.replace(seed=seed), draft), expected)
    assert len({tuple(step.id for step in text) for text in once}) > 3


# -- the distribution


class Table(Network):
    """A network whose logits are looked up by the last two tokens: as fast as a test of thousands of texts needs."""

    vocab_size, context_length, dim = 5, 64, 1

    def __init__(self, seed: int, spread: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(spread * torch.randn(25, self.vocab_size, generator=generator), requires_grad=False)

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:
        assert cache is not None
        k, _ = cache.layers[0].extend(tokens[:, None, :, None], tokens[:, None, :, None])
        text = torch.cat((torch.zeros(1, dtype=torch.long), k[0, 0, :, 0]))[-1 - tokens.shape[1] :]
        return (5 * text[:-1] + text[1:])[None, :, None]

    def head(self, hidden: Tensor) -> Tensor:
        return self.table[hidden.long().squeeze(-1)]

    def new_cache(self) -> Cache:
        return Cache(1)

    def initialise(self) -> None: ...


TABLE, WRITTEN = Table(1, 1.2), 4
AFTER = [1, 2, 3, 1, 2, 3, 1, 4, 2, 3, 1]
RULES = [
    GenerationSettings(temperature=1.0, top_k=0, max_new_tokens=WRITTEN),
    GenerationSettings(temperature=0.8, top_k=4, top_p=0.95, frequency_penalty=0.7, max_new_tokens=WRITTEN),
]
GUESSERS: dict[str, Callable[[], Draft]] = {
    "lookup": lambda: PromptLookup(4),
    "a draft like any": lambda: guessing(Table(2, 1.2), TABLE, 3),
    "a draft that is sure of other things": lambda: guessing(Table(3, 6.0), TABLE, 2),
    "the target itself": lambda: guessing(TABLE, TABLE, 3),
}


@cache
def exact(index: int) -> dict[tuple[int, ...], float]:
    """The probability of each whole text under `RULES[index]`."""
    how, found = RULES[index], {}
    for text in itertools.product(range(5), repeat=WRITTEN):
        p = 1.0
        for position, token in enumerate(text):
            before = [*AFTER, *text[:position]][-2:]
            row = TABLE.table[5 * before[0] + before[1]].double().numpy()
            history = History(AFTER, text[:position], last=position + 1 == WRITTEN)
            p *= distribution(row, history, how)[token]
        found[text] = p
    assert sum(found.values()) == pytest.approx(1)
    return found


def doubt(index: int, draft: Draft, count: int) -> float:
    """How probable it is that texts of the right distribution differ from it as much (chi-square)."""
    how, expected = RULES[index], exact(index)
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(count):
        drafter = draft.start(AFTER)
        texts = generate_ids(TABLE, AFTER, how.replace(seed=seed), drafter=drafter)
        seen[tuple(step.id for step in texts)] += 1
    assert all(expected[text] > 0 for text in seen)
    often = [text for text, p in expected.items() if p * count >= 5]
    cells = [(seen[text], expected[text] * count) for text in often]
    rest = sum(expected.values()) * count - sum(e for _, e in cells)
    if rest > 1:
        cells.append((count - sum(s for s, _ in cells), rest))
    square = sum((s - e) ** 2 / e for s, e in cells)
    free = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(free, torch.tensor(square / 2, dtype=torch.float64)))


@pytest.mark.parametrize("how", range(len(RULES)))
@pytest.mark.parametrize("name", sorted(GUESSERS))
def test_the_distribution_is_the_target_s(name: str, how: int) -> None:
    draft = GUESSERS[name]()
    assert doubt(how, draft, 500) > 1e-3
    assert draft.speculation.drafted > 300
    assert 0 < draft.speculation.accepted <= draft.speculation.drafted


@pytest.mark.soak
@pytest.mark.parametrize("how", range(len(RULES)))
@pytest.mark.parametrize("name", sorted(GUESSERS))
def test_the_distribution_of_many_texts_is_the_target_s(name: str, how: int) -> None:
    assert doubt(how, GUESSERS[name](), 20_000) > 1e-3


def test_the_test_would_notice_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps_every_possible_guess(probabilities: Logits, guess: Guess) -> Logits:
        kept = np.zeros_like(probabilities)
        kept[guess.token] = 1.0
        return kept if probabilities[guess.token] > 0.05 else probabilities

    monkeypatch.setattr(writing, "verified", keeps_every_possible_guess)
    assert doubt(0, GUESSERS["a draft like any"](), 500) < 1e-9


weights = st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda row: sum(row) > 1e-3)


@settings(max_examples=100)
@given(st.data(), weights)
def test_guesses_together_leave_the_distribution_as_it_is(data: st.DataObject, row: list[float]) -> None:
    p = np.array(row) / sum(row)
    other = data.draw(st.lists(st.floats(0, 1), min_size=len(p), max_size=len(p)).filter(lambda q: sum(q) > 1e-3))
    q = np.array(other) / sum(other)
    drawn = [token for token in range(len(q)) if q[token] > 0]
    mixture = sum(q[token] * verified(p, Guess(token, q)) for token in drawn)
    np.testing.assert_allclose(mixture, p, atol=1e-12)
    kept = sum(q[token] * verified(p, Guess(token, q))[token] for token in drawn)
    assert kept == pytest.approx(np.minimum(p, q).sum(), abs=1e-12)  # no rule can keep more (arXiv:2211.17192, 3.2)
    for token in range(len(p)):
        assert (verified(p, Guess(token)) == p).all()
        certain = np.eye(len(p))[token]
        np.testing.assert_allclose(verified(p, Guess(token, certain)), p, atol=1e-12)


# -- beside everything else


def drafts(network: Network) -> list[Draft]:
    return [PromptLookup(6), guessing(network, network, 6)]


@pytest.mark.parametrize("wanted", [0, 1, 2, 17])
def test_room_and_window_are_exact(wanted: int) -> None:
    network = COMPILED["llama"]
    for draft in drafts(network):
        how = GREEDY.replace(max_new_tokens=wanted)
        found = list(generate_ids(network, [3, 4] * 5, how, drafter=draft.start([3, 4] * 5)))
        assert [step.finish_reason for step in found] == [None] * (wanted - 1) + ["length"] * min(wanted, 1)
        assert draft.speculation.tokens == max(0, wanted - 1)
        long = [3, 4] * 46
        found = list(generate_ids(network, long, GREEDY.replace(max_new_tokens=900), drafter=draft.start(long)))
        assert len(long) + len(found) == network.context_length == 96


def test_a_draft_with_a_shorter_window_stops_guessing_there() -> None:
    network, short = COMPILED["llama"], make("llama", 7, max_position_embeddings=20)
    draft = guessing(short, network, 4)
    same_bits(steps(network, [5, 6, 7], GREEDY, draft), steps(network, [5, 6, 7], GREEDY))
    assert 0 < draft.speculation.drafted < 20
    silent = guessing(short, network, 4)
    same_bits(steps(network, [5, 6] * 12, GREEDY, silent), steps(network, [5, 6] * 12, GREEDY))
    assert silent.speculation.drafted == 0


def test_rows_beyond_the_vocabulary_are_never_guessed() -> None:
    network = COMPILED["llama"]
    for size in (VOCAB - 7, VOCAB + 9):
        draft = guessing(make("llama", 8, size), network, 4)
        same_bits(steps(network, [5, 6, 7], GREEDY, draft), steps(network, [5, 6, 7], GREEDY))
        assert draft.speculation.drafted > 0


def test_pieces_stop_strings_and_choices_are_as_without(llama: Network, tokenizer: Tokenizer) -> None:
    network = compiled(llama, threads=1)
    how = GenerationSettings(temperature=0.9, max_new_tokens=30, seed=3, stop=("at",))
    looks = how.replace(prompt_lookup_num_tokens=5)
    text = "The cat sat on the mat; the cat"
    expected = list(stream(network, tokenizer, text, how, top=3))
    assert list(stream(network, tokenizer, text, looks, top=3)) == expected
    several = choices(network, tokenizer, text, looks.replace(n=4), top=2)
    plain = choices(network, tokenizer, text, how.replace(n=4), top=2)
    assert [c.tokens for c in several] == [c.tokens for c in plain]
    assert [c.text for c in several] == [c.text for c in plain]
    assert several[0].speculation == several[3].speculation
    assert several[0].speculation is not None
    assert plain[0].speculation is None
    greedy = how.replace(do_sample=False, temperature=0.0)
    draft = guessing(make("llama", 3, tokenizer.vocab_size), network, 4)
    found = complete(network, tokenizer, text, greedy, draft=draft)
    assert found.tokens == complete(network, tokenizer, text, greedy).tokens
    assert found.as_dict()["speculation"]["drafted"] == draft.speculation.drafted > 0


def test_a_constraint_binds_draft_and_target(llama: Network, tokenizer: Tokenizer) -> None:
    network = compiled(llama, threads=1)
    asked = regex_constraint(tokenizer, "[a-m ]{12}(cat|dog)")
    how = GenerationSettings(do_sample=False)
    expected = complete(network, tokenizer, "The", how, constraint=asked)
    for draft in drafts(network):
        found = complete(network, tokenizer, "The", how, constraint=asked, draft=draft)
        assert found.tokens == expected.tokens
    assert draft.speculation.accepted == draft.speculation.drafted > 3, "the draft follows the constraint too"
    warm = how.replace(do_sample=True, temperature=1.2, prompt_lookup_num_tokens=3)
    for seed in range(5):
        texts = [
            complete(network, tokenizer, "The", warm.replace(seed=seed, prompt_lookup_num_tokens=n), constraint=asked)
            for n in (0, 3)
        ]
        assert texts[0].tokens == texts[1].tokens


def test_how_many_are_guessed_follows_what_becomes_of_them() -> None:
    pace = Pace(10, 0.1)
    for _ in range(20):
        pace.learn(pace.count(), pace.count())
    assert pace.count() == 10
    for _ in range(30):
        pace.learn(pace.count(), 0)
    counts = [pace.count() for _ in range(64)]
    assert max(counts) == 1
    assert 0 < sum(counts) <= 8, "what never is right is tried now and then only"
    dear = Pace(10, 1.0)
    assert dear.count() <= 1


def test_what_cannot_be_unread_is_refused(tokenizer: Tokenizer) -> None:
    how = GenerationSettings(prompt_lookup_num_tokens=3, max_new_tokens=4)
    size = tokenizer.vocab_size
    lstm = make("lstm", 1, size, embedding_size=8, hidden_size=8, num_hidden_layers=1)
    t5 = make("t5", 1, size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    for network in (lstm, t5):
        with pytest.raises(UsageError, match=r"needs a cache that can unread wrong guesses, but that of (lstm|t5)"):
            complete(network, tokenizer, "The", how)
        with pytest.raises(UsageError, match="a draft must be a decoder whose cache can unread a token"):
            DraftModel(network, lstm, 4)


def test_a_draft_of_another_vocabulary_is_refused(llama: Network, tokenizer: Tokenizer) -> None:
    how = GenerationSettings()
    assert isinstance(draft_of(how, llama, tokenizer, llama, tokenizer), DraftModel)
    other = Tokenizer.train("char", ["The cat"])
    with pytest.raises(UsageError, match=r"vocabulary of the model, but has 9 tokens instead of \d+: train one with"):
        draft_of(how, llama, tokenizer, llama, other)
    ours, theirs = (Tokenizer.train("char", [text], special_tokens=()) for text in ("abc", "abd"))
    with pytest.raises(UsageError, match="but has as token 3 'd' instead of 'c'"):
        draft_of(how, llama, ours, llama, theirs)
    with pytest.raises(UsageError, match="either a draft guesses or prompt_lookup_num_tokens, which is 4"):
        draft_of(how.replace(prompt_lookup_num_tokens=4), llama, tokenizer, llama, tokenizer)
    with pytest.raises(UsageError, match="a draft needs num_beams=1"):
        complete(llama, tokenizer, "The", how.replace(num_beams=2), draft=PromptLookup(3))
    with pytest.raises(UsageError, match="num_beams=2 draws nothing, so prompt_lookup_num_tokens must be left out"):
        GenerationSettings(num_beams=2, prompt_lookup_num_tokens=3)
