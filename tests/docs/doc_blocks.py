"""Code blocks of Markdown: how they are found, and how each kind is run.

`console` shows commands behind `$ ` and what they print; `sh` and `bash` hold commands only; `python` continues the
page's earlier blocks. Right before a block may stand a comment for readers of the source and for the test:

    <!-- not run: why -->             the block is not executed
    <!-- output not checked: why -->  what is shown is an example of what is printed
    <!-- exit code: 1 -->             what its last command ends with
    <!-- needs: file -->              it is executed where the data set that holds this file is there
    <!-- source: loquela/file.py -->  the block shows lines of that file, and is not executed
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loquela.cli.main import main

__all__ = ["Block", "Runner", "blocks"]

FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
REMARK = re.compile(r"<!-- (?P<kind>not run|output not checked|exit code|source|needs): (?P<says>.*?) -->")
NUMBER = re.compile(r"\d[\d.,]*")
RUN = ("console", "sh", "bash", "python")
"""Languages of blocks that are executed."""


@dataclass(frozen=True)
class Block:
    """A fenced block, and what is said of it right before."""

    line: int
    language: str
    text: str
    remarks: dict[str, str]

    @property
    def left_out(self) -> str | None:
        """Why it is not executed."""
        return self.remarks.get("not run")

    @property
    def is_run(self) -> bool:
        """Whether it is executed."""
        return self.language in RUN and not self.remarks.keys() & {"not run", "source"}


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in their order; those indented under a list or a tab are not looked for."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].rstrip("\n").splitlines()[-3:]
        remarks: dict[str, str] = {}
        for line in reversed(before):
            remark = REMARK.fullmatch(line)
            if remark is None:
                break
            remarks[remark["kind"]] = remark["says"]
        found.append(Block(text.count("\n", 0, fence.start()) + 1, fence["language"], fence["text"], remarks))
    return found


@dataclass
class Runner:
    """Runs the blocks of one page in one directory; `loquela` runs in this process, everything else in a shell."""

    page: str
    directory: Path
    port: int
    patch: pytest.MonkeyPatch
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Execute a block; an error names the page and the line."""
        where = f"{self.page}:{block.line}"
        text = block.text.replace("8000", str(self.port))
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + text, self.page, "exec"), self.names)
            return
        *first, last = commands(text, prompts=block.language == "console")
        for command, shown in first:
            self._command(command, shown, 0, where, block)
        self._command(*last, int(block.remarks.get("exit code", 0)), where, block)

    def _command(self, command: str, shown: list[str], expected: int, where: str, block: Block) -> None:
        code, printed = self._execute(command)
        assert code == expected, f"{where}: {command}\nended with {code}, not {expected}:\n{printed}"
        if "output not checked" not in block.remarks:
            check(shown, printed, f"{where}: {command}")

    def _execute(self, command: str) -> tuple[int, str]:
        words = shlex.split(command, comments=True)
        if not words:
            return 0, ""
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.patch.setenv(name, os.path.expanduser(value))  # noqa: PTH111
            return 0, ""
        piped = re.match(r"(?P<first>(echo|cat|printf) [^|]*)\| (?P<rest>loquela .*)", command)
        given = b""
        if piped:
            given = self._shell(piped["first"]).stdout
            command = piped["rest"]
        words = shlex.split(command, comments=True)
        target = None
        if len(words) > 2 and words[-2] == ">":
            target, words = self.directory / words[-1], words[:-2]
        if words[:2] == ["loquela", "tour"]:
            words = short_tour(words)
        if words[:2] == ["loquela", "serve"]:
            return self._serve(words[1:])
        if words[0] == "curl" and not shutil.which("curl"):
            pytest.skip(f"{self.page} needs curl")
        if words[0] != "loquela":
            done = self._shell(command)
            return done.returncode, (done.stdout + done.stderr).decode()
        return self._loquela(words, given, target)

    def _loquela(self, words: list[str], given: bytes, target: Path | None) -> tuple[int, str]:
        out, err = io.StringIO(), io.StringIO()
        self.patch.setattr(sys, "argv", words)
        self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
        if target is not None:
            target.write_text(out.getvalue(), encoding="utf-8")
        return int(end.value.code or 0), out.getvalue() + err.getvalue()

    def _shell(self, command: str) -> subprocess.CompletedProcess[bytes]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # the shell that reads the docs is the one they are written for
        return subprocess.run(
            ["bash", "-ec", command], cwd=self.directory, env=os.environ | {"PATH": path}, capture_output=True
        )

    def _serve(self, words: list[str]) -> tuple[int, str]:
        command = [sys.executable, "-m", "loquela", *words, "--engine", "torch"]
        self.servers.append(subprocess.Popen(command, cwd=self.directory, stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{self.port}/health"
        for _ in range(600):
            with contextlib.suppress(OSError):
                return 0, urllib.request.urlopen(address).read().decode()
            assert self.servers[-1].poll() is None, f"{words} ended before it answered"
            time.sleep(0.1)
        raise AssertionError(f"{words} does not answer at {address}")

    def end(self) -> None:
        """End the servers that a page has started."""
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait(timeout=30)


def short_tour(words: list[str]) -> list[str]:
    """Let a tour show a row or two; tests/cli/test_tour.py goes through all of them."""
    if "--from" in words:
        at = words.index("--from") + 1
        return [*words[:at], "27", *words[at + 1 :]]
    return words if {"--row", "--list"} & set(words) else [*words, "--row", "9"]


def commands(text: str, *, prompts: bool) -> Iterator[tuple[str, list[str]]]:
    """Cut a block into commands, each with the lines shown under it; a here-document belongs to its command."""
    lines = iter(text.splitlines())
    command, shown = "", []
    for line in lines:
        if prompts and not line.startswith("$ "):
            shown.append(line)
            continue
        if command:
            yield command, shown
        command, shown = line.removeprefix("$ ") if prompts else line, []
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if ending := re.search(r"<<'?(\w+)'?", command):
            for more in lines:
                command += "\n" + more
                if more == ending[1]:
                    break
    yield command, shown


def check(shown: list[str], printed: str, where: str) -> None:
    """Every line shown is printed, in this order; `…` stands for anything, and a number for any number."""
    rest = [NUMBER.sub("0", line).strip() for line in printed.splitlines()]
    for line in shown:
        wanted = NUMBER.sub("0", line).strip()
        if wanted in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("…")))
        at = next((i for i, have in enumerate(rest) if pattern.fullmatch(have)), None)
        assert at is not None, f"{where}\nshows {line!r}, but prints:\n{printed}"
        rest = rest[at + 1 :]
