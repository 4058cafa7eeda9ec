"""A model in CTranslate2's form, to be measured beside ours: the same weights, rounded by its own function."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from loquela.errors import UsageError

__all__ = ["ctranslate_of"]


def ctranslate_of(model: Path, place: Path, quantize: str | None) -> Path:
    """Write a model directory for CTranslate2, in float32 or int8; return where.

    The tokens of a plain LLaMA, which needs no tokenizer for that, are called by their numbers; others go through
    CTranslate2's own converter. Raises `UsageError` for another width, or for what that converter does not take.
    """
    from loquela.checkpoint.configs import read_config

    if quantize not in (None, "int8"):
        raise UsageError(f"CTranslate2 computes in float32 or int8, not in {quantize}")
    out = place / f"ctranslate2-{quantize or 'float32'}"
    if read_config(model).model_type == "llama":
        from loquela.checkpoint.store import load_model

        network = load_model(model, verify=False).network
        if _is_plain(network):
            _plain_llama(network, out, quantize)
            return out
    _converted(model, out, quantize)
    return out


def _converted(model: Path, out: Path, quantize: str | None) -> None:
    """What CTranslate2's own converter makes of a model; special tokens that are missing get any name."""
    importlib.import_module("transformers").utils.logging.disable_progress_bar()
    converter: Any = importlib.import_module("ctranslate2.converters").TransformersConverter
    try:
        converter(str(model)).convert(str(out), quantization=quantize or "float32")
    except Exception as error:  # whatever a library of others finds wrong: it is then not measured
        raise UsageError(f"CTranslate2's converter does not take this model: {str(error).strip()[:120]}") from None
    config = json.loads((out / "config.json").read_text())
    words = json.loads(next(out.glob("*vocabulary.json")).read_text())
    missing = {name: words[0] for name, value in config.items() if name.endswith("_token") and value is None}
    (out / "config.json").write_text(json.dumps(config | missing))


def _is_plain(network: Any) -> bool:
    config = network.config
    known = config.hidden_act == "silu" and config.rope_parameters.get("rope_type", "default") == "default"
    return known and not any(name.endswith(".bias") for name, _ in network.named_parameters())


def _plain_llama(network: Any, out: Path, quantize: str | None) -> None:
    config = network.config
    specs = importlib.import_module("ctranslate2.specs")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.num_hidden_layers,
        heads,
        activation=specs.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=config.rope_parameters["rope_theta"],
        num_heads_kv=None if kv_heads == heads else kv_heads,
    )
    _fill(spec.decoder, network)
    spec.register_vocabulary([str(i) for i in range(network.vocab_size)])
    names = {"bos_token": "0", "eos_token": "0", "unk_token": "0"}
    for name, value in (names | {"layer_norm_epsilon": config.rms_norm_eps}).items():
        setattr(spec.config, name, value)
    spec.validate()
    spec.optimize(quantization=quantize)
    out.mkdir()
    spec.save(str(out))


def _fill(spec: Any, network: Any) -> None:
    np = importlib.import_module("numpy")

    def array(tensor: Any) -> Any:
        return tensor.detach().float().numpy()

    spec.scale_embeddings = False
    spec.embeddings.weight = array(network.token_embedding.weight)
    spec.layer_norm.gamma = array(network.decoder.norm.weight)
    spec.projection.weight = array(network.lm_head.weight)
    for to, layer in zip(spec.layer, network.decoder.layers, strict=True):
        attention, feedforward = layer.attention, layer.feedforward
        to.self_attention.layer_norm.gamma = array(layer.attention_norm.weight)
        parts = [array(part.weight) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        to.self_attention.linear[0].weight = np.concatenate(parts)
        to.self_attention.linear[1].weight = array(attention.o_proj.weight)
        to.ffn.layer_norm.gamma = array(layer.feedforward_norm.weight)
        to.ffn.linear_0.weight = array(feedforward.gate_proj.weight)
        to.ffn.linear_0_noact.weight = array(feedforward.up_proj.weight)
        to.ffn.linear_1.weight = array(feedforward.down_proj.weight)
