"""Perplexity by a real server is that of the same model in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import loquela
from loquela.errors import UsageError
from loquela.evaluation.remote import RemoteSubject
from loquela.evaluation.remote_text import remote_score

Running = Any  # conftest.Running
TEXT = "The cat sat on the mat; the dog sat on the log. Ärger 🐈, 3456789.\n" * 40


def test_windows_are_those_of_this_process(server: Running, model_directory: Path) -> None:
    model = loquela.load(model_directory, engine="torch")
    subject = RemoteSubject(f"{server.url}/v1", at_once=4)
    for window, stride in ((510, None), (64, 20), (64, 64)):
        ours = model.score(TEXT, window=window, stride=stride)
        theirs = remote_score(subject, TEXT, window=window, stride=stride)
        first = len(ours.ids) - len(theirs.ids)  # this tokenizer has a BOS that it puts before no text
        assert first in (0, 1)
        assert theirs.ids.tolist() == ours.ids.tolist()[first:]
        if first == 0:
            np.testing.assert_allclose(theirs.log_probs, ours.log_probs, atol=1e-4)
            assert theirs.n_bytes == ours.n_bytes
            assert theirs.bits_per_byte == pytest.approx(ours.bits_per_byte, rel=1e-5)
    assert remote_score(subject, TEXT).window == 510
    with pytest.raises(UsageError, match="window must be from 1 to 510"):
        remote_score(subject, TEXT, window=511)


def test_as_a_task_and_on_the_command_line(server: Running, model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    ours = loquela.evaluate(loquela.load(model_directory), file).results["text"]
    theirs = loquela.evaluate(RemoteSubject(f"{server.url}/v1"), file).results["text"]
    assert theirs.score == pytest.approx(ours.score, rel=0.02)  # windows of 510 tokens, not of 512
    assert theirs.metric == "bits_per_byte"
    command = [sys.executable, "-m", "loquela", "score", "--url", f"{server.url}/v1", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"NO_COLOR": "1"})
    assert json.loads(done.stdout)["bits_per_byte"] == pytest.approx(theirs.score, rel=1e-6)


def test_a_server_that_tells_no_tokens() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": {"message": "there is nothing at this path"}})

    subject = RemoteSubject("http://server/v1", "x", transport=httpx.MockTransport(answer))
    with pytest.raises(UsageError, match="POST /tokenize"):
        remote_score(subject, TEXT)
