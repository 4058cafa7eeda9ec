"""Guessing ahead and the best of several, as a stranger would call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loquela.api import load
from loquela.checkpoint.store import load_model, save_model
from loquela.errors import UsageError
from loquela.text.tokenizer import Tokenizer

Run = Callable[..., Any]
TEXT = ("-p", "The cat sat on the mat; the cat", "--max-new-tokens", "20")


@pytest.fixture(scope="module")
def other_vocabulary(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("other") / "model"
    save_model(load_model(model_directory).network, Tokenizer.train("byte", []), directory)
    return directory


def test_the_text_is_the_same_and_the_gain_is_said(loquela: Run, model_directory: Path) -> None:
    call = ("generate", "-m", model_directory, *TEXT, "--no-do-sample")
    expected = loquela(*call)
    for how in (("--prompt-lookup-num-tokens", 5), ("--draft", model_directory)):
        done = loquela(*call, *how)
        assert done.out == expected.out
        assert "guessed tokens were right" in done.err
        result = json.loads(loquela(*call, *how, "--json").out)
        assert result["text"] + "\n" == expected.out
        assert set(result["speculation"]) == {"drafted", "accepted", "forwards", "tokens_per_forward"}
        assert set(result["usage"]) == {"prompt_tokens", "completion_tokens"}


def test_in_python_and_in_a_talk(loquela: Run, model_directory: Path) -> None:
    model, draft = load(model_directory), load(model_directory)
    plain = model.generate(["The cat", "The dog"], do_sample=False)
    ahead = model.generate(["The cat", "The dog"], do_sample=False, assistant_model=draft, num_assistant_tokens=3)
    assert [c.text for c in ahead] == [c.text for c in plain]
    assert all(c.speculation is not None and c.speculation.forwards > 0 for c in ahead)
    talk = loquela("chat", "-m", model_directory, "--no-do-sample", "--max-new-tokens", 9, stdin="The cat\n")
    other = ("--draft", model_directory)
    assert (
        loquela("chat", "-m", model_directory, "--no-do-sample", "--max-new-tokens", 9, *other, stdin="The cat\n")
        == talk
    )


def test_the_best_of_several(loquela: Run, model_directory: Path) -> None:
    model = load(model_directory)
    every = model.generate("The", n=6, temperature=1.4, max_new_tokens=9)
    ranked = sorted(every, key=lambda completion: -completion.mean_log_prob)
    best = model.generate("The", n=2, best_of=6, temperature=1.4, max_new_tokens=9)
    assert [c.tokens for c in best] == [c.tokens for c in ranked[:2]]
    assert ranked[0].text != every[0].text
    call = ("generate", "-m", model_directory, "-p", "The", "--temperature", 1.4, "--max-new-tokens", 9)
    assert loquela(*call, "--best-of", 6).out == ranked[0].text + "\n"
    assert json.loads(loquela(*call, "--best-of", 6, "--json").out)["text"] == ranked[0].text
    with pytest.raises(UsageError, match="best_of is 6: leave it out"):
        model.stream("The", best_of=6)


def test_what_has_no_sense_is_refused(loquela: Run, model_directory: Path, other_vocabulary: Path) -> None:
    call = ("generate", "-m", model_directory, *TEXT)
    for how, why in (
        (("--draft", other_vocabulary), "a draft must have the vocabulary of the model"),
        (("--num-assistant-tokens", 3), "but there is no draft"),
        (("--best-of", 2, "-n", 3), "best_of must be at least n, which is 3, but is 2"),
        (("--draft", model_directory, "--prompt-lookup-num-tokens", 3), "either a draft guesses or"),
        (("--draft", model_directory, "--num-beams", 2), "a draft needs num_beams=1"),
    ):
        done = loquela(*call, *how)
        assert done.code in (1, 2)
        assert why in done.err
        assert done.err.count("\n") == 1
    talk = loquela("chat", "-m", model_directory, "--best-of", 3, stdin="The\n")
    assert "best_of must be left out, but is 3" in talk.err
    served = loquela("serve", "-m", model_directory, "--draft", model_directory)
    assert served.code == 2
