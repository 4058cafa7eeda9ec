"""From the bytes of a file to its characters, in bounded memory; what is no text is said with its byte offset."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from loquela.errors import DataError, TextDecodingError, UsageError

__all__ = ["ENDINGS", "ROW_LIMIT", "characters", "chunks", "lines"]

ENDINGS = ("txt", "jsonl", "ndjson", "json", "csv", "tsv", "parquet")
"""How the names of files of text or rows end, before .gz."""
ROW_LIMIT = 1 << 26
"""Characters that one row of a document set may have."""

_CHUNK = 1 << 18
_BOMB_RATIO, _BOMB_FLOOR = 200, 1 << 26  # text shrinks 3 to 50 times, a bomb 1000 times
_MARKS = {  # the longer marks first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked when they are gzip's; raises `DataError` when it cannot be read."""
    try:
        with path.open("rb") as raw:
            if not raw.peek(3).startswith(b"\x1f\x8b\x08"):
                while chunk := raw.read(_CHUNK):
                    yield chunk
                return
            total = 0
            with gzip.GzipFile(fileobj=raw) as packed:
                while chunk := packed.read(_CHUNK):
                    total += len(chunk)
                    if total > max(_BOMB_FLOOR, _BOMB_RATIO * raw.tell()):
                        raise DataError(
                            f"{path} must shrink less than {_BOMB_RATIO}-fold to be believed a compressed text, but "
                            "unpacks to more; unpack it yourself if it is what you want"
                        )
                    yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} must be a whole gzip file, but is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{path} must be readable, but: {error.strerror or error}") from error


def characters(path: Path, encoding: str, notes: list[str]) -> Iterator[str]:
    """Yield the text of a file as Python reads one: line ends become line feeds, a byte order mark is no text.

    Raises `TextDecodingError` for bytes that are not text in `encoding`, `DataError` for an empty or binary file,
    `UsageError` for an encoding that Python does not know.
    """
    decoder = _codec(encoding).incrementaldecoder()
    one_byte = "a".encode(encoding) == b"a"  # then a NUL byte is a NUL character, and no text
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, at_start, empty = 0, True, True
    for chunk in _with_end(chunks(path)):
        if offset == 0 and codecs.lookup(encoding).name == "utf-8":
            _refuse_other_unicode(path, chunk)
        if one_byte and (nul := chunk.find(0)) >= 0:
            raise _binary(path, f"byte {offset + nul}")
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - len(pending) + error.start
            raise TextDecodingError(
                f"{path} must be text in {encoding}, but byte {at} (0x{error.object[error.start]:02X}) is not: "
                f"{error.reason}; name its encoding, for example --encoding {_other(encoding)}"
            ) from error
        offset += len(chunk)
        if not one_byte and "\0" in text:
            raise _binary(path, f"a character before byte {offset}")
        if text and at_start:
            at_start, text = False, text.removeprefix("\ufeff")
        text = newlines.decode(text, final=not chunk)
        if text:
            empty = False
            yield text
    if empty:
        raise DataError(f"{path} must have text, but is empty")
    if newlines.newlines not in (None, "\n"):
        notes.append(f"{path.name}: line ends of Windows or old Macs (CR LF, CR) are read as line feeds")


def _with_end(stream: Iterator[bytes]) -> Iterator[bytes]:
    yield from stream
    yield b""


def _codec(encoding: str) -> codecs.CodecInfo:
    try:
        codec = codecs.lookup(encoding)
        "a".encode(encoding)  # refuses Python's codecs between bytes and bytes, such as zip
    except (LookupError, UnicodeError, ValueError) as error:
        raise UsageError(
            f"the encoding must be one that Python knows, such as utf-8, latin-1 or cp1252, but is {encoding!r}"
        ) from error
    return codec


def _other(encoding: str) -> str:
    return "latin-1" if codecs.lookup(encoding).name == "utf-8" else "utf-8"


def _refuse_other_unicode(path: Path, start: bytes) -> None:
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            raise TextDecodingError(
                f"{path} must be text in utf-8, but byte 0 begins the mark of {name}; give --encoding {name}"
            )


def _binary(path: Path, where: str) -> DataError:
    return DataError(
        f"{path} must be text, but {where} is NUL: binary data, or UTF-16 (then give --encoding utf-16-le)"
    )


def lines(parts: Iterable[str], too_long: str) -> Iterator[str]:
    """Yield lines with their line feeds; JSON and CSV know no other line end, unlike `str.splitlines`.

    Raises `DataError`, which says `too_long`, for a line of more than `ROW_LIMIT` characters.
    """
    rest: list[str] = []
    size = 0
    for part in parts:
        *whole, last = part.split("\n")
        for line in whole:
            yield "".join([*rest, line, "\n"])
            rest, size = [], 0
        rest.append(last)
        size += len(last)
        if size > ROW_LIMIT:
            raise DataError(too_long)
    if size:
        yield "".join(rest)
