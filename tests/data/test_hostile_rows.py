"""Rows that were changed at random: each file is read, or is one typed error that names it; nothing else comes out."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pytest

from loquela.data.gather import Gathering
from loquela.errors import DataError

DOCUMENTS = [f'say "{n}", é\n\tand, {n * n} 字' for n in range(8)]
PIECES = [
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"[" * 500,
    b"\t",
    b",",
    b"\r\n",
    b"null",
    b"1e999",
]


def tables() -> dict[str, bytes]:
    rows = [{"text": document, "n": n} for n, document in enumerate(DOCUMENTS)]
    quoted = "".join(f'{n},"{d.replace(chr(34), chr(34) * 2)}"\n' for n, d in enumerate(DOCUMENTS))
    flat = "".join(
        f"{n}\t{document.replace(chr(10), ' ').replace(chr(9), ' ')}\n" for n, document in enumerate(DOCUMENTS)
    )
    contents = {
        "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        "a.json": json.dumps(rows).encode(),
        "a.csv": f"n,text\n{quoted}".encode(),
        "a.tsv": f"n\ttext\n{flat}".encode(),
    }
    contents["a.jsonl.gz"] = gzip.compress(contents["a.jsonl"], mtime=0)
    try:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": DOCUMENTS}), packed := io.BytesIO())
        contents["a.parquet"] = packed.getvalue()
    except ImportError:
        pass
    return contents


TABLES = tables()


def mutated(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place:place] = draw.choice(PIECES)
        elif kind == 2:
            del changed[place : place + draw.randrange(1, 9)]
        elif kind == 3:
            del changed[place:]
        else:
            other = draw.randrange(len(changed) + 1)
            changed[place:place] = changed[other : other + draw.randrange(40)]
    return bytes(changed)


def read(gathering: Gathering) -> tuple[list[str] | None, str]:
    """The texts, or None and what is said instead."""
    try:
        return [piece.text for _, piece in gathering], ""
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_mutated_file_is_read_or_refused_by_name(name: str, count: int, tmp_path: Path) -> None:
    path, refused = tmp_path / name, 0
    for seed in range(count):
        path.write_bytes(mutated(TABLES[name], random.Random(seed)))
        strict, lenient = Gathering([str(path)]), Gathering([str(path)], skip_bad_rows=True)
        (whole, said), (kept, also_said) = read(strict), read(lenient)
        for error in (said, also_said):
            assert not error or (name in error and "\n" not in error)
        refused += whole is None
        if kept is None:
            assert whole is None
            continue
        assert (whole is None) == (lenient.bad_rows > 0), "left out and counted, or nothing was wrong"
        assert whole is None or kept == whole
        assert bool(lenient.bad_rows) == any("rows are left out, the first: row" in note for note in lenient.notes)
    assert 0 < refused <= count
