"""The waterfall is the sampler: the same stages, the same end, and mass that adds up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from specimens import Make

from loquela.api import LanguageModel
from loquela.errors import UsageError
from loquela.generation.rules import History, softmax
from loquela.generation.sampling import distribution
from loquela.generation.settings import GenerationSettings
from loquela.inspection import UnavailableError, inspect
from loquela.inspection.pictures.next import waterfall_of

ORDERS = ["temperature,top_k,top_p,min_p", "top_k,top_p,min_p,temperature", "min_p,top_p,temperature,top_k"]


@given(
    arrays.arrays(np.float64, st.integers(2, 40), elements=st.floats(-12, 12)),
    st.just(0.0) | st.floats(0.3, 3),  # above, no probability is too small for a number
    st.integers(0, 30),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.5, 2),
    st.sampled_from(ORDERS),
)
def test_equal_to_the_sampler_on_random_distributions(
    logits: np.ndarray, temperature: float, k: int, p: float, share: float, penalty: float, order: str
) -> None:
    settings = GenerationSettings(
        temperature=temperature, top_k=k, top_p=p, min_p=share, repetition_penalty=penalty, sampler_order=order
    )
    history = History((0, 1), (1,))
    expected = distribution(logits, history, settings)
    steps = waterfall_of(logits, history, settings)
    assert [step["name"] for step in steps] == [n for n in settings.sampler_order if n in [s["name"] for s in steps]]
    taken, left = sum(step["taken"] for step in steps), steps[-1]["left"] if steps else 1.0
    assert taken + left == pytest.approx(1, abs=1e-12)
    assert (steps[-1]["kept"] if steps else len(logits)) == np.count_nonzero(expected)
    for before, after in zip([len(logits), *(s["kept"] for s in steps)], steps, strict=False):
        assert 1 <= after["kept"] <= before
        assert (after["removed"] > 0) <= (after["kept"] < before)
        assert 0 <= after["moved"] <= 1 + 1e-12


@pytest.mark.parametrize("name", ["llama", "t5", "lstm", "ngram"])
def test_the_whole_vocabulary_adds_up(model: Make, name: str) -> None:
    found = model(name)
    ids = found.tokenizer.encode("The cat sat on")
    shown = inspect.next(found, "The cat sat on", top=7, top_k=5, temperature=0.7, top_p=0.9).data
    assert shown["vocab_size"] == found.network.vocab_size
    assert len(shown["top"]) == 7
    for key in ("probability", "after"):
        assert sum(token[key] for token in shown["top"]) + shown["rest"][key] == pytest.approx(1, abs=1e-9)
    assert shown["rest"]["tokens"] == shown["vocab_size"] - 7
    probabilities = [token["probability"] for token in shown["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(token["after"] > 0 for token in shown["top"]) == shown["stages"][-1]["kept"] <= 5
    if found.network.kind == "decoder":
        own = softmax(found.logits(ids)[0, -1].double().numpy())
        assert [own[token["id"]] for token in shown["top"]] == pytest.approx(probabilities, abs=1e-6)
    piece = next(iter(found.stream("The cat sat on", max_new_tokens=1, top=7)))
    assert [(a.id, a.text) for a in piece.top] == [(token["id"], token["text"]) for token in shown["top"]]


def test_stages_change_places(model: Make) -> None:
    found = model("llama")
    first = inspect.next(found, "The cat", top_k=4, temperature=0.5).data["stages"]
    then = inspect.next(found, "The cat", top_k=4, temperature=0.5, sampler_order="top_k,temperature").data["stages"]
    assert [stage["name"] for stage in first] == ["temperature", "top_k"]
    assert [stage["name"] for stage in then] == ["top_k", "temperature"]
    assert then[0]["removed"] > first[1]["removed"]  # the same tokens, of more mass before they were cooled


def test_an_encoder_tells_what_belongs_in_a_gap(model: Make, encoder: LanguageModel) -> None:
    found = model("bert")
    shown = inspect.next(found, "The cat [MASK] on the mat", top=3).data
    ids = found.tokenizer.encode("The cat [MASK] on the mat")
    assert found.tokenizer.mask_id in ids
    own = softmax(found.logits(ids)[0, ids.index(found.tokenizer.mask_id or 0)].double().numpy())
    assert shown["top"][0]["probability"] == pytest.approx(own.max(), abs=1e-6)
    with pytest.raises(UsageError, match="needs one"):
        inspect.next(found, "The cat sat")
    with pytest.raises(UnavailableError, match="no head"):
        inspect.next(encoder, "The cat [MASK]")
