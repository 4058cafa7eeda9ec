"""Likelihoods against a plain computation in float64, and the bits that nothing else may change."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import TEXT, make

from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.subject import Likelihood
from loquela.generation.completion import prompt_ids
from loquela.models.base import EncoderDecoder
from loquela.text.tokenizer import Tokenizer

CONTEXT = "Question: what sat on the mat?\nAnswer:"
CHOICES = [" the cat", " the dog sat on the log", " 犬", " no"]


def plain(subject: LocalSubject, context: str, continuation: str) -> tuple[float, int, bool]:
    """One text, one look, all logits, float64."""
    network, tokenizer = copy.deepcopy(subject.network).double(), subject.tokenizer
    with torch.no_grad():
        if isinstance(network, EncoderDecoder):
            target = tokenizer.encode(continuation, add_special_tokens=False)
            inputs = torch.tensor([[network.start_token_id, *target[:-1]]])
            logits = network(inputs, source=torch.tensor([tokenizer.encode(context)]))[0]
        else:
            ids = tokenizer.encode(context + continuation)
            if not context:
                ids = prompt_ids(tokenizer, "") + tokenizer.encode(continuation, add_special_tokens=False)
            first = len(tokenizer.encode(context.rstrip())) if context.rstrip() else 1
            target = ids[first:]
            logits = network(torch.tensor([ids[:-1]]))[0, first - 1 :]
    rows = logits.log_softmax(-1)
    picked = [float(row[token]) for row, token in zip(rows, target, strict=True)]
    greedy = all(int(row.argmax()) == token for row, token in zip(rows, target, strict=True))
    return sum(picked), len(target), greedy


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT + " ", "the", ""])
def test_equal_to_a_plain_computation(writer: LocalSubject, context: str) -> None:
    if context == "" and writer.kind == "encoder-decoder":
        pytest.skip("a source must have a token")
    together = writer.likelihoods(context, CHOICES)
    for found, choice in zip(together, CHOICES, strict=True):
        log_prob, tokens, greedy = plain(writer, context, choice)
        assert found.tokens == tokens
        assert found.greedy == greedy
        assert found.log_prob == pytest.approx(log_prob, abs=2e-5)
        (alone,) = writer.likelihoods(context, [choice])
        assert alone.log_prob == pytest.approx(log_prob, abs=2e-5)


def test_in_float64_it_is_exact(tokenizer: Tokenizer) -> None:
    subject = LocalSubject(make("llama", tokenizer))
    exact = LocalSubject(type(subject.model)(copy.deepcopy(subject.network).double(), tokenizer))  # type: ignore[call-arg]
    for found, choice in zip(exact.likelihoods(CONTEXT, CHOICES), CHOICES, strict=True):
        assert found.log_prob == pytest.approx(plain(subject, CONTEXT, choice)[0], abs=1e-12)


def test_a_shared_prefix_changes_no_figure_beyond_rounding(writer: LocalSubject) -> None:
    prefix = TEXT[:300] + "\n\n"
    whole = writer.likelihoods(prefix + CONTEXT, CHOICES)
    shared = writer.likelihoods(prefix + CONTEXT, CHOICES, prefix=prefix)
    again = writer.likelihoods(prefix + CONTEXT, CHOICES, prefix=prefix)
    assert shared == again
    for a, b in zip(whole, shared, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=2e-5)
        assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
    one = writer.likelihoods(prefix + CONTEXT, CHOICES[:1], prefix=prefix)
    assert one[0].log_prob == pytest.approx(whole[0].log_prob, abs=2e-5)


def test_greedy_says_what_greedy_decoding_writes(writer: LocalSubject) -> None:
    text = writer.complete(CONTEXT, max_new_tokens=6, stop=())
    found = {choice: writer.likelihoods(CONTEXT, [choice])[0].greedy for choice in CHOICES}
    assert not any(found.values())
    if writer.kind == "decoder" and writer.tokenizer.encode(CONTEXT + text)[: len(writer.tokenizer.encode(CONTEXT))]:
        ids = writer.tokenizer.encode(CONTEXT + text)
        if writer.tokenizer.decode(ids) == CONTEXT + text and len(ids) == writer.count(CONTEXT) + 6:
            assert writer.likelihoods(CONTEXT, [text])[0].greedy


@pytest.mark.parametrize("seed", range(3))
def test_no_order_changes_a_bit(writer: LocalSubject, questions: list[dict[str, Any]], seed: int) -> None:
    """Items in any order, alone or between others, prefix kept or made anew: the same bits."""
    prefix = TEXT[:200] + "\n\n"
    prefixes = ["", prefix] * 12
    asked = [(p + row["question"], row["choices"], p) for p, row in zip(prefixes, questions, strict=False)]

    def ask(i: int) -> list[Likelihood]:
        context, choices, shared = asked[i]
        return writer.likelihoods(context, [" " + choice for choice in choices], prefix=shared)

    expected = [ask(i) for i in range(len(asked))]
    order = list(range(len(asked)))
    random.Random(seed).shuffle(order)
    for i in order:
        if i % 5 == 0:
            writer.forget()
        assert ask(i) == expected[i]


def test_a_masked_model_sees_both_sides(tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = Tokenizer.train("wordpiece", [TEXT], 300, special_tokens=("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    subject = LocalSubject(make("bert", words))
    assert subject.kind == "encoder"
    context, choice = "The cat sat on the", " mat"
    (found,) = subject.likelihoods(context, [choice])
    ids = words.encode(context + choice)
    bare = len(words.encode(context, add_special_tokens=False))
    lead = 1 if words.encode("")[:1] == ids[:1] and words.encode("") else 0
    network = copy.deepcopy(subject.network).double()
    expected = 0.0
    inner = words.encode(context + choice, add_special_tokens=False)
    for place in range(lead + bare, lead + len(inner)):
        masked = list(ids)
        masked[place] = words.mask_id or 0
        with torch.no_grad():
            expected += float(network(torch.tensor([masked]))[0, place].log_softmax(-1)[ids[place]])
    assert found.log_prob == pytest.approx(expected, abs=1e-4)
    assert found.tokens == len(inner) - bare
    with pytest.raises(UsageError, match="writes text"):
        subject.complete("x", max_new_tokens=1, stop=())


def test_what_cannot_be_asked_is_said(llama: LocalSubject) -> None:
    with pytest.raises(DataError, match="one is empty"):
        llama.likelihoods(CONTEXT, ["a", ""])
    with pytest.raises(ContextWindowError, match="context window of 256 tokens, but have"):
        llama.likelihoods(TEXT, [" x"])
    with pytest.raises(UsageError, match="classifies texts"):
        llama.classify("x", None)
    with pytest.raises(UsageError, match="chat template"):
        LocalSubject(llama.model, chat=True)
    assert llama.labels() == ()


def test_vectors(llama: LocalSubject) -> None:
    vectors = llama.embed(["the cat", "the dog sat"])
    assert vectors.shape == (2, 32)
    assert abs(vectors[0] - llama.embed(["the cat"])[0]).max() < 1e-5
