"""`loquela chat`: from a pipe, in a terminal, with and without a template."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loquela.api import LanguageModel, load
from loquela.cli import chat
from loquela.cli.chat import Conversation
from loquela.errors import ContextWindowError, UsageError
from loquela.text.chat import render

Run = Callable[..., Any]
TEMPLATE = "{% for m in messages %}{{ m.role[0] + ': ' + m.content + '\\n' }}{% endfor %}{{ 'a:' }}"


@pytest.fixture
def model(model_directory: Path) -> LanguageModel:
    return load(model_directory)


def test_a_base_model_continues_the_text_of_all_turns(model: LanguageModel) -> None:
    talk = Conversation(model, {"max_new_tokens": 5})
    assert "base model" in talk.manner
    first = "".join(talk.reply("The cat"))
    assert first == model.generate("The cat", max_new_tokens=5).text
    second = "".join(talk.reply("The dog"))
    assert second == model.generate(f"The cat{first}\nThe dog", max_new_tokens=5, seed=1).text


def test_an_encoder_decoder_answers_each_line_by_itself() -> None:
    model = load("translator")
    talk = Conversation(model, {"max_new_tokens": 20, "temperature": 0})
    assert "each line by itself" in talk.manner
    said = ["".join(talk.reply(line)) for line in ("Good night.", "My sister likes coffee.")]
    assert said[1] == model.generate("My sister likes coffee.", max_new_tokens=20, temperature=0).text
    assert said[1] != said[0]


def test_a_model_that_does_not_write_is_refused_before_the_first_line(loquela: Run) -> None:
    done = loquela("chat", "-m", "cloze", stdin="The cat sat\n")
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == "loquela: one talks to a model that writes, but bert reads: ask it with generate"


def test_the_oldest_turns_are_forgotten_aloud(model: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(model, {"max_new_tokens": 20})
    for _ in range(6):
        for _ in talk.reply("The cat sat on the mat."):
            pass
    assert capsys.readouterr().err.count("outgrown the context window") == 1


def test_a_template_renders_the_turns_that_fit(model: LanguageModel) -> None:
    model.tokenizer.chat_template = TEMPLATE
    talk = Conversation(model, {"max_new_tokens": 8})
    assert "answers" in talk.manner
    seen: list[list[int]] = []
    stream = model.stream

    def watched(ids: list[int], **settings: Any) -> Iterator[Any]:
        seen.append(ids)
        return stream(ids, **settings)

    model.stream = watched  # type: ignore[assignment, method-assign]
    for _ in range(5):
        for _ in talk.reply("The cat sat"):
            pass
    assert seen[0] == render([{"role": "user", "content": "The cat sat"}], TEMPLATE, model.tokenizer)
    assert all(len(ids) + 8 <= 64 for ids in seen)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * (len(talk.turns) // 2)
    assert seen[-1] == render(talk.turns[:-1], TEMPLATE, model.tokenizer)
    with pytest.raises(ContextWindowError, match="64 tokens, but has"):
        list(talk.reply("The cat sat on the mat. " * 20))
    assert not talk.turns or talk.turns[-1]["role"] == "assistant", "the line that did not fit is not remembered"


def test_commands(model: LanguageModel) -> None:
    talk = Conversation(model, {"max_new_tokens": 5})
    assert "/reset" in talk.command("/help")
    assert talk.command("/set temperature 0.5") == "temperature is now 0.5"
    assert talk.settings.temperature == 0.5
    assert re.search(r"^max_new_tokens +5$", talk.command("/set"), re.MULTILINE)
    list(talk.reply("The cat"))
    talk.command("/reset")
    assert talk.turns == []
    for line, words in (
        ("/set temperature -1", "at least 0"),
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set n 2", "n must be 1"),
        ("/nonsense", "/quit, but this is '/nonsense'"),
        ("/set temperature", "commands are"),
    ):
        with pytest.raises(UsageError, match=words):
            talk.command(line)
    assert talk.settings.temperature == 0.5


def test_from_a_pipe(loquela: Run, model_directory: Path) -> None:
    lines = "/help\nThe cat\n\n/set seed 3\nThe dog\n/quit\nnever\n"
    done = loquela("chat", "-m", model_directory, "--max-new-tokens", 5, stdin=lines)
    model = load(model_directory)
    first = model.generate("The cat", max_new_tokens=5).text
    second = model.generate(f"The cat{first}\nThe dog", max_new_tokens=5, seed=4).text
    assert (done.code, done.out) == (0, f"{first}\n{second}\n")
    assert "base model" in done.err
    assert "/quit" in done.err
    wrong = loquela("chat", "-m", model_directory, stdin="/set top_q 1\nThe cat\n")
    assert (wrong.code, wrong.out) == (2, "")


def test_ctrl_c_stops_the_reply_and_the_talk_goes_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["The cat", "/wrong", "The dog", None])
    prompts: list[list[int]] = []
    stream = model.stream

    def interrupted(ids: list[int], **settings: Any) -> Iterator[Any]:
        prompts.append(ids)
        for index, piece in enumerate(stream(ids, **settings)):
            if len(prompts) == 1 and index == 3:
                raise KeyboardInterrupt
            yield piece

    model.stream = interrupted  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(chat, "_read", lambda interactive: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    chat.talk(model, max_new_tokens=6)
    out, err = capsys.readouterr()
    said = model.generate("The cat", max_new_tokens=6).tokens[:3]
    begun = "".join(piece.text for piece in said)
    assert out.startswith(begun + "\n")
    assert prompts[1] == model.tokenizer.encode(f"The cat{begun}\nThe dog")
    assert "stopped; /quit leaves" in err
    assert "this is '/wrong'" in err


def test_in_a_terminal(model_directory: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "loquela", "chat", "-m", str(model_directory), "--max-new-tokens", "5"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"The cat\n/set top_q 1\n/quit\n")
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # the other end has left
        pass
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert text.count("› ") >= 3
    assert "there is no setting 'top_q'; did you mean" in text
