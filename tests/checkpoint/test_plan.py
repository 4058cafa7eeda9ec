from __future__ import annotations

import pytest

from loquela.checkpoint.flops import training_flops
from loquela.checkpoint.known import known_config
from loquela.checkpoint.plan import HARDWARE, Hardware, decoder_of, hardware, plan
from loquela.checkpoint.skeleton import skeleton
from loquela.errors import UsageError


@pytest.mark.parametrize("parameters", [1.2e7, 1e8, 1e9, 7e9, 70e9, 405e9, 1e12])
def test_a_decoder_has_about_as_many_parameters_and_a_usual_shape(parameters: float) -> None:
    config = decoder_of(parameters).to_dict()
    network = skeleton(decoder_of(parameters))
    assert network.parameter_count() == pytest.approx(parameters, rel=0.2 if parameters < 1e9 else 0.12)
    assert 64 <= config["hidden_size"] / config["num_hidden_layers"] <= 256 or parameters < 1e9
    assert parameters < 9e8 or config["num_attention_heads"] % 8 == 0


def test_the_formulas_by_hand() -> None:
    """GPT-2 on four devices of round numbers."""
    config = known_config("gpt2")
    network = skeleton(config)
    count, width, layers = network.parameter_count(), 768, 12
    device = Hardware("round", flops=1e15, memory=1e10, watts=500)
    made = plan(config, on=device, devices=4, tokens=10**9, sequence=1024, rows=2, mfu=0.5)
    per_token = 6 * (count - (1024 * width) - sum(p.numel() for p in network.parameters() if p.dim() == 1))
    per_token += 12 * layers * width * 1024
    assert per_token == training_flops(network, 1024)
    assert made.operations == per_token * 1e9
    assert made.tokens_per_second == pytest.approx(4 * 1e15 * 0.5 / per_token)
    seconds = 1e9 / made.tokens_per_second
    assert made.days == pytest.approx(seconds / 86400)
    assert made.megawatt_hours == pytest.approx(seconds * 4 * 500 * 1.2 / 3.6e9)
    assert made.memory_bytes["state"] == 16 * count / 4
    block = sum(p.numel() for p in network.decoder.layers[0].parameters())  # type: ignore[union-attr, index]
    assert made.memory_bytes["gathered"] == 8 * (block + count - layers * block)
    assert made.memory_bytes["total"] == sum(made.memory_bytes[k] for k in ("state", "gathered", "activations"))
    assert made.tokens_per_step == 4 * 2 * 1024
    assert made.fits


def test_splitting_and_computing_again_save_memory() -> None:
    config = decoder_of(7e9)

    def memory(**how: object) -> dict[str, float]:
        return plan(config, on=hardware("h100"), devices=64, **how).memory_bytes  # type: ignore[arg-type]

    base = memory()
    assert memory(recompute=False)["activations"] > 4 * base["activations"]
    assert memory(tensor_parallel=8)["gathered"] == base["gathered"] / 8
    assert memory(rows=4)["activations"] > 3 * base["activations"]


def test_the_least_devices_are_enough_and_half_of_them_are_not() -> None:
    for size in (7e9, 70e9):
        found = plan(decoder_of(size), on=hardware("a100"), devices=8).least_devices
        assert found is not None
        assert plan(decoder_of(size), on=hardware("a100"), devices=found).fits
        assert found == 1 or not plan(decoder_of(size), on=hardware("a100"), devices=found // 2).fits


def test_what_does_not_fit_anywhere_is_said() -> None:
    made = plan(decoder_of(1e12), on=hardware("rtx4090"), devices=1024)
    assert not made.fits
    assert made.least_devices is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"tensor_parallel": 5}, "must divide the 12 attention heads, but is 5"),
        ({"tensor_parallel": 12}, "must divide the 8 devices, but is 12"),
        ({"mfu": 1.5}, "mfu must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(how: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(known_config("gpt2"), on=hardware("h100"), devices=8, **how)  # type: ignore[arg-type]


def test_hardware_by_name() -> None:
    assert hardware("this").memory > 1e8
    assert all(one.flops > 1e12 and one.memory >= 16e9 for one in HARDWARE.values())
    with pytest.raises(UsageError, match="did you mean 'h100'"):
        hardware("h10O")
