"""Beam search beside transformers' on random weights: token for token, score for score."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from loquela.checkpoint.store import load_model
from loquela.errors import ContextWindowError, UsageError
from loquela.generation.beam import beam_search, replay
from loquela.generation.decode import generate_ids
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network

START, PAD, VOCABULARY = 2, 3, 31
ENDS = frozenset({1, 7, 11, 19, 23})
SIDES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 40}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "tie_word_embeddings": False},
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu"},
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", SIDES | HEADS),
    "marian": ("MarianConfig", "MarianMTModel", SIDES | HEADS | {"scale_embedding": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
SETTINGS = [
    {"num_beams": 2},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": 0.6, "early_stopping": True},
    {"num_beams": 5, "length_penalty": 2.0},
    {"num_beams": 5, "length_penalty": -1.0, "early_stopping": True},
]


@cache
def pair(name: str) -> tuple[Any, Network]:
    """A model of transformers with scrambled weights, and ours from its directory."""
    config, kind, shape = MODELS[name]
    random = np.random.default_rng(4)  # not torch's, whose normal numbers depend on the processor
    ids = {"pad_token_id": PAD, "eos_token_id": sorted(ENDS), "decoder_start_token_id": START}
    model = getattr(transformers, kind)(getattr(transformers, config)(vocab_size=VOCABULARY, **shape, **ids)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if name != "marian" or "embed_positions" not in key:
                noise = torch.from_numpy(random.normal(scale=0.3, size=parameter.shape))
                parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
        for buffer in model.buffers():
            if buffer.shape == (1, VOCABULARY):  # final_logits_bias; a tied head likes to repeat its input for ever
                buffer[:, sorted(ENDS)] += 2
    model.generation_config = transformers.GenerationConfig(**ids)
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return model, load_model(directory).network


def prompts(name: str) -> tuple[Tensor, Tensor]:
    """Three prompts of 9, 5 and 7 tokens: (tokens, padding), padded where each kind of model has it."""
    tokens = torch.randint(4, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    real = torch.ones(3, 9, dtype=torch.bool)
    for row, length in ((1, 5), (2, 7)):
        real[row, slice(None, 9 - length) if name == "gpt2" else slice(length, None)] = False
    return tokens.where(real, PAD), real


def theirs(model: Any, tokens: Tensor, real: Tensor, **given: Any) -> Any:
    return model.generate(
        input_ids=tokens,
        attention_mask=real.long(),
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **given,
    )


def assert_same(found: list[Any], expected: Any, prefix: int) -> None:
    flat = [hypothesis for row in found for hypothesis in row]
    assert len(flat) == len(expected.sequences)
    for hypothesis, sequence, score in zip(flat, expected.sequences, expected.sequences_scores, strict=True):
        ids = sequence[prefix:].tolist()
        assert ids == [*hypothesis.ids, *[PAD] * (len(ids) - len(hypothesis.ids))]
        assert hypothesis.score == pytest.approx(score.item(), rel=1e-4)


@every_model
@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_every_hypothesis_is_that_of_transformers(name: str, given: dict[str, Any]) -> None:
    model, network = pair(name)
    tokens, real = prompts(name)
    expected = theirs(model, tokens, real, max_new_tokens=12, num_return_sequences=given["num_beams"], **given)
    settings = GenerationSettings(max_new_tokens=12, n=given["num_beams"], **given)
    found = beam_search(network, tokens, settings, end_ids=ENDS, padding=real)
    assert_same(found, expected, tokens.shape[1] if name == "gpt2" else 1)


def test_the_models_end_at_many_lengths() -> None:
    """Else the comparisons above would prove little."""
    lengths = set()
    for name in MODELS:
        tokens, real = prompts(name)
        settings = GenerationSettings(max_new_tokens=12, num_beams=5, n=5, length_penalty=2.0)
        for row in beam_search(pair(name)[1], tokens, settings, end_ids=ENDS, padding=real):
            lengths |= {len(hypothesis.ids) for hypothesis in row}
    assert len(lengths) > 5


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@pytest.mark.parametrize(
    "given",
    [
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7},
        {"bad_words_ids": [[5], [9, 7], [30]]},
        {"min_length": 11},
        {"forced_eos_token_id": 1, "length_penalty": 2.0},
        {"forced_eos_token_id": 1, "no_repeat_ngram_size": 1, "bad_words_ids": [[6]], "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_rules_that_do_not_draw_apply(name: str, given: dict[str, Any]) -> None:
    model, network = pair(name)
    tokens, real = prompts(name)
    expected = theirs(model, tokens, real, max_new_tokens=10, num_beams=3, **given)
    settings = GenerationSettings(max_new_tokens=10, num_beams=3, **given)
    rows = [  # one by one, since the rules of transformers read the padding as part of a decoder's prompt
        beam_search(network, row[keep][None], settings, end_ids=ENDS)[0] for row, keep in zip(tokens, real, strict=True)
    ]
    if name == "bart":
        assert_same(rows, expected, 1)
    else:
        first = theirs(model, tokens[:1], real[:1], max_new_tokens=10, num_beams=3, **given)
        assert_same(rows[:1], first, tokens.shape[1])


def test_a_target_begins_with_the_forced_token() -> None:
    model, network = pair("bart")
    tokens, real = prompts("bart")
    expected = theirs(model, tokens, real, max_new_tokens=8, num_beams=4, forced_bos_token_id=17)
    settings = GenerationSettings(max_new_tokens=8, num_beams=4, forced_bos_token_id=17)
    found = beam_search(network, tokens, settings, end_ids=ENDS, padding=real)
    assert {row[0].ids[0] for row in found} == {17}
    assert_same(found, expected, 1)


@every_model
def test_a_prompt_finds_the_same_among_neighbours(name: str) -> None:
    _, network = pair(name)
    tokens, real = prompts(name)
    settings = GenerationSettings(max_new_tokens=12, num_beams=3, n=3)
    together = beam_search(network, tokens, settings, end_ids=ENDS, padding=real)
    for row, keep, found in zip(tokens, real, together, strict=True):
        alone = beam_search(network, row[keep][None], settings, end_ids=ENDS)[0]
        assert [h.ids for h in alone] == [h.ids for h in found]


@every_model
def test_the_best_beam_is_no_worse_than_greedy(name: str) -> None:
    """And the steps of the ids that were found are those that the decode loop would have gone."""
    _, network = pair(name)
    prompt = prompts(name)[0][0].tolist()
    greedy = list(generate_ids(network, prompt, GenerationSettings(do_sample=False, max_new_tokens=7)))
    settings = GenerationSettings(num_beams=5, length_penalty=0.0, max_new_tokens=7)
    best = beam_search(network, torch.tensor([prompt]), settings)[0][0]
    assert best.score >= sum(step.log_prob for step in greedy) - 1e-4
    _, steps = replay(network, prompt, best.ids)
    assert sum(step.log_prob for step in steps) == pytest.approx(best.score, abs=1e-4)
    _, steps = replay(network, prompt, [step.id for step in greedy])
    for again, step in zip(steps, greedy, strict=True):
        assert (again.id, again.finish_reason) == (step.id, step.finish_reason)
        assert again.logits == pytest.approx(step.logits, abs=1e-5)


def test_what_has_no_effect_is_refused() -> None:
    for given in ({"temperature": 0.7}, {"top_k": 5}, {"do_sample": True}, {"min_p": 0.1}):
        with pytest.raises(UsageError, match=f"{next(iter(given))} must be left out"):
            GenerationSettings(num_beams=2, **given)
    for given in ({"length_penalty": 2.0}, {"early_stopping": True}):
        with pytest.raises(UsageError, match="num_beams must be above 1"):
            GenerationSettings(**given)
    with pytest.raises(UsageError, match="n must be at most num_beams, which is 2, but is 3"):
        GenerationSettings(num_beams=2, n=3)


def test_the_window_bounds_prompt_and_completion() -> None:
    _, network = pair("gpt2")
    prompt = torch.full((1, 36), 5)
    found = beam_search(network, prompt, GenerationSettings(num_beams=2))
    assert len(found[0][0].ids) == 4
    with pytest.raises(ContextWindowError, match="40 tokens, but has 40"):
        beam_search(network, torch.full((1, 40), 5), GenerationSettings(num_beams=2))
    assert beam_search(network, prompt, GenerationSettings(num_beams=2, max_new_tokens=0))[0][0].ids == ()


def test_completions_are_those_of_the_search(tmp_path: Path) -> None:
    from loquela.api import LanguageModel
    from loquela.text.tokenizer import Tokenizer

    _, network = pair("t5")
    tokenizer = Tokenizer.train("char", ["abcdefghijklmnopqrstuvwxyz"], None, special_tokens=("<pad>", "</s>"))
    model = LanguageModel(network, tokenizer, {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": 1})
    best, second = model.generate("abc", n=2)
    found = beam_search(network, torch.tensor([tokenizer.encode("abc")]), model.settings(n=2), end_ids=frozenset({1}))
    assert [piece.id for piece in best.tokens] == list(found[0][0].ids)
    assert [piece.id for piece in second.tokens] == list(found[0][1].ids)
    assert model.settings(temperature=0.5).num_beams == 1  # who asks for a temperature wants to sample
