"""Who may ask, from where, and how much: every route, every way to come in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from loquela.errors import UsageError
from loquela.serving import guard
from loquela.serving.app import OPERATIONS, build
from loquela.serving.options import Options
from loquela.serving.state import Served

KEY, ADMIN = "a-key-of-32-characters-0123456789", "another-key-for-the-admin-0123456"
ADDRESS = "http://127.0.0.1:8000"
Running = Any  # conftest.Running


@pytest.fixture(scope="module")
def keyed(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<!doctype html><title>page</title>")
    (page / "app.js").write_text("export const a = 1;")
    served = Served(Options(model=model_directory, api_key=KEY, admin_key=ADMIN, page=page))
    yield served
    served.close()


@functools.cache
def app_of(served: Served) -> Any:
    return build(served)


def ask(served: Served, method: str, url: str, **given: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=app_of(served))
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
            return await client.request(method, url, **given)

    return asyncio.run(go())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


ROUTES = [(operation.method, operation.path.replace("{model}", "tiny")) for operation in OPERATIONS] + [
    ("GET", "/openapi.json"),
]
SECRET = [(method, path) for method, path in ROUTES if path != "/health"]


@pytest.mark.parametrize(("method", "path"), SECRET)
def test_every_route_without_the_right_key_is_refused(keyed: Served, method: str, path: str) -> None:
    wrong: list[dict[str, str]] = [
        {},
        bearer("wrong-key"),
        bearer(KEY[:-1]),
        bearer(KEY + "x"),
        bearer(""),
        bearer(ADMIN if "adapter" not in path else KEY),
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"X-API-Key": KEY},
        {"Api-Key": KEY},
        {"Cookie": f"key={KEY}"},
    ]
    body = {} if method == "GET" else {"json": {}}
    for headers in wrong:
        answer = ask(keyed, method, path, headers=headers, **body)
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert ask(keyed, method, f"{path}?api_key={KEY}", **body).status_code == 401
    right = ask(keyed, method, path, headers=bearer(ADMIN if "adapter" in path else KEY), **body)
    assert right.status_code in (200, 400)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_under_a_crooked_path_is_refused(keyed: Served, method: str, path: str) -> None:
    crooked = [
        "/" + path,
        path.replace("/", "//", 2),
        path[:2] + f"%{ord(path[2]):02x}" + path[3:],
        path.replace("/", "/%2e%2e/", 1),
        path + "/../health",
        path + "%00",
        path + "%2f",
        path.replace("/", "\\", 1),
        path + ";health",
        "/health/.." + path,
        "/page/../" + path,
    ]
    for target in crooked:
        for headers in ([], [(b"authorization", f"Bearer {KEY}".encode())]):
            kind = [(b"content-type", b"application/json")]
            assert raw_status(keyed, target.encode(), headers + kind, method) in (401, 404), target
    assert raw_status(keyed, b"/%2e%2e/health") == raw_status(keyed, b"//health") == 404
    assert raw_status(keyed, b"http://127.0.0.1:8000/health") == 404


def raw_status(served: Served, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), method: str = "GET") -> int:
    """Ask with a path exactly as written."""
    seen: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": target.decode(),
        "raw_path": target,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), *headers],
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    asyncio.run(app_of(served)(scope, receive, send))
    return seen[0]


def test_open_paths_need_no_key_and_say_little(keyed: Served) -> None:
    assert ask(keyed, "GET", "/health").json() == {"status": "ok"}
    assert ask(keyed, "GET", "/").text.startswith("<!doctype html>")
    assert ask(keyed, "GET", "/page/app.js").headers["content-type"].startswith("text/javascript")
    assert ask(keyed, "GET", "/plotly.min.js").status_code == 200
    for path in ("/page/none.js", "/page/", "/page", "/none", "/v1", "/page/app.js/"):
        assert ask(keyed, "GET", path).status_code in (401, 404), path


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil-localhost",
    "127.0.0.2",
    "0.0.0.0",
    "[::]",
    "[::1].evil.example",
    "localhost:8000@evil.example",
    "evil.example#localhost",
    "localhost evil.example",
    "localhost,evil.example",
    "LOCALHOST.",
    "127.1",
    "2130706433",
    "0x7f000001",
    "169.254.169.254",
    "user@localhost",
    "localhost:",
]
FOREIGN_ORIGINS: list[dict[str, str]] = [
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:8001"},
    {"Origin": "https://127.0.0.1:8000"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://127.0.0.1:8000.evil.example"},
    {"Origin": "http://127.0.0.1:8000/"},
    {"Origin": "file://"},
    {"Origin": "chrome-extension://abcdef"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
]
FOREIGN_BODIES: list[dict[str, str]] = [
    {"Content-Type": kind}
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; charset=application/json",
        "application/json; charset=utf-16",
        "application/jsonp",
        "",
    )
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_foreign_hosts_and_pages_are_refused_before_any_handler(
    keyed: Served, method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed, "scheduler", None)
    key = bearer(ADMIN if "adapter" in path else KEY)
    body = {} if method == "GET" else {"json": {"prompt": "x"}}
    cases: list[tuple[dict[str, str], int]] = [({"Host": host}, 403) for host in FOREIGN_HOSTS]
    cases += [(headers, 403) for headers in FOREIGN_ORIGINS]
    for headers, status in cases:
        assert ask(keyed, method, path, headers=key | headers, **body).status_code == status, headers
    if method == "POST":
        for headers in FOREIGN_BODIES:
            assert ask(keyed, method, path, headers=key | headers, content=b"{}").status_code == 415, headers
    assert len(cases) + len(FOREIGN_BODIES) >= 40


def test_our_own_page_and_our_own_names_may_ask(keyed: Served) -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LocalHost", "127.0.0.1"):
        headers = bearer(KEY) | {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        answer = ask(keyed, "POST", "/tokenize", headers=headers, json={"prompt": "a"})
        assert answer.status_code == 200, host
        assert "access-control-allow-origin" not in answer.headers
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(keyed, "GET", "/", headers=link).status_code == 200
    assert ask(keyed, "OPTIONS", "/v1/completions", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_further_host_and_a_further_origin(model_directory: Path) -> None:
    options = Options(model=model_directory, allowed_hosts=("box.lan",), allowed_origins=("https://app.example",))
    served = Served(options)
    try:
        assert ask(served, "GET", "/health", headers={"Host": "box.lan:1"}).status_code == 200
        headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        answer = ask(served, "POST", "/tokenize", headers=headers, json={"prompt": "a"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert ask(served, "OPTIONS", "/tokenize", headers=headers).status_code == 204
        assert ask(served, "GET", "/health", headers={"Origin": "https://app.example.evil"}).status_code == 403
        assert ask(served, "POST", "/v1/load_lora_adapter", json={}).status_code == 403  # no admin key, no admin
    finally:
        served.close()


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("GET", "/none"), ("GET", "/plotly.min.js")])
def test_every_answer_carries_the_headers(keyed: Served, method: str, path: str) -> None:
    for headers in ({}, bearer(KEY), bearer(KEY) | {"Host": "evil.example"}):
        answer = ask(keyed, method, path, headers=headers, **({} if method == "GET" else {"json": {}}))
        for name, value in guard.HEADERS.items():
            assert answer.headers[name] == value
        assert re.fullmatch("req-[0-9a-f]{16}", answer.headers["x-request-id"])
    assert "unsafe" not in guard.HEADERS["Content-Security-Policy"]


def test_a_request_id_is_kept_when_it_is_harmless(keyed: Served) -> None:
    assert ask(keyed, "GET", "/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 65, "<script>", ""):
        assert ask(keyed, "GET", "/health", headers={"X-Request-ID": bad}).headers["x-request-id"].startswith("req-")


def test_keys_are_compared_in_constant_time(keyed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, plain = [], hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return plain(a, b)

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    ask(keyed, "GET", "/v1/models", headers=bearer("wrong"))
    assert compared == [b"wrong"]


def test_what_would_be_open_to_strangers_does_not_start(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.lan"):
        with pytest.raises(UsageError, match="needs a key"):
            Options(model=tmp_path, host=host)
    assert "192.168.1.5" in Options(model=tmp_path, host="192.168.1.5", api_key=KEY).hosts
    assert "0.0.0.0" not in Options(model=tmp_path, host="0.0.0.0", api_key=KEY).hosts
    with pytest.raises(UsageError, match="8 to 256"):
        Options(model=tmp_path, api_key="short")
    with pytest.raises(UsageError, match="differ"):
        Options(model=tmp_path, api_key=KEY, admin_key=KEY)
    assert KEY not in repr(Options(model=tmp_path, api_key=KEY, admin_key=ADMIN))


def test_a_header_that_stands_twice(keyed: Served) -> None:
    assert raw_status(keyed, b"/health", [(b"host", b"evil.example")]) == 400
    assert raw_status(keyed, b"/v1/models", [(b"authorization", b"x"), (b"authorization", b"y")]) == 400


# -- over a real socket


def talk(server: Running, data: bytes, seconds: float = 10) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        received = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received


def test_large_headers_and_bodies(server: Running) -> None:
    host = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    close = b"Connection: close\r\n"
    large = b"X-Long: " + b"a" * (guard.HEADER_BYTES + 100) + b"\r\n"
    assert b" 431 " in talk(server, b"GET /health HTTP/1.1\r\n" + host + close + large + b"\r\n")[:30]
    many = b"".join(b"X-%d: b\r\n" % i for i in range(30000))
    assert b" 400 " in talk(server, b"GET /health HTTP/1.1\r\n" + host + many + b"\r\n")[:30]
    with httpx.Client(base_url=server.url, timeout=120) as client:
        body = b'{"prompt": "' + b"a" * guard.BODY_BYTES + b'"}'
        kind = {"Content-Type": "application/json"}
        assert client.post("/tokenize", content=body, headers=kind).status_code == 413

        def unsaid() -> Iterator[bytes]:
            for start in range(0, len(body), 2**18):
                yield body[start : start + 2**18]

        assert client.post("/tokenize", content=unsaid(), headers=kind).status_code == 413
        assert client.post("/tokenize", content=b"{}", headers=kind | {"Content-Encoding": "gzip"}).status_code == 415
        assert client.get("/health").status_code == 200


def test_headers_must_come_soon(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loquela.serving.protocol.HEADER_SECONDS", 0.3)
    begun = time.perf_counter()
    assert talk(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n") == b""
    assert talk(server, b"") == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        with contextlib.suppress(OSError):
            for _ in range(200):
                slow.sendall(b"a")
                time.sleep(0.05)
            raise AssertionError("it listened for ten seconds")
        whole = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    assert time.perf_counter() - begun < 30
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as kept:
        for _ in range(2):
            kept.sendall(whole)
            answer = b""
            while not answer.endswith(b'"ok"}'):
                answer += kept.recv(65536)
            time.sleep(0.5)  # between two requests it may rest longer than headers may take
        kept.sendall(whole[:20])
        assert kept.recv(65536) == b""


def test_nonsense_on_the_wire(server: Running) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
    ):
        assert talk(server, data + b"\r\n\r\n")[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b"")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_adapters_need_one_worker(model_directory: Path, start: Callable[..., Running]) -> None:
    served = start(model_directory, admin_key=ADMIN, workers=2).served
    answer = ask(
        served, "POST", "/v1/load_lora_adapter", headers=bearer(ADMIN), json={"lora_name": "a", "lora_path": "b"}
    )
    assert answer.status_code == 400
    assert "one worker" in answer.json()["error"]["message"]
