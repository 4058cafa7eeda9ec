"""The one prompt renderer: messages, through the model's own template, to token ids."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loquela.errors import UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["render", "render_text"]

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
    messages: Sequence[Message], template: str, tokenizer: Tokenizer, *, add_generation_prompt: bool = True
) -> str:
    """Return the text that `render` encodes, with the variables that Hugging Face's templates know."""
    variables = {
        **{f"{role}_token": token for role, token in tokenizer.roles.items()},
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
    }
    reply = _sandbox.ask(json.dumps({"template": template, "variables": variables}))
    if "error" in reply:
        raise UsageError(f"the chat template must accept the messages, but says: {reply['error']}")
    return reply["text"]


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
