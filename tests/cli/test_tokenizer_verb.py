from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from loquela.text.tokenizer import Tokenizer

TEXT = "To be, or not to be: that is the question.\n" * 40
ENVIRONMENT = {**os.environ, "COLUMNS": "40", "NO_COLOR": "1"}


def loquela(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "loquela", "tokenizer", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train("bpe", [TEXT], 270).save(path)
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_train_writes_a_tokenizer_and_says_what_it_is(text_file: Path) -> None:
    output = text_file.parent / "new" / "tokenizer"
    done = loquela("train", text_file, "--output", output, "--vocab-size", 300)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer.load(output)
    said, ratio = done.stdout.decode(), len(TEXT) / len(tokenizer.encode(TEXT))
    assert said == f"{output}: bpe tokenizer, {tokenizer.vocab_size} tokens, {ratio:.2f} bytes of text per token\n"
    assert "the text supports" in done.stderr.decode()
    assert "loquela tokenizer show" in done.stderr.decode()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char", "byte"])
def test_train_json(text_file: Path, kind: str) -> None:
    output = text_file.parent / kind
    done = loquela("train", text_file, text_file, "-o", output, "--kind", kind, "--json")
    result = json.loads(done.stdout)
    tokenizer = Tokenizer.load(output)
    assert result["tokenizer"] == str(output)
    assert (result["kind"], result["vocab_size"]) == (kind, tokenizer.vocab_size)
    assert result["special_tokens"] == tokenizer.special_tokens
    assert result["bytes_per_token"] >= 1
    assert result["seconds"] > 0


def test_train_latin_1_with_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(("¿Qué año?\n" * 20).encode("latin-1"))
    failed = loquela("train", path, "-o", tmp_path / "t")
    assert failed.returncode == 1
    assert failed.stdout == b""
    assert b"byte 0 (0xBF)" in failed.stderr
    assert b"--encoding latin-1" in failed.stderr
    assert loquela("train", path, "-o", tmp_path / "t", "--encoding", "latin-1").returncode == 0


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        (b"", [], 1, "must have text, but is empty"),
        (b"\x89PNG\r\n\0\0", [], 1, "binary data"),
        (b"text", ["--kind", "bpee"], 2, "did you mean 'bpe'?"),
        (b"text", ["--vocab-size", "100"], 2, "vocab_size must be at least 257"),
        (b"text", ["--encoding", "utf-9"], 2, "utf-9"),
    ],
)
def test_train_fails_in_one_line(tmp_path: Path, content: bytes, arguments: list[str], code: int, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    done = loquela("train", path, "-o", tmp_path / "t", *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "t").exists()


def test_train_does_not_overwrite_a_tokenizer(text_file: Path, directory: Path) -> None:
    before = (directory / "tokenizer.json").read_bytes()
    done = loquela("train", text_file, "-o", directory)
    assert done.returncode == 2
    assert b"choose another" in done.stderr
    assert (directory / "tokenizer.json").read_bytes() == before


def test_show_json(directory: Path) -> None:
    text = "to be é"
    result = json.loads(loquela("show", directory, text, "--json").stdout)
    tokenizer = Tokenizer.load(directory)
    assert [token["id"] for token in result["tokens"]] == tokenizer.encode(text)
    assert "".join(token["text"] for token in result["tokens"]) == "to be <0xC3><0xA9>"
    assert [(token["start"], token["end"]) for token in result["tokens"]] == tokenizer.offsets(text)
    assert json.loads(loquela("show", directory, "--json").stdout) == {
        "tokenizer": str(directory),
        "kind": "bpe",
        "vocab_size": 270,
        "special_tokens": {"<|endoftext|>": 0},
    }


def test_show_in_a_pipe_is_a_table(directory: Path) -> None:
    argument = loquela("show", directory, "to be\n")
    piped = loquela("show", directory / "tokenizer.json", stdin=b"to be\n")
    assert argument.stdout == piped.stdout
    rows = [line.split("\t") for line in piped.stdout.decode().splitlines()]
    tokenizer = Tokenizer.load(directory)
    assert [int(number) for number, _ in rows] == tokenizer.encode("to be\n")
    assert "".join(shown for _, shown in rows) == "to·be↵"
    assert b"6 characters, 6 bytes" in piped.stderr


def test_no_token_commands_the_terminal(directory: Path) -> None:
    shown = loquela("show", directory, stdin="\x1b[2J\x07\x7f\x9b1m\r".encode()).stdout.decode()
    assert not any(c != "\n" and c != "\t" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0) for c in shown)
    assert "\u241b" in shown


def test_show_in_a_terminal_draws_ids_below_tokens(directory: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "loquela", "tokenizer", "show", str(directory), "the question 你 \n" * 4]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        os.close(slave)
        drawn = b""
        while chunk := _read(master):
            drawn += chunk
    os.close(master)
    assert process.returncode == 0
    lines = drawn.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "").splitlines()
    numbers = [int(number) for line in lines[1::2] for number in line.split()]
    assert numbers == Tokenizer.load(directory).encode("the question 你 \n" * 4)
    assert len(lines) > 4
    assert all(len(line) <= 41 for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's word for the end of a terminal
        return b""


def test_show_what_it_is(directory: Path) -> None:
    done = loquela("show", directory)
    assert done.stdout.decode() == f"{directory}: bpe tokenizer, 270 tokens; special: <|endoftext|> 0\n"


def test_show_fails_in_one_line(tmp_path: Path, directory: Path) -> None:
    missing = loquela("show", tmp_path, "text")
    assert missing.returncode == 1
    assert b"does not exist" in missing.stderr
    latin = loquela("show", directory, stdin="añ".encode("latin-1"))
    assert latin.returncode == 1
    assert b"stdin must be UTF-8 text, but its byte 1 is not" in latin.stderr
