"""Constrained text: whatever the seed, what comes out is what was asked for."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from loquela.errors import UsageError
from loquela.generation.completion import choices, complete
from loquela.generation.constrain import constraint, json_constraint, regex_constraint
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["happy", "sad"]},
        "count": {"type": "integer", "minimum": 3, "maximum": 12},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["mood", "count", "tags"],
    "additionalProperties": False,
}
SIGNS = '{"mood": "happy", "count": 7, "tags": [true, false]} The cat sat on 0123456789 sad mats: €5.\n' * 20


def hot(seed: int, tokens: int = 400) -> GenerationSettings:
    return GenerationSettings(temperature=1.5, top_k=0, seed=seed, max_new_tokens=tokens)


def test_any_seed_gives_json_that_fits(llama: Network, tokenizer: Tokenizer) -> None:
    asked = json_constraint(tokenizer, SCHEMA)
    answers = []
    for seed in range(20):
        completion = complete(llama, tokenizer, "The", hot(seed, 47), constraint=asked)
        if completion.finish_reason == "length":
            continue
        answer = json.loads(completion.text)
        jsonschema.validate(answer, SCHEMA)
        answers.append(completion.text)
    assert len(set(answers)) > 3


@pytest.mark.parametrize("kind", ["byte", "char", "unigram"])
def test_every_kind_of_tokenizer_follows(llama: Network, kind: str) -> None:
    tokenizer = Tokenizer.train(kind, [SIGNS], None if kind in ("char", "byte") else 300)
    for seed in range(5):
        asked = regex_constraint(tokenizer, "(The|sad) [0-9]{2,4}€")
        completion = complete(llama, tokenizer, "The", hot(seed), constraint=asked)
        assert re.fullmatch("(The|sad) [0-9]{2,4}€", completion.text), completion.text
        assert completion.finish_reason == "stop"


def test_each_choice_has_its_own_guide(llama: Network, tokenizer: Tokenizer) -> None:
    asked = regex_constraint(tokenizer, "[a-z]{5}[0-9]")
    found = choices(llama, tokenizer, "The", hot(3).replace(n=4), constraint=asked)
    assert all(re.fullmatch("[a-z]{5}[0-9]", completion.text) for completion in found)
    assert len({completion.text for completion in found}) > 1


def test_what_is_allowed_keeps_its_proportions(llama: Network, tokenizer: Tokenizer) -> None:
    logits = np.random.default_rng(0).normal(size=llama.vocab_size)
    left = regex_constraint(tokenizer, "[ab]").start().allow(logits)
    kept = np.flatnonzero(left > -np.inf)
    assert sorted(tokenizer.token(int(i)) for i in kept) == ["a", "b"]
    np.testing.assert_array_equal(left[kept], logits[kept])


def test_rows_beyond_the_tokenizer_are_never_chosen(tokenizer: Tokenizer) -> None:
    guide = regex_constraint(tokenizer, "(?s:.*)").start()
    left = guide.allow(np.zeros(tokenizer.vocab_size + 100))
    assert np.isneginf(left[tokenizer.vocab_size :]).all()


@pytest.mark.parametrize("anything", [True, {}, "true"])
def test_a_schema_may_ask_for_any_json(anything: bool | dict[str, str] | str, llama: Network) -> None:
    tokenizer = Tokenizer.train("char", [SIGNS], None)
    asked, kinds = json_constraint(tokenizer, anything), set()
    for seed in range(30):
        completion = complete(llama, tokenizer, "The", hot(seed, 30), constraint=asked)
        if completion.finish_reason == "stop":
            kinds.add(type(json.loads(completion.text)))
    assert len(kinds) > 1


def test_what_cannot_be_followed_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="regular expression must be"):
        regex_constraint(tokenizer, "(")
    with pytest.raises(UsageError, match="JSON schema must be"):
        json_constraint(tokenizer, {"type": "nonsense"})
    with pytest.raises(UsageError, match="JSON schema must be"):
        json_constraint(tokenizer, "{")
    with pytest.raises(UsageError, match="neither an object"):
        json_constraint(tokenizer, "[1]")
    with pytest.raises(UsageError, match="nothing fits"):
        json_constraint(tokenizer, False)
    with pytest.raises(UsageError, match="one constraint"):
        constraint(tokenizer, json_schema={}, regex="a")
    assert constraint(tokenizer) is None


def test_settings_that_leave_nothing_are_the_caller_s_mistake(llama: Network, tokenizer: Tokenizer) -> None:
    forced = GenerationSettings(forced_bos_token_id=7)
    with pytest.raises(UsageError, match="fits the constraint"):
        complete(llama, tokenizer, "The", forced, constraint=regex_constraint(tokenizer, "[0-9]"))
    nothing = GenerationSettings(bad_words_ids=[[token] for token in range(llama.vocab_size)])
    with pytest.raises(UsageError, match="after bad_words_ids none is left"):
        complete(llama, tokenizer, "The", nothing)
