from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loquela.data import readers
from loquela.data.readers import Piece, measure, read_pieces
from loquela.data.tokens import encode_pieces
from loquela.errors import DataError, TextDecodingError, UsageError
from loquela.text.tokenizer import Tokenizer

LEARNT = "First Citizen:\nBefore we proceed, he's said it's  good.\n\n\tAll: 1 12 123 speak!\n" * 20
TOKENIZERS = {
    kind: Tokenizer.train(kind, [LEARNT], None if kind in ("char", "byte") else 400)
    for kind in ("bpe", "unigram", "wordpiece", "char", "byte")
}
awkward = st.text(alphabet="ab \n\t,'s1é\u3000\x1f\u0301\u200b😀.").map(lambda text: text or "a")
"""Text that is hard to cut: white space of many kinds at every border."""


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE", 4)
    monkeypatch.setattr(readers, "_PATIENCE", 16)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def written(directory: Path, content: bytes, name: str = "text.txt") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def universal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_of(path: Path, **options: object) -> str:
    return "".join(piece.text for piece in read_pieces(path, **options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_pieces")
class TestCutting:
    @pytest.mark.parametrize("kind", TOKENIZERS)
    @given(data=st.data())
    def test_tokens_of_the_pieces_are_those_of_the_whole(self, kind: str, data: st.DataObject) -> None:
        text = data.draw(st.lists(awkward, min_size=1, max_size=8).map("x\nx".join))
        tokenizer = TOKENIZERS[kind]
        pieces = list(readers.cut([text], Path("x.txt"), notes := []))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert not notes
        ids = [i for row, _ in encode_pieces(tokenizer, pieces) for i in row]
        assert ids == tokenizer.encode(text, add_special_tokens=False)

    @given(parts=st.lists(awkward, min_size=1), start=st.integers(0, 40), length=st.none() | st.integers(0, 60))
    def test_a_window_is_a_slice(self, parts: list[str], start: int, length: int | None) -> None:
        stop = None if length is None else start + length
        assert "".join(readers._window(parts, start, stop)) == "".join(parts)[start:stop]

    @given(text=st.text(), newline=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans(), packed=st.booleans())
    def test_a_file_reads_as_python_reads_one(
        self, scratch: Path, text: str, newline: str, mark: bool, packed: bool
    ) -> None:
        text = "x" + text.replace("\0", "").replace("\n", newline) + "y"
        content = text.encode("utf-8-sig" if mark else "utf-8")
        path = written(scratch, gzip.compress(content) if packed else content)
        assert text_of(path) == universal(text)
        assert measure(path).size == measure(path).characters == len(universal(text))

    @given(
        text=st.text(alphabet=st.characters(codec="utf-16", exclude_characters="\0\ufeff"), min_size=1),
        encoding=st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8", "utf-8-sig"]),
        chunk=st.integers(1, 7),
    )
    def test_any_encoding_at_any_chunk(self, scratch: Path, text: str, encoding: str, chunk: int) -> None:
        path = written(scratch, text.encode(encoding))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("loquela.data.files._CHUNK", chunk)
            assert text_of(path, encoding=encoding) == universal(text)


def test_a_very_long_line_is_cut_at_a_blank(tmp_path: Path) -> None:
    text = "word " * 200_000 + "end"
    path = tmp_path / "line.txt"
    path.write_text(text)
    pieces = list(read_pieces(path, notes=(notes := [])))
    assert len(pieces) > 20
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text.startswith(" ") for piece in pieces[1:])
    assert notes == []


def test_a_line_without_any_safe_place_is_cut_anyhow_and_said(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("字" * 2_500_000)
    pieces = list(read_pieces(path, notes=(notes := [])))
    assert [len(piece.text) for piece in pieces] == [1 << 20, 1 << 20, 2_500_000 - (2 << 20)]
    assert notes == list(measure(path).notes)
    assert len(notes) == 1
    assert "without a line end or a blank" in notes[0]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 0), (3, 9), (7, None), (100, None), (5, 5)])
def test_start_and_stop_are_characters(tmp_path: Path, start: int, stop: int | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("¡é😀!\nabc\n", encoding="utf-8")
    assert text_of(path, start=start, stop=stop) == "¡é😀!\nabc\n"[start:stop]


def test_one_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(b"one line")
    assert list(read_pieces(path)) == [Piece("one line", ends_document=True)]


def test_line_ends_of_windows_are_said(tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\nb\r\n")
    assert measure(path).notes == ("dos.txt: line ends of Windows or old Macs (CR LF, CR) are read as line feeds",)


# -- what is no text


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.txt must have text, but is empty"):
        measure(path)


@pytest.mark.parametrize("before", [0, 1, 262_143, 262_144, 300_001])
def test_latin_1_names_the_byte_and_the_way_out(tmp_path: Path, before: int) -> None:
    path = tmp_path / "quijote.txt"
    path.write_bytes(b"a" * before + "ñandú".encode("latin-1"))
    with pytest.raises(TextDecodingError, match=rf"byte {before} \(0xF1\) is not.*--encoding latin-1"):
        measure(path)
    assert text_of(path, encoding="latin-1") == "a" * before + "ñandú"


def test_a_character_cut_off_by_the_end_names_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes("aé".encode()[:2])
    with pytest.raises(TextDecodingError, match=r"byte 1 \(0xC3\)"):
        measure(path)


@given(text=st.text(min_size=1), bad=st.sampled_from([b"\xff", b"\xc3(", b"\xed\xa0\x80"]), chunk=st.integers(1, 9))
def test_the_named_byte_is_the_first_bad_one(scratch: Path, text: str, bad: bytes, chunk: int) -> None:
    good = text.replace("\0", "").encode()
    path = written(scratch, good + bad + b"tail")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loquela.data.files._CHUNK", chunk)
        with pytest.raises(TextDecodingError, match=rf"byte {len(good)} "):
            measure(path)


def test_binary_data(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF\x02\x01\x01\0\0\0")
    with pytest.raises(DataError, match="must be text, but byte 7 is NUL: binary data"):
        measure(path)
    path.write_bytes("a\0b".encode("utf-16"))
    with pytest.raises(DataError, match="NUL"):
        measure(path, encoding="utf-16")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_unicode_of_another_width_is_recognised_by_its_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "wide.txt"
    path.write_bytes("hello".encode(encoding))
    with pytest.raises(TextDecodingError, match=f"--encoding {encoding}"):
        measure(path)
    assert text_of(path, encoding=encoding) == "hello"


@pytest.mark.parametrize("encoding", ["utf-9", "latin", "zip", "rot13", "base64", "", "a\0b", "é" * 10])
def test_an_encoding_that_python_does_not_know(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    if encoding == "latin":  # which Python knows as latin-1
        assert text_of(path, encoding=encoding) == "text"
        return
    with pytest.raises(UsageError, match="the encoding must be one that Python knows"):
        measure(path, encoding=encoding)


def test_a_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(b"some text " * 1000)
    for content in (packed[:-20], packed[:15] + b"????" + packed[19:], packed[:-8] + b"01234567"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="must be a whole gzip file, but is damaged"):
            measure(path)


def test_a_gzip_bomb_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(b"a" * (1 << 20))
    read: list[int] = []
    with pytest.raises(DataError, match="200-fold"):
        read.extend(len(piece.text) for piece in read_pieces(path))
    assert sum(read) <= 1 << 26


def test_a_directory_or_nothing_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which can be read only once
    for path in (tmp_path, tmp_path / "nowhere.txt", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match="must be a regular file"):
            measure(path)
    for path in (tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(DataError, match="must be readable"):
            text_of(path)


# -- document sets

SETS = {
    "a.jsonl": '{"text": "uno\\n"}\n\n{"text": "dós", "n": 1}\n{"text": ""}',
    "a.ndjson": '{"text": "uno\\n"}\r\n"dós"\r\n{"text": ""}\r\n',
    "a.json": '[{"text": "uno\\n"}, "dós", {"text": ""}]',
    "a.csv": 'n,text\n1,"uno\n"\n2,dós\n3,\n',
    "a.csv.gz": 'n,text\r\n1,"uno\r\n"\r\n2,dós\r\n3,',
}


@pytest.mark.parametrize("name", SETS)
def test_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = SETS[name].encode("utf-8-sig")
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_pieces(path)) == [Piece("uno\n", True), Piece("dós", True), Piece("", True)]
    assert list(read_pieces(path, start=1, stop=2)) == [Piece("dós", True)]
    assert (measure(path).size, measure(path).characters, measure(path).is_document_set) == (3, 7, True)


def test_a_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Hi\t1\nsaid "she"\t0\n')
    assert [piece.text for piece in read_pieces(path)] == ['"Hi', 'said "she"']


def test_a_long_document_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = "a line of a document\n" * 20_000
    path.write_text(f'{{"text": {long!r}}}\n'.replace("'", '"') + '{"text": "short"}\n')
    pieces = list(read_pieces(path))
    ends = [i for i, piece in enumerate(pieces) if piece.ends_document]
    assert len(ends) == 2
    assert ends[0] > 5
    assert "".join(piece.text for piece in pieces[: ends[0] + 1]) == long


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "row 2 must be JSON, but is not"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"body": "b", "id": 1}\n',
            "row 2 must have its document under 'text', but has 'body', 'id'",
        ),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 7}\n', "row 3 must be a text, but is a number"),
        ("a.jsonl", '{"text": null}', "row 1 must be a text, but is null"),
        ("a.jsonl", '{"text": "\\ud83d"}', "row 1 must be whole characters, but character 0 is half a surrogate pair"),
        ("a.jsonl", "[" * 100_000, "row 1 must be JSON"),
        ("a.jsonl", "\n\n", "must have documents, but has none"),
        ("a.json", "[]", "must have documents, but has none"),
        ("a.json", '{"text": "a"}', "must be a JSON array of documents, but is an object"),
        ("a.json", '[{"text": "a"}, {}]', "row 2 must have its document under 'text', but has no names"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "the file must be JSON"),
        ("a.csv", "sentence,label\na,1\n", "must have a column 'text' in its first row, but has 'sentence', 'label'"),
        ("a.csv", "text,label\na,1\nb\n", "row 2 must have 2 cells as the first row has, but has 1"),
        ("a.csv", 'text\na\n"b', "row 2 must be a row of a table, but is not"),
        ("a.tsv", "text\n", "must have documents, but has none"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name},? {message}") as caught:
        measure(path)
    assert "\n" not in str(caught.value)


@given(
    content=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud83textn\n\t 1').map(str.encode),
    suffix=st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".tsv"]),
)
def test_no_content_raises_anything_untyped(scratch: Path, content: bytes, suffix: str) -> None:
    path = written(scratch, content, f"a{suffix}")
    with contextlib.suppress(DataError):
        assert list(read_pieces(path))[-1].ends_document


@pytest.mark.soak
@settings(max_examples=10_000)
@given(data=st.data(), suffix=st.sampled_from(sorted(SETS)))
def test_ten_thousand_mutated_rows(scratch: Path, data: st.DataObject, suffix: str) -> None:
    """All rows are used, or one typed error of one line names the file."""
    content = bytearray(SETS[suffix].encode() * 3)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 9))]
            case _:
                content[place:place] = data.draw(st.binary(min_size=1, max_size=4))
    path = written(scratch, bytes(content), suffix.removesuffix(".gz"))
    try:
        pieces = list(read_pieces(path))
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)  # noqa: PT017, PT018
    else:
        assert all(isinstance(piece.text, str) for piece in pieces)


# -- memory


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for n in range(300_000):
            file.write(f"line {n} of a text that is long enough to show, ten megabytes or more\n")
    tracemalloc.start()
    try:
        count = sum(len(piece.text) for piece in read_pieces(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == path.stat().st_size > 20_000_000
    assert peak < 3_000_000


@pytest.mark.soak
def test_a_gigabyte_from_text_to_tokens_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    lines = [f"line {n} of a text: it's {n * n} times as good.\n" for n in range(10_000)]
    with path.open("w") as file:
        while file.tell() < 1_000_000_000:
            file.writelines(lines)
    code = (
        "import resource, sys; from loquela.data.shards import build\n"
        "from loquela.data.vocabulary import train_tokenizer\n"
        "tokenizer = train_tokenizer(sys.argv[1], 'bpe', 1024); build(sys.argv[1], tokenizer, sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "tokens")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400 * 1024


def test_pieces_are_small_enough_to_share(shared_data: Path) -> None:
    pieces = list(itertools.islice(read_pieces(shared_data / "lm" / "tinyshakespeare.txt"), 10))
    assert all(1 << 15 <= len(piece.text) < 1 << 16 for piece in pieces)
