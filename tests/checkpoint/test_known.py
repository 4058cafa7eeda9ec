"""Sizes by name against the counts that their authors published."""

from __future__ import annotations

import pytest

from loquela.checkpoint.known import NOTES, known_config, known_names
from loquela.checkpoint.sizes import size
from loquela.errors import UsageError

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "t5-small": 60_506_624,
    "bart-large": 406_291_456,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", known_names())
def test_every_name_has_a_size(name: str) -> None:
    total = size(known_config(name)).parameters["total"]
    assert total == PUBLISHED.get(name, total)
    stated = {"palm-2": 340e9, "gpt-4": 1e12, "bert-base-uncased": 110e6}
    assert total == pytest.approx(stated.get(name, total), rel=0.01)


def test_names_as_people_write_them() -> None:
    assert known_config("openai-community/GPT2").model_type == "gpt2"
    assert set(NOTES) <= set(known_names())
    with pytest.raises(UsageError, match=r"'gpt3' is none.*gpt2"):
        known_config("gpt3")
