"""More callers than places, callers who hang up, callers who are slow: nothing hangs, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loquela.serving.observe import LOG, JsonLines
from tally import Tally

Running = Any  # conftest.Running
LONG = {"prompt": "The cat", "max_tokens": 480, "temperature": 0, "logit_bias": {"0": -100}}


def idle(server: Running, seconds: float = 10) -> bool:
    """Whether all places are free within so many seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        state = server.served.scheduler.state()
        if state["waiting"] == state["running"] == 0:
            return True
        time.sleep(0.01)
    return False


def crowd(server: Running, clients: int) -> Counter[int]:
    """Let so many ask at once; return how often each status came."""

    async def go() -> Counter[int]:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=300) as client:

            async def one(number: int) -> int:
                body = {"prompt": f"The cat {number}", "max_tokens": 20, "stream": number % 2 == 0}
                answer = await client.post("/v1/completions", json=body)
                if answer.status_code in (429, 503):
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.json()["error"]["type"] in ("rate_limit_error", "server_error")
                elif body["stream"]:
                    assert answer.text.endswith("data: [DONE]\n\n")
                return answer.status_code

            async def health() -> list[float]:
                took = []
                for _ in range(10):
                    begun = time.perf_counter()
                    assert (await client.get("/health")).status_code == 200
                    took.append(time.perf_counter() - begun)
                    await asyncio.sleep(0.02)
                return took

            statuses, _ = await asyncio.gather(asyncio.gather(*map(one, range(clients))), health())
            return Counter(statuses)

    return asyncio.run(go())


def check_crowd(server: Running, clients: int) -> None:
    statuses = crowd(server, clients)
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] >= 16
    assert statuses[429] > 0
    assert idle(server)
    assert (
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=120).status_code
        == 200
    )


def test_more_callers_than_places(start: Callable[..., Running], model_directory: Path) -> None:
    check_crowd(start(model_directory, slots=2, queue=16), 60)


@pytest.mark.soak
def test_500_clients_on_a_queue_of_16(start: Callable[..., Running], model_directory: Path, tmp_path: Path) -> None:
    """RELIABILITY 20; see `Tally` for parts."""
    tally = Tally("crowds", tmp_path)
    server, before = start(model_directory, slots=4, queue=16), 0
    while tally["clients"] < 2500:
        check_crowd(server, 500)
        before = before or resident()
        assert resident() - before < 50 * 2**20
        tally.add(clients=500)


def resident(process: int | str = "self") -> int:
    """Bytes of memory that a process holds."""
    gc.collect()
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hang_up(server: Running, dice: random.Random, answered: bool, key: str = "none") -> None:
    """Ask for much, read as much as the dice say, hang up."""
    body = json.dumps(LONG | {"stream": dice.random() < 0.5, "prompt": [5] * dice.choice([1, 300])}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    sent = head + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        if dice.random() < 0.1:
            connection.sendall(sent[: dice.randrange(len(sent))])
            return
        connection.sendall(sent)
        if answered and b'"stream": true' in body:
            connection.recv(dice.choice([1, 4000]))
        else:
            time.sleep(dice.random() * 0.02)
        if dice.random() < 0.3:  # a reset instead of a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def free_again(server: Running) -> tuple[float, float]:
    """Wait until all places are free; return the seconds that it took, and those of this process's own work in them."""
    begun, worked = time.perf_counter(), time.process_time()
    assert idle(server), server.served.scheduler.state()
    return time.perf_counter() - begun, time.process_time() - worked


def check_hang_ups(server: Running, count: int, at_once: int, seed: int = 1) -> list[tuple[float, float]]:
    """Let so many hang up; return how long it took, after each crowd had left, until all places were free again."""
    dice, took = random.Random(seed), []
    for _ in range(count // at_once):
        threads = [
            threading.Thread(target=hang_up, args=(server, random.Random(dice.random()), at_once < 4))
            for _ in range(at_once)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took.append(free_again(server))
    assert (
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=120).status_code
        == 200
    )
    return took


@pytest.mark.parametrize("at_once", [1, 8])  # 8: most of them wait when they hang up
def test_who_hangs_up_gives_the_place_back(start: Callable[..., Running], model_directory: Path, at_once: int) -> None:
    took = check_hang_ups(start(model_directory, slots=2, queue=16), 16, at_once)
    assert max(worked for _, worked in took) < 1, "a second of work, however busy the machine is with something else"


@pytest.mark.soak
@pytest.mark.parametrize("at_once", [1, 8])
def test_1000_hang_ups(start: Callable[..., Running], model_directory: Path, tmp_path: Path, at_once: int) -> None:
    """RELIABILITY 21, half of them one by one, half in crowds; see `Tally` for parts."""
    tally, server = Tally(f"hang-ups-{at_once}", tmp_path), start(model_directory, slots=2, queue=16)
    while tally["count"] < 500:
        took = [seconds for seconds, _ in check_hang_ups(server, 40, at_once, tally["count"])]
        assert max(took) < 1
        worst = max(tally["worst_microseconds"], round(1e6 * max(took)))
        tally.add(count=40, worst_microseconds=worst - tally["worst_microseconds"])


CANARY_KEY, CANARY = "canary-key-3141592653589793", "canary prompt 2718281828"


def check_canary(server: Running, rounds: int, lines: list[str]) -> None:
    """Neither key nor prompt is in a log, an error or a metric, whatever goes wrong."""
    key = {"Authorization": f"Bearer {CANARY_KEY}"}
    told = []
    with httpx.Client(base_url=server.url, headers=key, timeout=120) as client:
        for _ in range(rounds):
            for body in (
                {"prompt": CANARY, "max_tokens": 2},
                {"prompt": CANARY * 400},
                {"prompt": [CANARY, 7]},
                {"prompt": CANARY, "model": CANARY},
                {"prompt": CANARY, "stop": [CANARY] * 9},
                {CANARY: 1},
                {"prompt": CANARY, "response_format": {"type": CANARY}},
                {"prompt": CANARY, "user": CANARY, "metadata": {CANARY: CANARY}, "max_tokens": 1},
            ):
                answer = client.post("/v1/completions", json=body)
                if answer.status_code != 200 and CANARY not in body:  # its own key a caller may read back
                    told.append(answer.text)
            client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": CANARY}]})
            client.get(f"/{CANARY.replace(' ', '-')}")
            client.post("/v1/completions", content=CANARY.encode())
            client.post("/v1/completions", headers={"Authorization": f"Bearer {CANARY_KEY}x"}, json={"prompt": CANARY})
            client.get("/health", headers={"X-Forwarded-For": CANARY, "User-Agent": CANARY, "X-Request-ID": CANARY})
            broken(server, client)
        told.append(client.get("/metrics").text)
    said = "\n".join(lines + told).lower()
    assert "request" in said
    for word in ("canary prompt", "canary-prompt", "2718281828", CANARY_KEY, "3141592653589793"):
        assert word not in said
    assert '"error": "ValueError"'.lower() in said  # the bug was logged, its words were not


def broken(server: Running, client: httpx.Client) -> None:
    """A bug whose message quotes the prompt."""
    plain = server.served.settings

    def fail(*args: object) -> None:
        raise ValueError(f"cannot do {CANARY}")

    server.served.settings = fail
    assert client.post("/v1/completions", json={"prompt": CANARY}).status_code == 500
    server.served.settings = plain


@pytest.fixture
def lines() -> Any:
    """All that is logged by anyone while the test runs, in the form of our log."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith("http"):  # the client's own
                found.append(self.format(record) + record.getMessage() + str(record.exc_info))

    handler = Keep()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    LOG.addHandler(handler)  # libraries that other tests import rearrange what hangs on the root
    root.setLevel(logging.INFO)
    LOG.setLevel(logging.INFO)
    yield found
    root.removeHandler(handler)
    LOG.removeHandler(handler)
    root.setLevel(level)


def test_a_canary_is_seen_nowhere(start: Callable[..., Running], model_directory: Path, lines: list[str]) -> None:
    check_canary(start(model_directory, api_key=CANARY_KEY), 1, lines)


class Apart:
    """`loquela serve` in a process of its own, so that its memory is its own too."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "loquela", "serve", "-m", str(model), "--port", str(self.port)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, "--slots", "4", "--queue", "16"],
                stderr=errors,
                env=os.environ | {"LOQUELA_API_KEY": CANARY_KEY},
            )
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.url}/health")
                return
            time.sleep(0.2)
        raise AssertionError(log.read_text())


@pytest.mark.soak
def test_a_long_soak(model_directory: Path, tmp_path: Path) -> None:
    """RELIABILITY 25: ten minutes of callers of all kinds, after one to grow in; see `Tally` for parts."""
    tally = Tally("long", tmp_path)
    log = tmp_path / "log"
    server = Apart(model_directory, log)
    try:
        serving = json.loads(next(line for line in log.read_text().splitlines() if '"serving"' in line))["pid"]
        both = (server.process.pid, serving)
        told, dice = list[str](), random.Random(5 + tally["minutes"])
        a_minute(server, dice, told)
        before = [sizes(pid) for pid in both]
        while tally["minutes"] < 10:
            a_minute(server, dice, told)
            said = (log.read_text() + "".join(told)).lower()
            for word in ("canary prompt", "2718281828", CANARY_KEY, "3141592653589793"):
                assert word not in said
            for pid, (memory, files) in zip(both, before, strict=True):
                now = sizes(pid)
                assert now[0] - memory < 16 * 2**20
                assert max(files, now[1]) <= 30
            tally.add(minutes=1)
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0


def a_minute(server: Apart, dice: random.Random, told: list[str]) -> None:
    """Hang up, read slowly, ask what is wrong, for so long; keep what is answered."""
    end = time.perf_counter() + 60
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {CANARY_KEY}"}, timeout=120) as client:
        while time.perf_counter() < end:
            hang_up(server, dice, True, CANARY_KEY)
            slow(server, dice)
            for body in ({"prompt": CANARY * 400}, {"prompt": CANARY, "model": CANARY}, {"prompt": [CANARY, 7]}):
                told.append(client.post("/v1/completions", json=body).text)
            client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": CANARY}]})
        told.append(client.get("/metrics").text)


def sizes(pid: int) -> tuple[int, int]:
    """Memory and open files of a process."""
    return resident(pid), len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def slow(server: Running, dice: random.Random) -> None:
    """Read a stream a few bytes at a time."""
    body = json.dumps({"prompt": "a", "max_tokens": 100, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {CANARY_KEY}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
        for _ in range(dice.randrange(100)):
            connection.recv(64)
            time.sleep(0.005)


def test_health_is_quick_while_others_write(start: Callable[..., Running], model_directory: Path) -> None:
    """The model's thread is not the loop's; a bound in time would say less, and break on a busy machine."""
    server = start(model_directory, slots=4, queue=16)
    gate, inside = threading.Event(), threading.Event()
    server.served.scheduler.call(lambda: (inside.set(), gate.wait(20)))
    assert inside.wait(10)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        assert client.get("/health").status_code == 200  # the model's thread stands still, the server does not
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
        assert client.get("/metrics").status_code == 200
    gate.set()


def test_a_request_has_its_time(start: Callable[..., Running], model_directory: Path) -> None:
    server = start(model_directory, seconds=0.05, slots=1)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        answer = client.post("/v1/completions", json=LONG)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
            if stream.status_code == 200:
                events = list(stream.iter_lines())
                assert json.loads(events[-4].removeprefix("data: "))["error"]["code"] == "unavailable"
                assert events[-2] == "data: [DONE]"


def test_metrics_count(start: Callable[..., Running], model_directory: Path) -> None:
    server = start(model_directory)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        client.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "logit_bias": {"0": -100}})
        client.get("/nowhere")
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["loquela_prompt_tokens_total"]) == 3
    assert float(values["loquela_completion_tokens_total"]) == 4
    assert float(values["loquela_queue_seconds_count"]) == 1
    assert float(values["loquela_first_token_seconds_count"]) == 1
    assert float(values["loquela_token_seconds_count"]) == 3
    assert float(values['loquela_requests_total{path="/v1/completions",status="200"}']) == 1
    assert float(values['loquela_requests_total{path="other",status="404"}']) == 1
    assert float(values["loquela_waiting"]) == 0
