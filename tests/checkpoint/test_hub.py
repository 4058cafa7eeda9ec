"""The Hub's own protocol, spoken by a small server here: what is fetched, what is kept, what is never opened."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import loquela
from loquela.checkpoint import hub
from loquela.checkpoint.store import load_model
from loquela.errors import CheckpointError, UsageError

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def served(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub with one model, `tiny/llama`; yields the paths that were asked for."""
    files = {p.name: p.read_bytes() for p in model_directory.iterdir() if p.name != "manifest.json"}
    files |= {"pytorch_model.bin": b"\x80\x04 a pickle", "README.md": b"# tiny\n"}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:4] == ["api", "models", "tiny", "llama"] and parts[4] in ("revision", "tree"):
                self._about(parts[4], parts[5])
            elif parts[:3] == ["tiny", "llama", "resolve"] and parts[-1] in files:
                content = files[parts[-1]]
                etag = hashlib.sha1(content).hexdigest()
                self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": parts[3]})
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _about(self, what: str, revision: str) -> None:
            commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
            if commit is None:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            oid = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
            siblings = [{"rfilename": name} for name in files]
            tree = [{"type": "file", "path": n, "size": len(c), "oid": oid[n]} for n, c in files.items()]
            about = {"id": "tiny/llama", "sha": commit, "siblings": siblings, "tags": [], "private": False}
            self._send(200, json.dumps(tree if what == "tree" else about).encode(), {})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LOQUELA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_pulled_once_and_opened_without_a_network(served: list[str], model_directory: Path) -> None:
    place, commit = hub.pull("tiny/llama")
    assert commit == COMMITS["main"]
    assert place == hub.home() / "tiny" / "llama" / commit
    assert not (place / "pytorch_model.bin").exists()
    assert not any("pytorch_model" in path for path in served)
    assert json.loads((place / hub.PULLED).read_text())["commit"] == commit
    served.clear()
    model = loquela.load("tiny/llama")
    assert model.logits([1, 2, 3]).equal(loquela.load(model_directory).logits([1, 2, 3]))
    assert served == []
    assert hub.pull("tiny/llama")[0] == place
    assert not any("resolve" in path for path in served), "what is there is not fetched again"


def test_a_revision_is_pinned_and_two_must_be_told_apart(served: list[str]) -> None:
    hub.pull("tiny/llama")
    place, _ = hub.pull("tiny/llama@v2")
    assert hub.resolve("tiny/llama@v2") == hub.resolve(f"tiny/llama@{'b' * 12}") == place
    with pytest.raises(CheckpointError, match="must mean one commit, but 2 were pulled"):
        hub.resolve("tiny/llama")


def test_a_damaged_file_is_found_out(served: list[str]) -> None:
    place, _ = hub.pull("tiny/llama")
    weights = place / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model("tiny/llama")


def test_what_is_not_there(served: list[str]) -> None:
    with pytest.raises(CheckpointError, match="tiny/other@main cannot be fetched"):
        hub.pull("tiny/other")
    with pytest.raises(CheckpointError, match="tiny/llama@v9 cannot be fetched"):
        hub.pull("tiny/llama", revision="v9")
    with pytest.raises(CheckpointError, match="loquela pull tiny/llama"):
        loquela.load("tiny/llama")
    assert not list(hub.home().rglob("*.partial"))
    for name in ("../etc", "a/b/c", "tiny/..", "/tmp", "tiny", "tiny/llama@../x"):
        with pytest.raises(UsageError, match="must be named ORG/NAME"):
            hub.pull(name)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOQUELA_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        hub.pull("tiny/llama")
