"""The logit lens ends in the logits; attributions add up to them."""

from __future__ import annotations

import pytest
import torch
from specimens import MORE, Make, model_of

from loquela.api import LanguageModel, load
from loquela.errors import UsageError
from loquela.inspection import UnavailableError, inspect
from loquela.inspection.credit import attribute
from loquela.inspection.pictures.attribution import gradient_times_input
from loquela.inspection.pictures.lens import lens, predictions
from loquela.inspection.reading import Reading, read

TEXT = "The cat sat on the mat; the dog sat"
SUMS = ["gpt2", "llama", "mixtral", "t5", "bart", "transformer", "position_switch alibi", "position_switch learned"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "t5", "bart"])
def test_the_last_layer_is_the_model_itself(model: Make, name: str) -> None:
    found = model(name)
    reading = read(found, TEXT)
    layers = lens(reading)
    assert [layer for layer, _ in layers] == ["embedding", "layer 0", "layer 1"]
    assert torch.equal(layers[-1][1], reading.logits())
    assert not torch.equal(layers[1][1], layers[2][1])


def test_what_the_picture_says(stories: LanguageModel) -> None:
    found = inspect.lens(stories, "Once upon a time, there was a little", top=3).data
    ids = stories.tokenizer.encode("Once upon a time, there was a little")
    logits = stories.logits(ids)[0]
    assert found["rank"][-1] == [1] * len(ids)
    assert [cell[0]["text"] for cell in found["top"][-1]] == [
        stories.tokenizer.token(int(i)) for i in logits.argmax(-1)
    ]
    probabilities = logits.double().softmax(-1)
    assert found["probability"][-1] == pytest.approx(probabilities.max(-1).values.tolist(), abs=1e-5)
    ranks = [int((logits[i] > logits[i, ids[i + 1]]).sum()) + 1 for i in range(len(ids) - 1)]
    assert found["next_rank"][-1] == [*ranks, None]
    entropy = -(probabilities * probabilities.log2()).sum(-1)
    assert found["entropy"][-1] == pytest.approx(entropy.tolist(), abs=1e-5)
    deep, shallow = (sum(found["next_rank"][layer][:-1]) for layer in (-1, 0))
    assert deep < shallow  # it is what the layers are for


def test_no_layers_to_look_between(model: Make) -> None:
    with pytest.raises(UnavailableError, match="layer by layer is unavailable"):
        inspect.lens(model("lstm"), TEXT)


@pytest.mark.parametrize("name", [*SUMS, *MORE])
def test_attributions_add_up_to_the_logit(model: Make, name: str) -> None:
    found = model(name)
    reading = read(found, TEXT)
    logits = reading.logits()
    for place in (0, len(reading.written) - 1):
        for token in (int(logits[place].argmax()), 17):
            terms, logit = attribute(reading, place, token)
            assert logit == pytest.approx(float(logits[place, token]), abs=1e-4)
            assert sum(term.value for term in terms) == pytest.approx(logit, abs=1e-4)
            heads = [(t.layer, t.head) for t in terms if t.kind == "head"]
            assert sorted(heads) == [(layer, h) for layer in (0, 1) for h in range(4)]  # type: ignore[type-var]
            assert max(abs(t.value) for t in terms if t.kind == "head") > 1e-3


def test_a_head_that_is_silenced_had_that_term(model: Make) -> None:
    """The last layer's attention reaches the head through the norm alone: take its slice out, and the sum says how."""
    found = model("position_switch none")
    network = found.network
    reading = read(found, TEXT)
    terms, _ = attribute(reading, -1, 20)
    layer = network.get_submodule("decoder.layers.1")
    term = next(t for t in terms if (t.kind, t.layer, t.head) == ("head", 1, 2))
    with found.watch("decoder.layers.1.attention.o_proj:input", "decoder.layers.1") as seen:
        reading.logits()
    mixed, stream = seen["decoder.layers.1.attention.o_proj:input"][0][0, -1], seen["decoder.layers.1"][0][0, -1]
    with torch.no_grad():
        part = layer.attention.o_proj.weight[:, 16:24] @ mixed[16:24]  # type: ignore[union-attr, index, operator]
        scale = (stream.square().mean() + 1e-6).rsqrt()
        weight = network.get_parameter("decoder.norm.weight")
        expected = network.get_parameter("lm_head.weight")[20] @ (part * scale * weight)
    assert term.value == pytest.approx(float(expected), abs=1e-4)


def test_half_precision_says_what_it_rounds_away() -> None:
    found = model_of.__wrapped__("llama")
    found.network.to(torch.bfloat16)
    terms, logit = attribute(read(found, TEXT), -1, 20)
    assert sum(term.value for term in terms) == pytest.approx(logit, abs=1e-9)
    (rounding,) = [term for term in terms if term.kind == "rounding"]
    assert abs(rounding.value) < 0.05 * max(1, abs(logit))


@pytest.mark.parametrize("name", ["bert", "gemma2"])
def test_a_head_that_is_not_linear(model: Make, name: str) -> None:
    shown = inspect.attribution(model(name), "The cat [MASK] on the mat" if name == "bert" else TEXT).data
    assert shown["terms"] is None
    assert "not linear" in shown["unavailable"]["terms"]
    assert len(shown["saliency"]) == len(shown["tokens"])


def test_gradient_times_input_is_the_derivative(model: Make) -> None:
    found = model("llama")
    network = found.network.double()
    try:
        ids = [5, 9, 14, 20]
        products, source = gradient_times_input(Reading(network, ids), 3, 11)
        assert source is None
        table, step = network.get_parameter("token_embedding.weight"), 1e-6
        for place, token in enumerate(ids):
            old = table[token].detach().clone()
            moved = []
            for sign in (1, -1):
                with torch.no_grad():
                    table[token] = old * (1 + sign * step)
                    moved.append(float(network(torch.tensor([ids]))[0, 3, 11]))
                    table[token] = old
            assert products[place] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-6)
    finally:
        network.float()


def test_one_token_against_another(stories: LanguageModel) -> None:
    text = "Once upon a time, there was a little"
    shown = inspect.attribution(stories, text, token="boy" if stories.tokenizer.id_of("boy") else ".", against="g").data
    assert shown["total"] == pytest.approx(shown["token"]["logit"] - shown["against"]["logit"], abs=1e-6)
    assert sum(t["value"] for t in shown["terms"]) == pytest.approx(shown["total"], abs=1e-4)


def test_an_encoder_is_asked_about_its_mask_and_at_its_places() -> None:
    cloze = load("cloze")
    with pytest.raises(UsageError, match=r"needs one \[MASK\], but has 0"):
        inspect.attribution(cloze, "The cat sat.")
    with pytest.raises(UsageError, match=r"needs one \[MASK\], but has 2"):
        inspect.attribution(cloze, "The [MASK] [MASK].")
    assert inspect.attribution(cloze, "The cat sat.", place=2).data["place"] == 2
    shown = inspect.lens(cloze, "The cat [MASK].")
    assert predictions(shown.data).layout.xaxis.title.text == "at this token"
    wide = inspect.lens(load("stories"), "One day, a girl named Lily " * 6)
    assert predictions(wide.data).layout.xaxis.title.text == "after this token"
    cells = [text for row in predictions(wide.data).data[0].text for text in row]
    assert max(map(len, cells)) <= 4, "what has no room in its cell is cut in the cell, not in the data"
    assert max(len(cell[0]["text"]) for row in wide.data["top"] for cell in row) > 4
