"""The door: /health whatever the model's process does, every other connection handed on, and nobody left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from loquela import peft
from loquela.checkpoint.store import load_model
from loquela.serving import guard
from loquela.serving.handing import hand, received, tell

KEY, ADMIN = "a-key-for-the-door", "an-admin-key-for-the-door"
HURRIED = """
import loquela.serving.door as door
door.STILL_SECONDS, door.SILENT_SECONDS = {still}, 3
from loquela.cli.main import main
if __name__ == "__main__":
    main()
"""


class Process:
    """`loquela serve` with little patience, as a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        threading.Thread(target=self._read, daemon=True).start()
        self.until(lambda: self.urls)
        self.url = self.urls[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def until(self, true: Callable[[], Any], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.lines
            time.sleep(0.05)

    @property
    def urls(self) -> list[str]:
        return [found[1] for line in self.lines if (found := re.search(r"at (http://\S+) ", line))]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    @property
    def workers(self) -> list[int]:
        return [event["pid"] for event in self.events if event["event"] == "serving"]

    def health(self) -> int:
        return httpx.get(f"{self.url}/health", timeout=60).status_code


@contextmanager
def serving(directory: Path, still: float = 60, extra: Sequence[str] = ()) -> Iterator[Process]:
    script = directory.parent / f"hurried-{still}.py"
    script.write_text(HURRIED.format(still=still))
    command = [sys.executable, str(script), "serve", "-m", str(directory), "--port", "0", "--engine", "torch", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOQUELA_API_KEY": KEY, "LOQUELA_ADMIN_KEY": ADMIN}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Process(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def door(model_directory: Path) -> Iterator[Process]:
    with serving(model_directory) as process:
        yield process
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(60) == 0


@pytest.fixture
def client(door: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def test_health_is_answered_while_the_model_stands_still(door: Process, client: httpx.Client) -> None:
    worker = door.workers[-1]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert [door.health() for _ in range(20)] == [200] * 20
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{door.url}/v1/models", timeout=0.5)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert client.get("/v1/models").status_code == 200


def test_one_session_asks_for_both(client: httpx.Client) -> None:
    assert client.get("/health").headers["connection"] == "close"
    for _ in range(3):  # from the first text on over one connection, by those behind the door
        assert client.get("/health").json() == {"status": "ok"}
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    assert client.head("/health").status_code == 200
    assert client.get("/health?a=b").json() == {"status": "ok"}  # by the other process, which knows it too


def test_the_door_is_guarded_like_the_house(door: Process) -> None:
    answer = httpx.get(f"{door.url}/health", headers={"X-Request-ID": "mine", "Host": f"localhost:{door.port}"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = httpx.get(f"{door.url}/health", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert {name: answer.headers[name] for name in guard.HEADERS} == guard.HEADERS
    twice = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    long = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 17_000 + b"\r\n\r\n"
    assert [talk(door, data)[9:12] for data in (twice, long)] == [b"400", b"431"]


def test_what_the_door_answers_is_counted_and_logged(door: Process, client: httpx.Client) -> None:
    def counted(status: int) -> float:
        found = re.search(
            rf'loquela_requests_total{{path="/health",status="{status}"}} (\S+)', client.get("/metrics").text
        )
        return float(found[1]) if found else 0.0

    before = counted(200), counted(403)
    httpx.get(f"{door.url}/health", headers={"X-Request-ID": "to-be-logged"})
    httpx.get(f"{door.url}/health", headers={"Host": "evil.example"})
    assert (counted(200), counted(403)) == (before[0] + 1, before[1] + 1)
    door.until(lambda: any(event.get("request_id") == "to-be-logged" for event in door.events))


def talk(door: Process, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", door.port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
        return answer


def test_who_says_nothing_is_let_go_of(door: Process) -> None:
    begun = time.monotonic()
    assert talk(door, b"") == b""
    assert time.monotonic() - begun < 20
    assert talk(door, b"G") == b""  # handed on, and let go of there
    assert door.health() == 200


def test_a_crowd_is_handed_on_whole(door: Process) -> None:
    def one(number: int) -> int:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{door.url}/tokenize", json={"prompt": str(number)}, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(30) as crowd:
        assert set(crowd.map(one, range(90))) == {200}


def test_a_worker_that_dies_is_replaced_and_who_comes_meanwhile_is_answered(
    door: Process, client: httpx.Client
) -> None:
    count = len(door.workers)
    os.kill(door.workers[-1], signal.SIGKILL)
    door.until(lambda: door.health() == 503)
    told = httpx.get(f"{door.url}/health")
    if told.status_code == 503:  # it may be back by now
        assert told.headers["retry-after"] == "5"
        assert told.json()["error"]["code"] == "unavailable"
    assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
    assert len(door.workers) == count + 1
    assert any(event["event"] == "worker died" and event["exit_code"] == -9 for event in door.events)


def test_who_takes_the_place_of_the_dead_has_the_same_adapters(model_directory: Path, tmp_path: Path) -> None:
    """Those of the start less what was dropped, with what was loaded; what is no more is left out."""
    network = load_model(model_directory).network
    generator = torch.Generator().manual_seed(5)
    for name in ("dropped", "late", "gone"):
        peft.attach(network, peft.config_for("lora", r=4), name, seed=0)
        with torch.no_grad():
            for parameter in peft.trainable(network, name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        peft.save_adapter(network, name, tmp_path / name, base=str(model_directory))
    admin = {"Authorization": f"Bearer {ADMIN}"}
    with (
        serving(model_directory, extra=("--adapter", f"dropped={tmp_path / 'dropped'}")) as process,
        httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):

        def named() -> set[str]:
            return {card["id"] for card in client.get("/v1/models").json()["data"]}

        def text(model: str) -> str:
            body = {"model": model, "prompt": "The cat", "max_tokens": 20, "seed": 0}
            return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

        def killed() -> None:
            count = len(process.workers)
            os.kill(process.workers[-1], signal.SIGKILL)
            process.until(lambda: len(process.workers) > count)

        for name in ("late", "gone"):
            body = {"lora_name": name, "lora_path": str(tmp_path / name)}
            assert client.post("/v1/load_lora_adapter", json=body, headers=admin).status_code == 200
        dropped = client.post("/v1/unload_lora_adapter", json={"lora_name": "dropped"}, headers=admin)
        assert dropped.status_code == 200
        before = text("late")
        assert before != text("tiny")
        killed()
        assert named() == {"tiny", "late", "gone"}
        assert text("late") == before
        shutil.rmtree(tmp_path / "gone")
        killed()
        assert named() == {"tiny", "late"}
        assert text("late") == before
        assert [event["adapter"] for event in process.events if event["event"] == "adapter lost"] == ["gone"]


def test_a_worker_that_moves_no_more_is_told_of(model_directory: Path) -> None:
    with serving(model_directory, still=3) as process:
        os.kill(process.workers[0], signal.SIGSTOP)
        process.until(lambda: process.health() == 503)
        os.kill(process.workers[0], signal.SIGCONT)
        process.until(lambda: process.health() == 200)


def test_nobody_serves_behind_a_door_that_is_gone(model_directory: Path) -> None:
    with serving(model_directory) as process:
        worker = process.workers[0]
        process.process.kill()
        process.until(lambda: not running(worker))
        with pytest.raises(httpx.ConnectError):
            process.health()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def emptied(room: socket.socket) -> None:
    while True:
        for kept in received(room):
            assert isinstance(kept, socket.socket)
            kept.close()


def test_what_is_handed_comes_in_order_and_a_full_channel_refuses() -> None:
    door, room = socket.socketpair()
    door.setblocking(False)
    room.setblocking(False)
    ours, theirs = socket.socketpair()
    assert hand(door, theirs)
    assert tell(door, 403, 0.25)
    theirs.close()
    connection, told = received(room)
    assert told == (403, 0.25)
    assert isinstance(connection, socket.socket)
    connection.sendall(b"hello")
    assert ours.recv(10) == b"hello"
    while hand(door, ours):
        pass
    assert not hand(door, ours)
    for kept in received(room):
        assert isinstance(kept, socket.socket)
        kept.close()
    assert hand(door, ours)
    door.close()
    with pytest.raises(EOFError):
        emptied(room)
    for one in (room, ours, connection):
        one.close()
