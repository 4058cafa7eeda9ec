"""Attention beside transformers' own; what heads do, on heads that were made to do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from specimens import Make

from loquela.api import LanguageModel
from loquela.checkpoint.store import load_model
from loquela.errors import UsageError
from loquela.inspection import UnavailableError, inspect
from loquela.inspection.patterns import describe, induction, repeated, rollout
from loquela.inspection.pictures.attention import weights_of
from loquela.inspection.reading import Reading

VOCABULARY = 61
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
THEIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "LLaMA": ("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "Gemma 2, a window in one layer": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_LLAMA, "head_dim": 8, "sliding_window": 5},
    ),
    "BERT": (
        "BertConfig",
        "BertForMaskedLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    ),
    "T5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "BART": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_weights_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config, kind, sizes = THEIRS[name]
    torch.manual_seed(1)
    ids = {f"{role}_token_id": i for i, role in enumerate(("pad", "bos", "eos", "decoder_start"))}
    settings = getattr(transformers, config)(vocab_size=VOCABULARY, **sizes, **ids, attn_implementation="eager")
    theirs = getattr(transformers, kind)(settings).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    network = load_model(tmp_path).network
    source, target = [5, 17, 30, 44, 9, 12, 5], [3, 21, 8, 40]
    pair = network.kind == "encoder-decoder"
    with torch.no_grad():
        given = {"decoder_input_ids": torch.tensor([target])} if pair else {}
        out = theirs(torch.tensor([source]), output_attentions=True, **given)
    expected = {"encoder" if network.kind == "encoder" else "decoder": getattr(out, "attentions", None)}
    if pair:
        expected = {"encoder": out.encoder_attentions, "decoder": out.decoder_attentions, "cross": out.cross_attentions}
    for part, layers in expected.items():
        ours = weights_of(Reading(network, source, target if pair else None), part)
        wanted = np.stack([layer[0].numpy() for layer in layers])
        assert ours.shape == wanted.shape
        assert np.abs(ours - wanted).max() < 1e-5
        assert wanted.std() > 0.02  # a head that looks everywhere alike proves nothing
        assert np.abs(ours.sum(-1) - 1).max() < 1e-6


def test_what_the_picture_says_of_it(model: Make) -> None:
    found = inspect.attention(model("llama"), "The cat sat on the mat", layer=1).data
    tokens = model("llama").tokenizer.encode("The cat sat on the mat")
    assert len(found["tokens"]) == len(found["queries"]) == len(tokens)
    weights = np.array(found["attention"])
    assert weights.shape == (2, 4, len(tokens), len(tokens))
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5
    assert not np.triu(weights, 1).any()
    assert found["shown"][0] == 1
    assert len(found["heads"]) == 8
    with pytest.raises(UsageError, match="layer and head must be below 2 and 4"):
        inspect.attention(model("llama"), "The cat", layer=2)


@pytest.mark.parametrize("part", ["encoder", "decoder", "cross"])
def test_parts_of_an_encoder_decoder(model: Make, part: str) -> None:
    found = inspect.attention(model("t5"), "The cat sat", part=part, target="the dog").data
    tokenizer = model("t5").tokenizer
    source, target = len(tokenizer.encode("The cat sat")), 1 + len(tokenizer.encode("the dog"))
    rows, columns = {"encoder": (source, source), "decoder": (target, target), "cross": (target, source)}[part]
    assert (len(found["queries"]), len(found["keys"])) == (rows, columns)
    assert np.array(found["attention"]).shape == (2, 4, rows, columns)
    assert (found["rollout"] is None) == (part == "cross") == ("rollout" in found["unavailable"])
    with pytest.raises(UsageError, match="part must be one of decoder for this model"):
        inspect.attention(model("llama"), "The cat", part=part if part != "decoder" else "cross")


def test_a_network_without_attention(model: Make) -> None:
    with pytest.raises(UnavailableError, match="attention is unavailable: lstm has none"):
        inspect.attention(model("lstm"), "The cat")


def test_heads_are_told_apart_by_what_they_do() -> None:
    n = 6
    ids = repeated(40, n, [1, 2])
    assert ids[:n] == ids[n:]
    assert not {1, 2} & set(ids)
    size = 2 * n
    previous = np.eye(size, k=-1)
    previous[0, 0] = 1
    first = np.zeros((size, size))
    first[:, 0] = 1
    copying = np.eye(size)
    for q in range(n, size):
        copying[q] = np.eye(size)[q - n + 1]
    weights = np.stack([previous, first, np.eye(size), copying])[None]
    echoed = induction(weights, n)
    assert echoed.shape == (1, 4)
    assert echoed[0, 3] == 1
    assert echoed[0, 0] == 0
    found = {h["head"]: h for h in describe(weights, echoed, square=True)}
    assert [found[i]["pattern"] for i in range(4)] == ["previous", "first", "itself", "induction"]
    assert found[0]["previous"] == found[1]["first"] == found[2]["itself"] == 1
    assert found[1]["entropy"] == 0
    uniform = np.full((1, 1, size, size), 1 / size)
    (mixed,) = describe(uniform, None, square=True)
    assert mixed["pattern"] == "mixed"
    assert mixed["induction"] is None
    assert mixed["entropy"] == pytest.approx(np.log2(size))


def test_a_trained_head_that_looks_one_back(encoder: LanguageModel) -> None:
    """Layer 0, head 2 of a well-known sentence encoder."""
    best = inspect.attention(encoder, "The animal did not cross the street because it was too tired.").data["heads"][0]
    assert (best["layer"], best["head"], best["pattern"]) == (0, 2, "previous")
    assert best["previous"] > 0.95


def test_rollout_is_the_product_of_the_layers() -> None:
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(5), (3, 2, 5))
    mixed = np.eye(5)
    for layer in weights:
        mixed = (0.5 * layer.mean(0) + 0.5 * np.eye(5)) @ mixed
    found = rollout(weights)
    assert np.allclose(found, mixed)
    assert np.allclose(found.sum(-1), 1)
