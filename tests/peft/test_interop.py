"""Adapters of the `peft` package open here and ours open there, on tiny models of transformers, to the same logits."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import peft as theirs
from loquela import peft
from loquela.checkpoint.store import load_model
from loquela.models.base import Network

VOCABULARY, BOUND = 97, 1e-5
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]  # of theirs
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        "CAUSAL_LM",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "CAUSAL_LM", LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "CAUSAL_LM", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", "CAUSAL_LM", LLAMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", "CAUSAL_LM", {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "bert": ("BertConfig", "BertForSequenceClassification", "SEQ_CLS", BERT),
    "bert tokens": ("BertConfig", "BertForTokenClassification", "TOKEN_CLS", BERT),
    "t5": ("T5Config", "T5ForConditionalGeneration", "SEQ_2_SEQ_LM", T5),
    "bart": ("BartConfig", "BartForConditionalGeneration", "SEQ_2_SEQ_LM", BART),
}
LORA: dict[str, dict[str, Any]] = {
    "by default": {},
    "all-linear, rank 3": {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"},
    "rsLoRA": {"r": 4, "lora_alpha": 5, "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 5, "use_dora": True},
    "DoRA, all-linear": {"r": 2, "use_dora": True, "target_modules": "all-linear"},
    "second layer": {"r": 4, "layers_to_transform": [1]},
}
SOFT: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 5}),
    "prompt from the vocabulary": (
        "PromptTuningConfig",
        {"num_virtual_tokens": 3, "prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "prefix, projected": (
        "PrefixTuningConfig",
        {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 16},
    ),
}


def make(name: str) -> Any:
    """A model of transformers with scrambled weights, biases and norms too."""
    config, model, _, settings = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    made = getattr(transformers, model)(getattr(transformers, config)(vocab_size=VOCABULARY, **settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@cache
def saved(name: str) -> TemporaryDirectory[str]:
    directory = TemporaryDirectory()
    make(name).save_pretrained(directory.name)
    return directory


def ours(name: str) -> Network:
    return load_model(saved(name).name).network


def theirs_with(name: str, config: Any) -> Any:
    """Their model with an adapter whose tensors are scrambled, so that nothing of it can be left out unseen."""
    model = theirs.get_peft_model(make(name), config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key)))
    return model


def ids(length: int = 11) -> Tensor:
    return torch.randint(3, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(length))


def mask(length: int = 11) -> Tensor:
    """The second row is shorter; padded on the right, where both libraries count positions alike."""
    padding = torch.ones(3, length, dtype=torch.bool)
    padding[1, -3:] = False
    return padding


def their_logits(name: str, model: Any) -> Tensor:
    kwargs = {"decoder_input_ids": ids(7)} if MODELS[name][2] == "SEQ_2_SEQ_LM" else {}
    with torch.no_grad():
        logits = model(input_ids=ids(), attention_mask=mask().long(), **kwargs).logits
    return logits[:, -ids().shape[1] :] if logits.dim() == 3 else logits  # those of a soft prompt come first


def our_logits(name: str, network: Network, adapter: str | None) -> Tensor:
    with torch.no_grad(), peft.wearing(network, adapter):
        if network.kind == "encoder-decoder":
            return network(ids(7), source=ids(), source_padding=mask())  # type: ignore[no-any-return]
        return network(ids(), padding=mask())  # type: ignore[no-any-return]


def gap(name: str, a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    if MODELS[name][2] in ("CAUSAL_LM", "TOKEN_CLS"):
        a, b = a[mask()], b[mask()]
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


def compare(name: str, config: Any, tmp_path: Path) -> None:
    """From there to here, and what we write of it back there."""
    model = theirs_with(name, config)
    expected = their_logits(name, model)
    model.save_pretrained(tmp_path / "theirs")
    network = ours(name)
    plain = our_logits(name, network, None)
    peft.load_adapter(network, tmp_path / "theirs", "a")
    assert gap(name, our_logits(name, network, "a"), expected) <= BOUND
    assert gap(name, plain, expected) > 100 * BOUND  # the adapter does something
    assert torch.equal(our_logits(name, network, None), plain)
    peft.save_adapter(network, "a", tmp_path / "ours")
    back = theirs.PeftModel.from_pretrained(make(name), tmp_path / "ours").eval()
    assert gap(name, our_logits(name, network, "a"), their_logits(name, back)) <= BOUND


USUAL = [(n, k) for n in MODELS for k in LORA if k == "by default" or n in ("gpt2", "llama", "bert", "t5")]
REST = [pytest.param(n, k, marks=pytest.mark.soak) for n in MODELS for k in LORA if (n, k) not in USUAL]


@pytest.mark.parametrize(("name", "kind"), [*USUAL, *REST])
def test_lora(name: str, kind: str, tmp_path: Path) -> None:
    if name == "bert tokens" and "all-linear" in kind:
        pytest.skip("theirs puts LoRA on the head that it tunes whole, and fails")
    targets = {"target_modules": ["qkv_proj"]} if name == "phi3" else {}  # they have no default for it
    config = theirs.LoraConfig(task_type=MODELS[name][2], **{**targets, **LORA[kind]})
    compare(name, config, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_ia3(name: str, tmp_path: Path) -> None:
    settings = {"target_modules": ["qkv_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    settings = settings if name in ("phi3", "qwen3") else {}
    if name == "gemma2":
        settings = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    if name == "qwen3":
        settings = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    compare(name, theirs.IA3Config(task_type=MODELS[name][2], **settings), tmp_path)


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("name", MODELS)
def test_soft_prompts(name: str, kind: str, tmp_path: Path) -> None:
    if "bert" in name and "prefix" in kind:
        pytest.skip("prefix tuning reaches decoders only")
    config, settings = SOFT[kind]
    compare(name, getattr(theirs, config)(task_type=MODELS[name][2], **settings), tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lora_on_embeddings(name: str, tmp_path: Path) -> None:
    embedding = {"gpt2": "wte", "llama": "embed_tokens"}[name]
    config = theirs.LoraConfig(task_type=MODELS[name][2], r=3, target_modules=[embedding])
    compare(name, config, tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_modules_saved_beside(name: str, tmp_path: Path) -> None:
    saved_too = {"gpt2": ["ln_f", "c_proj"], "llama": ["lm_head", "norm"]}[name]
    config = theirs.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear", modules_to_save=saved_too)
    compare(name, config, tmp_path)


def test_ranks_by_name_and_chosen_layers(tmp_path: Path) -> None:
    config = theirs.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r".*\.(q_proj|up_proj)",
        rank_pattern={"up_proj": 2, "layers.1.self_attn.q_proj": 6},
        alpha_pattern={"q_proj": 3},
        exclude_modules=["layers.0.mlp.up_proj"],
    )
    compare("llama", config, tmp_path)


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "t5", "bart"])
def test_an_adapter_that_begins_here_opens_there(name: str, method: str, tmp_path: Path) -> None:
    network = ours(name)
    peft.attach(network, peft.config_for(method), "a", seed=3)
    with torch.no_grad():
        for parameter in peft.trainable(network, "a").values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    peft.save_adapter(network, "a", tmp_path / "ours", base="the/base")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["base_model_name_or_path"] == "the/base"
    model = theirs.PeftModel.from_pretrained(make(name), tmp_path / "ours").eval()
    expected = their_logits(name, model)
    assert gap(name, our_logits(name, network, "a"), expected) <= BOUND
    assert gap(name, our_logits(name, network, None), expected) > 100 * BOUND
