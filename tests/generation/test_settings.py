"""Settings: every bound, one line each; and what derives from a declaration."""

from __future__ import annotations

import math
from typing import Any

import pytest

from loquela.errors import UsageError
from loquela.generation.rules import RULES
from loquela.generation.settings import SETTINGS, GenerationSettings, known_settings


def test_the_defaults_are_the_playgrounds() -> None:
    settings = GenerationSettings()
    assert (settings.max_new_tokens, settings.top_k, settings.top_p, settings.temperature) == (200, 25, 1.0, 0.8)
    assert (settings.do_sample, settings.stop, settings.seed, settings.n) == (True, (), 0, 1)
    assert set(SETTINGS) >= set(RULES)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("temperature", -0.1, "a number of at least 0, but is -0.1"),
        ("temperature", math.nan, "but is nan"),
        ("temperature", math.inf, "but is inf"),
        ("temperature", "hot", "but is 'hot'"),
        ("temperature", None, "but is None"),
        ("top_k", -1, "a whole number of at least 0, but is -1"),
        ("top_k", 2.5, "but is 2.5"),
        ("top_k", True, "but is True"),
        ("top_p", 1.01, "a number from 0 to 1, but is 1.01"),
        ("min_p", -1e-9, "from 0 to 1"),
        ("repetition_penalty", 0, "of at least 0.01"),
        ("presence_penalty", 2.1, "from -2 to 2"),
        ("frequency_penalty", -3, "from -2 to 2"),
        ("logit_bias", {5: 101}, "a table of token ids and numbers from -100 to 100"),
        ("logit_bias", {"five": 1}, "token ids"),
        ("logit_bias", {-1: 1}, "token ids"),
        ("logit_bias", [1], "token ids"),
        ("max_new_tokens", -1, "of at least 0"),
        ("n", 0, "of at least 1"),
        ("seed", 0.5, "a whole number, but is 0.5"),
        ("stop", ("a", ""), "none of them empty"),
        ("stop", 5, "a list of strings"),
        ("do_sample", 1, "true or false"),
        ("top_q", 1, "did you mean 'top_k'|did you mean 'top_p'"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_name_bound_and_value(name: str, value: Any, bound: str) -> None:
    with pytest.raises(UsageError, match=bound) as error:
        GenerationSettings(**{name: value})
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_values_come_in_their_proper_type() -> None:
    settings = GenerationSettings(temperature=1, stop="\n", logit_bias={"7": 2}, seed=2**70, max_new_tokens=10**30)
    assert isinstance(settings.temperature, float)
    assert settings.stop == ("\n",)
    assert settings.logit_bias == {7: 2.0}


def test_greedy_and_a_temperature_contradict_each_other() -> None:
    assert GenerationSettings(do_sample=False).temperature == 0
    assert GenerationSettings(do_sample=False, temperature=0).temperature == 0
    with pytest.raises(UsageError, match="temperature must be left out"):
        GenerationSettings(do_sample=False, temperature=0.7)


def test_settings_do_not_change_and_can_be_replaced() -> None:
    settings = GenerationSettings(top_k=5)
    with pytest.raises(AttributeError, match="immutable"):
        settings.top_k = 6
    changed = settings.replace(temperature=0.5)
    assert (changed.top_k, changed.temperature, settings.temperature) == (5, 0.5, 0.8)
    assert settings == GenerationSettings(top_k=5) != changed
    assert repr(changed) == "GenerationSettings(temperature=0.5, top_k=5)"
    assert not hasattr(settings, "top_q")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", ".5", 0.5),
        ("top_k", "7", 7),
        ("do_sample", "false", False),
        ("stop", "a,b", ("a", "b")),
        ("stop", '["a,b", "\\n"]', ("a,b", "\n")),
        ("logit_bias", '{"3": -1}', {3: -1.0}),
        ("sampler_order", "top_p,top_k", ("top_p", "top_k")),
    ],
)
def test_what_a_person_types_is_read(name: str, text: str, value: Any) -> None:
    assert SETTINGS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("top_k", "many"), ("logit_bias", "{"), ("do_sample", "yes"), ("stop", "[1]")]
)
def test_what_cannot_be_read_is_said(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be"):
        SETTINGS[name].parse(text)


def test_a_generation_config_is_read_for_what_we_know() -> None:
    raw = {"eos_token_id": 2, "temperature": 0.6, "top_k": None, "transformers_version": "5"}
    assert known_settings(raw) == {"temperature": 0.6}
