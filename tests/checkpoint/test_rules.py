from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loquela.checkpoint.rules import disk_name, load_into, to_disk
from loquela.checkpoint.skeleton import skeleton
from loquela.errors import ConfigError, MismatchError
from loquela.models.base import Network, architecture, architectures, config_from_dict

Make = Callable[..., Network]
FAMILIES = [name for name in architectures() if hasattr(architecture(name), "CONFIG")]


def test_the_longest_rule_wins_and_stars_carry_over() -> None:
    rules = (("a.*.b", "x.*.y"), ("a.*.b.weight", "z.*", "transpose"), ("a", "w"))
    assert disk_name("a.3.b.bias", rules) == ("x.3.y.bias", False)
    assert disk_name("a.3.b.weight", rules) == ("z.3", True)
    assert disk_name("a.c", rules) == ("w.c", False)
    with pytest.raises(LookupError, match=r"no rule names the tensor 'ab\.c'"):
        disk_name("ab.c", rules)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_of_every_architecture_has_a_name_of_its_own(model_type: str) -> None:
    network = skeleton(config_from_dict({"model_type": model_type}))
    names = [disk_name(name, network.renames)[0] for name in network.state_dict()]
    assert len(set(names)) == len(names)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert not any(buffer.is_meta for buffer in network.buffers())


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_to_disk_and_back(make: Make, model_type: str) -> None:
    network, other = make(model_type, seed=1), make(model_type, seed=2)
    tensors = to_disk(network)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    before = dict(other.named_parameters())
    load_into(other, tensors)
    for name, parameter in other.named_parameters():
        assert parameter is before[name]  # an optimizer goes on with the parameters that it knows
        assert torch.equal(parameter, network.get_parameter(name))


def test_a_wrong_checkpoint_is_refused_with_everything_that_is_wrong_and_changes_nothing(make: Make) -> None:
    network = make("gpt2")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = to_disk(make("gpt2", seed=5))
    del tensors["transformer.h.1.ln_2.bias"], tensors["transformer.wpe.weight"]
    tensors["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(64, 16)
    tensors["transformer.ln_f.weight"] = torch.zeros(16, dtype=torch.int8)
    tensors["transformer.h.2.ln_1.weight"] = torch.zeros(16)
    tensors["evil\x1b[31m\n"] = torch.zeros(1)
    with pytest.raises(MismatchError) as caught:
        load_into(network, tensors)
    message = str(caught.value)
    for part in (
        "2 missing (transformer.wpe.weight [32, 16], transformer.h.1.ln_2.bias [16])",
        "2 extra ('evil\\x1b[31m\\n' [1], 'transformer.h.2.ln_1.weight' [16])",
        "transformer.h.0.mlp.c_fc.weight must be [16, 64], but is [64, 16]",
        "transformer.ln_f.weight must hold torch.float32, but holds torch.int8",
    ):
        assert part in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_tied_head_may_be_written_twice_but_not_with_two_values(make: Make) -> None:
    network = make("gpt2")
    tensors = to_disk(network)
    assert "lm_head.weight" not in tensors
    embedding = tensors["transformer.wte.weight"]
    load_into(make("gpt2", seed=1), {**tensors, "lm_head.weight": embedding.clone()})
    other = make("gpt2", seed=2)
    head_only = {name: value for name, value in tensors.items() if value is not embedding}
    load_into(other, {**head_only, "lm_head.weight": embedding})
    assert torch.equal(other.get_parameter("token_embedding.weight"), embedding)
    with pytest.raises(MismatchError, match=r"lm_head\.weight must equal transformer\.wte\.weight"):
        load_into(other, {**tensors, "lm_head.weight": embedding + 1})


def test_a_checkpoint_without_its_head_and_with_old_buffers(make: Make) -> None:
    network, other = make("gpt2", seed=1), make("gpt2", seed=2)
    bare: dict[str, Tensor] = {name.removeprefix("transformer."): value for name, value in to_disk(network).items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    bare["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    load_into(other, bare)
    assert all(torch.equal(p, network.get_parameter(n)) for n, p in other.named_parameters())
    with pytest.raises(MismatchError, match=r"1 missing \(lm_head\.weight"):
        load_into(
            make("llama"), {n.removeprefix("model."): t for n, t in to_disk(make("llama")).items() if "lm" not in n}
        )


def test_a_skeleton_becomes_real_in_the_dtype_asked_for(make: Make) -> None:
    network = make("llama", tie_word_embeddings=True)
    bones = skeleton(network.config)
    load_into(bones, to_disk(network), dtype=torch.bfloat16)
    assert {p.dtype for p in bones.parameters()} == {torch.bfloat16}
    assert bones.get_parameter("lm_head.weight") is bones.get_parameter("token_embedding.weight")
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in bones.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 9_000},
        {"hidden_size": 2**31 - 2, "num_attention_heads": 1},
        {"head_dim": 2**31 - 2},
    ],
)
def test_a_config_that_would_never_end_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="more"):
        skeleton(config_from_dict({"model_type": "llama", **settings}), at_most=1000)


def test_names_of_old_checkpoints_and_optional_tensors(make: Make) -> None:
    network = make("llama")
    network.aliases, network.optional = ((".gamma", ".weight"),), ("model.norm.weight",)  # type: ignore[misc]
    tensors = to_disk(network)
    norm = tensors.pop("model.norm.weight")
    old = tensors.pop("model.layers.0.input_layernorm.weight")
    load_into(network, {**tensors, "model.layers.0.input_layernorm.gamma": torch.ones_like(old)})
    assert network.get_parameter("decoder.layers.0.attention_norm.weight").eq(1).all()
    assert network.get_parameter("decoder.norm.weight").eq(0).all()
    with pytest.raises(MismatchError, match=r"1 extra \('model\.norm\.gamma'"):
        load_into(network, {**to_disk(network), "model.norm.weight": norm, "model.norm.gamma": norm})
