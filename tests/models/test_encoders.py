"""Encoder-only networks beside transformers' on random weights, and on a trained BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError, MismatchError, UsageError
from loquela.models.encoder_only import EncoderOnly

BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56}
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 56}
FAMILIES = {"Bert": BERT, "Roberta": BERT, "DistilBert": DISTIL}
ENDINGS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
CLASSES = [(family, ending) for family in FAMILIES for ending in ENDINGS]
PAD = {"Bert": 0, "Roberta": 1, "DistilBert": 0}


def make(family: str, ending: str, directory: Path, **settings: Any) -> Any:
    """A model of transformers with scrambled weights (biases and norms too), saved."""
    torch.manual_seed(0)
    settings = {"vocab_size": 97, "max_position_embeddings": 40, "num_labels": 5, **FAMILIES[family], **settings}
    model = getattr(transformers, family + ending)(getattr(transformers, family + "Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return model


def batch(side: str, pad: int) -> tuple[Tensor, Tensor]:
    """Rows of 13, 7 and 1 tokens, filled up on one side: (tokens, padding)."""
    torch.manual_seed(1)
    tokens, real = torch.randint(3, 97, (3, 13)), torch.zeros(3, 13, dtype=torch.bool)
    for row, length in enumerate((13, 7, 1)):
        real[row, slice(None, length) if side == "right" else slice(13 - length, None)] = True
    return tokens.where(real, pad), real


def outputs(model: Any, **inputs: Tensor) -> Tensor:
    result = model(**inputs)
    return result.logits if "logits" in result else result.last_hidden_state


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(("family", "ending"), CLASSES, ids=lambda p: p)
def test_same_numbers_as_transformers(family: str, ending: str, tmp_path: Path) -> None:
    theirs = make(family, ending, tmp_path)
    ours = load_model(tmp_path).network
    assert isinstance(ours, EncoderOnly)
    headless = ending == "Model"
    for side in ("right", "left"):
        tokens, real = batch(side, PAD[family])
        inputs: dict[str, Tensor] = {"input_ids": tokens, "attention_mask": real.long()}
        if family != "Roberta":  # positions count real tokens here, as transformers does for RoBERTa only
            inputs["position_ids"] = (real.long().cumsum(1) - 1).clamp_min(0)
        types = (torch.arange(13) > 6).long().expand(3, 13) if family == "Bert" else None
        if types is not None:
            inputs["token_type_ids"] = types
        with torch.no_grad():
            expected = outputs(theirs, **inputs)
            got = (ours.hidden if headless else ours)(tokens, padding=real, token_types=types)
            alone = (ours.hidden if headless else ours)(
                tokens[1:2, real[1]], token_types=None if types is None else types[1:2, real[1]]
            )
        if ending == "ForSequenceClassification":
            if side == "right":  # transformers reads the label off the padding otherwise
                assert_close(got, expected)
            assert_close(got[1:2], alone)
        else:
            assert_close(got[real], expected[real])
            assert_close(got[1:2, real[1]], alone)


@pytest.mark.parametrize(("family", "ending"), CLASSES, ids=lambda p: p)
def test_saved_back_bit_for_bit_and_open_in_transformers(family: str, ending: str, tmp_path: Path) -> None:
    theirs = make(family, ending, tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs").network, None, tmp_path / "ours")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [family + ending]
    again, info = getattr(transformers, family + ending).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens, real = batch("right", PAD[family])
    with torch.no_grad():
        inputs = {"input_ids": tokens, "attention_mask": real.long()}
        assert torch.equal(outputs(again.eval(), **inputs), outputs(theirs, **inputs))


def test_untied_head_is_read_and_written(tmp_path: Path) -> None:
    theirs = make("DistilBert", "ForMaskedLM", tmp_path, tie_word_embeddings=False)
    ours = load_model(tmp_path).network
    tokens, _ = batch("right", 0)
    with torch.no_grad():
        assert_close(ours(tokens[:1]), theirs(tokens[:1]).logits)
    save_model(ours, None, tmp_path / "again")
    assert "vocab_projector.weight" in load_file(tmp_path / "again" / "model.safetensors")


def test_checkpoints_of_the_first_days(tmp_path: Path) -> None:
    """bert-base-uncased: gamma and beta, the tied matrix written twice, and a head that nobody reads."""
    theirs = make("Bert", "ForPreTraining", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "cls.seq_relationship.weight" in tensors
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    ours = load_model(tmp_path).network
    tokens, _ = batch("right", 0)
    with torch.no_grad():
        assert_close(ours(tokens[:1]), theirs(tokens[:1]).prediction_logits)


def test_a_missing_pooler_is_missing(tmp_path: Path) -> None:
    """What a masked-token checkpoint may carry for nothing, a text classifier needs."""
    make("Bert", "ForSequenceClassification", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.pooler.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"bert\.pooler\.dense\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForNextSentencePrediction"]}, "architectures must be one of BertForMaskedLM"),
        ({"id2label": {"1": "only"}}, "id2label must name the labels"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "snake"}, "hidden_act must be one of"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true"),  # there its bias would be another tensor
    ],
)
def test_configs_that_cannot_be_honoured(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make("Bert", "ForMaskedLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)


def test_a_new_head_on_the_same_body(tmp_path: Path) -> None:
    make("Bert", "Model", tmp_path / "base")
    base = load_model(tmp_path / "base").network
    assert isinstance(base, EncoderOnly)
    with pytest.raises(UsageError, match="logits need a checkpoint with a head"):
        base(torch.ones(1, 2, dtype=torch.int64))
    classifier = base.for_task("text-classification", ["no", "perhaps", "yes"])
    assert classifier.labels == ("no", "perhaps", "yes")
    tokens, real = batch("right", 0)
    with torch.no_grad():
        assert classifier.eval()(tokens, padding=real).shape == (3, 3)
        assert torch.equal(classifier.hidden(tokens, padding=real), base.hidden(tokens, padding=real))
        assert base.pooler is not None
        assert classifier.pooler is not None
        assert torch.equal(classifier.pooler.dense.weight, base.pooler.dense.weight)
    save_model(classifier, None, tmp_path / "classifier")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    assert opened.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    with torch.no_grad():
        assert_close(classifier(tokens, padding=real), opened(tokens, attention_mask=real.long()).logits)


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    make("DistilBert", "ForMaskedLM", tmp_path)
    network = load_model(tmp_path).network
    assert network.kind == "encoder"
    with pytest.raises(UsageError):
        network.new_cache()
