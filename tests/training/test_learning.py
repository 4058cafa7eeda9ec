"""Every objective trains a network that can learn it, from a recipe to a model that opens; resumed, the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loquela.api import load
from loquela.errors import RecipeError
from loquela.training.events import Event, Sampled, Stepped, Validated
from loquela.training.run import train

SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
    },
    "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 64},
    "qwen3": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "bart": {**SEQ2SEQ},
    "transformer": {**SEQ2SEQ},
}
LEARNT = [
    ("masked", "bert"),
    ("span_corruption", "t5"),
    ("span_corruption", "qwen3"),
    ("denoising", "bart"),
    ("pairs", "transformer"),
    ("prefix_lm", "t5"),
    ("prefix_lm", "gpt2"),
    ("fim", "qwen3"),
]
ANIMALS = ["cat", "dog", "fox", "owl", "bee"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """The same easy text as one file, and as pairs."""
    lines = [f"the {ANIMALS[n % 5]} sees the {ANIMALS[n * n % 5]} . it runs {n % 10} miles ." for n in range(400)]
    text, one, other = tmp_path / "text.txt", tmp_path / "one", tmp_path / "other"
    text.write_text("\n".join(lines))
    one.write_text("\n".join(f"{n} {ANIMALS[n % 5]}" for n in range(400)))
    other.write_text("\n".join(f"{ANIMALS[n % 5]} {ANIMALS[n % 5]}" for n in range(400)))
    return {"text": str(text), "pairs": {"source": str(one), "target": str(other)}}


def recipe_of(objective: str, model_type: str, sources: dict[str, Any], output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"model_type": model_type, **SIZES[model_type]},
        "tokenizer": {"kind": "byte"} if objective == "pairs" else {"kind": "bpe", "vocab_size": 400},
        "data": sources["pairs" if objective == "pairs" else "text"],
        "objective": objective,
        "block_size": 32,
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 14,
        "save_steps": 5,
        "eval_steps": 7,
        "learning_rate": 0.01,
        "optim": "adamw_torch_fused",
        **changes,
    }


@pytest.mark.parametrize(("objective", "model_type"), LEARNT)
def test_an_objective_is_learnt_and_an_interruption_changes_no_bit(
    objective: str, model_type: str, sources: dict[str, Any], tmp_path: Path
) -> None:
    events: list[Event] = []
    whole = train(recipe_of(objective, model_type, sources, tmp_path / "whole"), on_event=events.append)
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    validated = [event for event in events if isinstance(event, Validated)]
    assert validated[-1].loss < validated[0].loss
    assert (whole.val_bits_per_byte is None) == (objective != "pairs")

    def leaves(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 8:
            raise KeyboardInterrupt

    recipe = recipe_of(objective, model_type, sources, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, on_event=leaves)
    cut = train(recipe)
    assert (cut.train_loss, cut.val_loss) == (whole.train_loss, whole.val_loss)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]
    model = load(whole.model)
    assert model.network.config.model_type == model_type


def test_what_was_trained_fills_masks_and_answers(sources: dict[str, Any], tmp_path: Path) -> None:
    from loquela.generation.fill import fill

    model = load(train(recipe_of("masked", "bert", sources, tmp_path / "bert")).model)
    completion = fill(model.network, model.tokenizer, "the cat<mask> the fox .")
    assert completion.text.startswith("the cat")
    assert completion.text.endswith(" the fox .")
    assert "<mask>" not in completion.text
    events: list[Event] = []
    recipe = recipe_of("pairs", "transformer", sources, tmp_path / "pairs", sample_steps=7)
    answers = load(train(recipe, on_event=events.append).model)
    (sampled, *_) = [event for event in events if isinstance(event, Sampled)]
    assert sampled.prompt.split()[1] in ANIMALS, "a source that is held out"
    settings = {"temperature": 0, "max_new_tokens": 12}
    assert answers.generate("5 cat", **settings).text == answers.generate(["7 dog", "5 cat"], **settings)[1].text


@pytest.mark.parametrize(
    ("objective", "model_type", "changes", "said"),
    [
        ("masked", "gpt2", {}, "objective masked must have a model that is a encoder, but gpt2 is a decoder"),
        ("causal", "t5", {}, "must have a model that is a decoder, but t5 is a encoder-decoder"),
        ("masked", "bert", {"sample_steps": 5}, "sample_steps must not be given"),
        ("masked", "bert", {"attend_across_documents": False}, "attend_across_documents must be true for bert"),
        ("masked", "bert", {"objective_options": {"rate": 0.2}}, "did you mean 'ratio'"),
        ("causal", "gpt2", {"data": {"source": "a", "target": "b"}}, "data must be a text for the objective causal"),
        ("pairs", "t5", {"data": "shakespeare"}, "data must be source: and target: for the objective pairs"),
    ],
)
def test_what_does_not_go_together_is_said(
    objective: str, model_type: str, changes: dict[str, Any], said: str, sources: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        train(recipe_of(objective, model_type, sources, tmp_path / "run", **changes))
