"""The one prompt renderer: messages, through the model's own template, to token ids."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.errors import UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Rendered", "join", "render", "render_text", "render_turns"]

Message = Mapping[str, Any]
_WALL_SECONDS = (
    10.0  # far above the sandbox's own limit, which counts processor time and so does not mind a busy machine
)


def render(
    messages: Sequence[Message], template: str, tokenizer: Tokenizer, *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the token ids of a conversation, `[{"role": …, "content": …}, …]`, ready for the assistant's next turn.

    Raises `UsageError` when the template refuses the messages, or does not end within the sandbox's limits.
    """
    text = render_text(messages, template, tokenizer, add_generation_prompt=add_generation_prompt)
    return tokenizer.encode(text, add_special_tokens=False)  # the template has written them itself


def render_text(
    messages: Sequence[Message],
    template: str,
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    marks: tuple[str, str] | None = None,
) -> str:
    """Return the text that `render` encodes, with the variables that Hugging Face's templates know.

    `marks` are written where the template says, with `{% generation %}`, that the assistant's words begin and end.
    """
    variables = {
        **{f"{role}_token": token for role, token in tokenizer.roles.items()},
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        **(dict(zip(("generation_begins", "generation_ends"), marks, strict=True)) if marks else {}),
    }
    reply = _sandbox.ask(json.dumps({"template": template, "variables": variables}))
    if "error" in reply:
        raise UsageError(f"the chat template must accept the messages, but says: {reply['error']}")
    return reply["text"]


@dataclass(frozen=True)
class Rendered:
    """Token ids, and for each whether the assistant wrote it."""

    ids: list[int]
    written: list[bool]


def render_turns(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> list[Rendered]:
    """Return what a model learns from a conversation: the ids before each of the assistant's turns are `render`'s.

    That is one row of ids, the assistant's turns marked in it, where the template and the tokenizer let a conversation
    grow at its end only; else, where they rewrite earlier turns, one row for each turn, in which that one is marked.
    The end of a turn is marked with it, so that the model learns to stop.

    Raises `UsageError` when there is no turn of the assistant, or where the template gives no way to tell it.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise UsageError("a conversation must have a turn of the assistant to learn, but has none")
    rows: list[Rendered] = []
    for before, written in _marked(messages, template, tokenizer) or _derived(messages, template, tokenizer):
        prompt = tokenizer.encode(before, add_special_tokens=False)
        if rows and prompt[: len(rows[-1].ids)] == rows[-1].ids:
            earlier = rows.pop().written
            earlier = earlier + [False] * (len(prompt) - len(earlier))
        else:
            earlier = [False] * len(prompt)
        rows.append(join(prompt, tokenizer.encode_continuations([written])[0], earlier))
    return rows


def join(prompt: Sequence[int], written: Sequence[int], earlier: Sequence[bool] | None = None) -> Rendered:
    """Return a prompt's ids with those that the assistant wrote after it, each encoded by itself, as generation does.

    `earlier` says which of the prompt's own ids are to be learnt; none unless given.
    """
    marked = [False] * len(prompt) if earlier is None else list(earlier)
    return Rendered([*prompt, *written], marked + [True] * len(written))


def _marked(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The text before each of the assistant's turns and the turn, by the template's marks; empty where it has none."""
    if "generation" not in template:
        return []
    nonce = secrets.token_hex(8)  # no message can guess it
    begin, end = f"\ue000{nonce}\ue001", f"\ue002{nonce}\ue003"
    text = render_text(messages, template, tokenizer, add_generation_prompt=False, marks=(begin, end))
    head, *parts = text.split(begin)
    turns, before = [], head
    for part in parts:
        written, _, rest = part.partition(end)
        learnt = written + _leading_end(rest, tokenizer)
        turns.append((before, learnt))
        before += written + rest
    return turns


def _derived(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The same, by comparison: what a rendering has more when the turn is there than when it is asked for."""
    turns = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render_text(messages[:index], template, tokenizer, add_generation_prompt=True)
            after = render_text(messages[: index + 1], template, tokenizer, add_generation_prompt=False)
            if not after.startswith(before):
                raise UsageError(
                    "the chat template must begin the assistant's turn with its generation prompt, or mark it with "
                    "{% generation %}, but does neither; give another template"
                )
            turns.append((before, _to_the_end_token(after[len(before) :], tokenizer)))
    return turns


def _to_the_end_token(written: str, tokenizer: Tokenizer) -> str:
    """Leave out the white space after a token that ends the turn: generation has stopped before it."""
    kept = written.rstrip()
    return kept if any(kept.endswith(token) for token in tokenizer.special_tokens) else written


def _leading_end(rest: str, tokenizer: Tokenizer) -> str:
    """Return the special token that follows a marked turn at once, so that it is learnt though it is not marked."""
    found = [token for token in tokenizer.special_tokens if rest.startswith(token)]
    return max(found, key=len, default="")


class _Sandbox:
    """The process that renders: started when first needed, and anew after it was killed or this process was forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: str) -> dict[str, str]:
        """Send one line, return the answer to it; an `error` when the process did not live to give one."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(_WALL_SECONDS, process.kill)
            timer.start()
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            finally:
                timer.cancel()
            if not reply:
                self.close()
                return {"error": "it did not end within its limits of time and memory"}
            answer: dict[str, str] = json.loads(reply)
            return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("sandbox.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            atexit.register(self.close)
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


_sandbox = _Sandbox()
