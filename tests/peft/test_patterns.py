from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import ConfigError
from loquela.peft.patterns import fits

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "transformer.h.3.attn.c_attn",
    "encoder.block.0.layer.0.SelfAttention.q",
    "lm_head",
    "",
]
REAL = [
    r".*\.(q_proj|v_proj)",
    r".*layers\.(0|1|11)\..*",
    r"^(?!.*mlp).*_proj$",
    r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|down_proj))|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:down_proj)))",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"[^.]*",
    r"transformer\.h\.[0-5]\.attn\.c_\w+",
    r"(.*\.)?(c_attn)",
    r"\D+\d+\D+",
    r"(a|b)?lm_hea{1}d{1,3}",
    r"(?=.*q).*",
]


@pytest.mark.parametrize("pattern", REAL)
def test_it_is_as_pythons(pattern: str) -> None:
    for name in NAMES:
        assert fits(pattern, name) == (re.fullmatch(pattern, name) is not None), name


PIECES = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\.", r"\w", r"\b", "^", "$", "(?=a)", "(?!b)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)


@given(PIECES, st.text(alphabet="ab._", max_size=7))
def test_any_pattern_is_as_pythons(pattern: str, text: str) -> None:
    assert fits(pattern, text) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)+" * 20 + "b",
        ".*" * 300 + "x",
        "(" * 60 + "a*" + ")*" * 60,
        "(a?){4000000000}b",
        "(.|.)" * 60,
        "a?" * 100 + "a" * 100,
    ],
)
def test_bombs_take_no_time(pattern: str) -> None:
    with suppress(ConfigError):  # that it takes too long is an answer too
        fits(pattern, "a" * 60)


@pytest.mark.parametrize("pattern", ["(", "a**", r"(a)\1", "(?i)a", "(?i:a)", "(?<=a)b", "a" * 1001, "*", "["])
def test_what_is_not_supported_is_one_error(pattern: str) -> None:
    with pytest.raises(ConfigError):
        fits(pattern, "a" * 400)


def test_nesting_ends_in_an_answer() -> None:
    with suppress(ConfigError):  # too deep; a Python that nests so deep may just match it
        assert fits("(" * 450 + "a" + ")" * 450, "a")
