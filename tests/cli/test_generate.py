"""`loquela generate` as a stranger would call it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loquela.api import load
from loquela.generation.settings import SETTINGS

Run = Callable[..., Any]


def test_a_prompt_in_a_completion_out(loquela: Run, model_directory: Path) -> None:
    done = loquela("generate", "-m", model_directory, "--prompt", "The cat", "--max-new-tokens", 12, "--seed", 4)
    expected = load(model_directory).generate("The cat", max_new_tokens=12, seed=4)
    assert done == (0, expected.text + "\n", "")


def test_a_pipe_gives_the_same_but_for_its_line_end(loquela: Run, model_directory: Path) -> None:
    expected = loquela("generate", "-m", model_directory, "-p", "The cat")
    assert loquela("generate", "-m", model_directory, stdin="The cat\n") == expected
    assert loquela("generate", "-m", model_directory, stdin="The cat\n\n").out != expected.out


def test_json_has_its_keys(loquela: Run, model_directory: Path) -> None:
    done = loquela("generate", "-m", model_directory, "-p", "The", "--json", "--max-new-tokens", 5, "--top", 3)
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert set(result) == {"text", "tokens", "finish_reason", "usage"}
    assert result["text"] == "".join(token["text"] for token in result["tokens"])
    assert result["finish_reason"] == "length"
    prompt = len(load(model_directory).tokenizer.encode("The"))
    assert result["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5}
    for token in result["tokens"]:
        assert set(token) == {"id", "text", "log_prob", "top"}
        assert [set(other) for other in token["top"]] == [{"id", "text", "log_prob"}] * 3


def test_n_completions(loquela: Run, model_directory: Path) -> None:
    call = ("generate", "-m", model_directory, "-p", "The", "--max-new-tokens", 5, "-n", 3)
    result = json.loads(loquela(*call, "--json").out)
    assert len(result["choices"]) == 3
    assert result["choices"][0]["text"] == result["text"]
    assert loquela(*call).out == "\n---\n".join(choice["text"] for choice in result["choices"]) + "\n"


def test_every_setting_has_a_flag_and_does_what_the_api_does(loquela: Run, model_directory: Path) -> None:
    settings: dict[str, Any] = {
        "max_new_tokens": 9,
        "stop": ("never", "said"),
        "seed": 5,
        "sampler_order": ("top_p,temperature",),
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {7: -100.0},
        "temperature": 1.5,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
    }
    flags: list[object] = []
    for name, value in settings.items():
        for one in value if isinstance(value, tuple) else [value]:
            flags += ["--" + name.replace("_", "-"), json.dumps(one) if isinstance(one, dict) else one]
    done = loquela("generate", "-m", model_directory, "-p", "The", *flags)
    assert done.out == load(model_directory).generate("The", **settings).text + "\n"
    help_text = loquela("generate", "--help").out
    assert all("--" + name.replace("_", "-") in help_text for name in SETTINGS)
    greedy = loquela("generate", "-m", model_directory, "-p", "The", "--no-do-sample").out
    assert greedy == loquela("generate", "-m", model_directory, "-p", "The", "--temperature", 0).out


def test_a_prompt_too_long_is_one_line_with_both_numbers(loquela: Run, model_directory: Path) -> None:
    prompt = "The cat sat on the mat. " * 30
    size = len(load(model_directory).tokenizer.encode(prompt))
    done = loquela("generate", "-m", model_directory, "-p", prompt)
    assert (done.code, done.out) == (1, "")
    assert f"64 tokens, but has {size}" in done.err
    assert "--truncate" in done.err
    assert done.err.count("\n") == 1
    cut = loquela("generate", "-m", model_directory, "-p", prompt, "--truncate", "--max-new-tokens", 20)
    assert cut.code == 0
    assert f"cut to its last 44 tokens, {size - 44} dropped" in cut.err
    same = load(model_directory).generate(prompt, truncate=True, max_new_tokens=20)
    assert same.truncated == size - 44
    assert cut.out == same.text + "\n"


def test_a_full_context_window_is_said(loquela: Run, model_directory: Path) -> None:
    done = loquela("generate", "-m", model_directory, "-p", "The cat", "--json")
    result = json.loads(done.out)
    assert sum(result["usage"].values()) == 64
    assert "the context window of 64 tokens is full" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--temperature", "-1"], 2, "temperature must be a number of at least 0, but is -1.0"),
        (["--logit-bias", "{"], 2, "logit_bias must be a table"),
        (["--sampler-order", "top_q"], 2, "sampler_order must name rules"),
        (["-n", "0"], 2, "n must be"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_wrong_usage(loquela: Run, model_directory: Path, arguments: list[str], code: int, line: str) -> None:
    done = loquela("generate", "-m", model_directory, "-p", "The", *arguments)
    assert (done.code, done.out) == (code, "")
    assert line in done.err


def test_a_missing_model_and_bytes_that_are_no_text(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    done = loquela("generate", "-m", tmp_path / "none", "-p", "The")
    assert done.code == 1
    assert done.err.count("\n") == 1
    done = loquela("generate", "-m", model_directory, stdin=b"caf\xe9 noir")
    assert done.code == 1
    assert "stdin must be UTF-8 text, but its byte 3 is not" in done.err


def test_in_a_terminal_it_streams_and_shows_no_control_characters(model_directory: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "loquela", "generate", "-m", str(model_directory), "-p", "The", "--top-k", "0"]
    process = subprocess.Popen([*command, "--temperature", "3"], stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # the other end has left
        pass
    assert process.wait() == 0
    os.close(ours)
    text = load(model_directory).generate("The", top_k=0, temperature=3.0).text
    assert any(ord(c) < 32 and c not in "\n\t" for c in text), "this seed writes control characters"
    assert not any(c < 32 and chr(c) not in "\r\n\t" for c in shown)
