"""`loquela serve` as a process: it says where it is, drains when told to end, and never stands open by mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

Loquela = Callable[..., Any]
LONG = {"prompt": "The cat", "max_tokens": 60, "temperature": 1, "logit_bias": {"0": -100}}


class Server:
    """A running `loquela serve`, and what it said on stderr so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        self.url = ""
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._found.wait(120), self.lines

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+) ", line):
                self.url = found[1]
                self._found.set()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def wait(self) -> None:
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.lines)


@contextmanager
def serving(model: Path, *more: str, **environment: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "loquela", "serve", "-m", str(model), "--port", "0", "--engine", "torch", *more]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()


def test_it_serves_and_drains(model_directory: Path) -> None:
    with serving(model_directory) as server:
        server.wait()
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0
        server._reader.join(10)
        events = [json.loads(line) for line in server.lines if line.startswith("{")]
        assert events[0]["event"] == "serving"
        assert events[-1]["event"] == "closed"


def test_several_workers_share_a_port_and_replace_the_dead(model_directory: Path) -> None:
    with serving(model_directory, "--workers", "2", LOQUELA_API_KEY="a-key-for-the-tests") as server:
        server.wait()
        client = httpx.Client(base_url=server.url, headers={"Authorization": "Bearer a-key-for-the-tests"})
        assert client.post("/v1/completions", json=LONG | {"max_tokens": 2}).status_code == 200
        assert "loquela_completion_tokens_total 2.0" in client.get("/metrics").text
        for _ in range(200):
            pids = [json.loads(line)["pid"] for line in server.lines if '"serving"' in line]
            if len(pids) == 2:
                break
            time.sleep(0.1)
        os.kill(pids[0], signal.SIGKILL)
        client.close()
        for _ in range(600):
            if sum('"serving"' in line for line in server.lines) == 3:
                break
            time.sleep(0.1)
        server.wait()
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "needs a key"),
        (["--api-key", "short"], 2, "8 to 256"),
        (["--adapter", "nonsense"], 2, "NAME=DIR"),
        (["--adapter", "a=x", "--adapter", "a=y"], 2, "twice"),
        (["--adapter", "a=/nowhere"], 1, "nowhere"),
        (["--host", "256.1.1.1", "--api-key", "a-long-enough-key"], 2, "cannot listen"),
    ],
)
def test_what_does_not_start(
    loquela: Loquela, model_directory: Path, arguments: list[str], code: int, said: str
) -> None:
    done = loquela("serve", "-m", model_directory, "--port", 0, *arguments)
    assert done.code == code, done.err
    assert said in done.err
    assert done.out == ""


def test_no_model_to_play_with(loquela: Loquela, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loquela.checkpoint.house.HOUSE", tmp_path)
    done = loquela("play")
    assert done.code == 2
    assert "loquela play -m DIR" in done.err
