"""`loquela score` as a stranger would call it."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loquela.api import load

Run = Callable[..., Any]
TEXT = "The cat sat on the mat; the dog sat on the log.\n" * 4


def test_the_figures_of_a_file_and_of_a_pipe(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    done = loquela("score", "-m", model_directory, file, "--json")
    result = json.loads(done.out)
    expected = load(model_directory).score(TEXT)
    assert result["tokens"] == expected.tokens
    assert result["log_prob"] == expected.log_prob
    assert result["perplexity"] == expected.perplexity
    assert result["bits_per_byte"] == expected.bits_per_byte
    assert (result["window"], result["stride"]) == (64, 32)
    assert result["notes"] == list(expected.notes)
    assert loquela("score", "-m", model_directory, "--json", stdin=TEXT).out == done.out


def test_plain_figures_one_a_line_and_what_to_know_beside_them(loquela: Run, model_directory: Path) -> None:
    done = loquela("score", "-m", model_directory, "--window", 16, "--stride", 16, stdin=TEXT)
    rows = dict(line.rsplit(maxsplit=1) for line in done.out.splitlines())
    assert list(rows) == ["tokens", "log prob", "perplexity", "bits per byte", "bytes", "window", "stride"]
    assert (rows["window"], rows["stride"]) == ("16", "16")
    expected = load(model_directory).score(TEXT, window=16, stride=16)
    assert float(rows["bits per byte"]) == pytest.approx(expected.bits_per_byte, abs=1e-4)
    assert "the first token is given, not scored" in done.err


def test_two_texts_side_by_side(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("The cat sat on the mat")
    two.write_text("The mat cat the sat on")
    done = loquela("score", "-m", model_directory, one, "--versus", two, "--json")
    found = json.loads(done.out)
    first, second = (load(model_directory).score(file.read_text()) for file in (one, two))
    assert found["log_prob"] == first.log_prob
    assert found["versus"]["log_prob"] == second.log_prob
    assert found["versus"]["log_prob_difference"] == first.log_prob - second.log_prob
    assert found["versus"]["bits_per_byte_difference"] == first.bits_per_byte - second.bits_per_byte
    shown = loquela("score", "-m", model_directory, one, "--versus", two).out.splitlines()
    assert [len(line.split()) for line in shown[:1]] == [3]
    assert shown[-1] == f"bits per byte difference: {first.bits_per_byte - second.bits_per_byte:+.4f}"


def test_a_document_set(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "The cat sat."}\n{"text": "The dog sat."}\n'))
    result = json.loads(loquela("score", "-m", model_directory, file, "--json").out)
    tokenizer = load(model_directory).tokenizer
    assert result["tokens"] == len(tokenizer.encode("The cat sat.")) + len(tokenizer.encode("The dog sat."))


def test_what_cannot_be_scored(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Qué niño más español".encode("latin-1") * 9)
    done = loquela("score", "-m", model_directory, latin)
    assert done.code == 1
    assert "--encoding" in done.err
    assert loquela("score", "-m", model_directory, latin, "--encoding", "latin-1").code == 0
    assert loquela("score", "-m", model_directory, stdin="").code == 1
    assert (
        loquela(
            "score",
            "-m",
            model_directory,
            stdin=TEXT,
        ).code
        == 0
    )
    done = loquela("score", "-m", model_directory, "--stride", 65, stdin=TEXT)
    assert done.code == 2
    assert "stride must be from 1 to the window of 64, but is 65" in done.err


def test_in_a_terminal_the_text_is_coloured(model_directory: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "loquela", "score", "-m", str(model_directory)],
        stdout=theirs,
        stdin=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )
    os.close(theirs)
    process.communicate(("The cat\x1b[31m sat. " * 3).encode())
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # the other end has left
        pass
    os.close(ours)
    assert process.returncode == 0
    assert b"bits of surprise" in shown
    assert b"\x1b[30;48;2;" in shown
    assert b"\x1b[31m" not in shown, "what the text holds must not command the terminal"
