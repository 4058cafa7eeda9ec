"""What `loquela data build` makes: everything once, nothing held out that is learnt, however many processes."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.data import builder, built
from loquela.data.builder import FEW, Report, build
from loquela.data.built import Shards, is_built, open_built
from loquela.data.duplicates import Duplicates, join, minima, similarity
from loquela.data.gather import Gathering, find
from loquela.errors import DataError, MissingExtraError, UsageError
from loquela.text.tokenizer import Tokenizer

BYTE = Tokenizer.train("byte", [])
WORDS = [f"w{n}" for n in range(500)]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(document: str, seed: int, words: int = 1) -> str:
    parts, draw = document.split(), random.Random(seed)
    for place in draw.sample(range(len(parts)), words):
        parts[place] = "changed"
    return " ".join(parts)


def rows(path: Path, documents: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(path)


def documents_of(directory: Path) -> tuple[list[str], list[str]]:
    """Both splits as texts, cut by the index."""
    corpus, tokenizer = open_built(directory)
    splits = []
    for name, part in (("train", corpus.train), ("validation", corpus.validation)):
        ends = np.frombuffer((directory / f"{name}.index").read_bytes(), dtype="<i8")
        starts = np.concatenate(([0], ends[:-1]))
        pieces = [part.tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
        assert all(piece[-1] == tokenizer.eos_id for piece in pieces)
        splits.append([tokenizer.decode(piece[:-1]) for piece in pieces])
        assert part.n_bytes == sum(len(document.encode()) for document in splits[-1])
    return splits[0], splits[1]


def made(sources: list[str], directory: Path, **settings: Any) -> Report:
    return build(Gathering(sources), BYTE, directory, **{"processes": 1, **settings})


def test_every_document_is_once_in_one_of_the_splits(tmp_path: Path) -> None:
    documents = [text(n) for n in range(300)]
    report = made([rows(tmp_path / "a.jsonl", documents)], tmp_path / "out", validation_fraction=0.2)
    train, validation = documents_of(tmp_path / "out")
    assert sorted(train + validation) == sorted(documents)
    assert [d for d in documents if d in set(train)] == train, "in their order"
    assert 30 < len(validation) < 90
    assert (report.documents, report.exact_duplicates, report.near_duplicates) == (300, 0, 0)
    assert (report.train_documents, report.val_documents) == (len(train), len(validation))
    assert is_built(tmp_path / "out")


def test_a_document_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    documents = [text(n) for n in range(120)]
    made([rows(tmp_path / "a.jsonl", documents)], tmp_path / "one", validation_fraction=0.3)
    more = [text(n) for n in range(1000, 1100)]
    made([rows(tmp_path / "b.jsonl", more + documents[::-1])], tmp_path / "two", validation_fraction=0.3)
    assert set(documents_of(tmp_path / "one")[1]) == set(documents_of(tmp_path / "two")[1]) & set(documents)


def test_duplicates_go_and_are_counted(tmp_path: Path) -> None:
    documents = [text(n) for n in range(40)]
    again = [documents[3], documents[3], documents[17]]
    near = [changed(documents[n], n) for n in (5, 6, 7)]
    far = [changed(documents[n], n, words=25) for n in (8, 9)]
    source = rows(tmp_path / "a.jsonl", documents + again + near + far)
    report = made([source], tmp_path / "out")
    assert (report.documents, report.exact_duplicates, report.near_duplicates) == (48, 3, 3)
    train, validation = documents_of(tmp_path / "out")
    assert sorted(train + validation) == sorted(documents + far)
    kept = made([source], tmp_path / "kept", remove_duplicates=False)
    assert (kept.train_documents + kept.val_documents, kept.exact_duplicates, kept.near_duplicates) == (48, 3, 3)
    exact = made([source], tmp_path / "exact", near=None)
    assert (exact.exact_duplicates, exact.near_duplicates) == (3, 0)


def test_what_nearly_says_a_held_out_document_is_held_out_with_it(tmp_path: Path) -> None:
    """A chain of documents, each near the next, stays together, though its ends are not near each other."""
    documents, families = [], {}
    for family in range(60):
        document = text(family, words=120)
        for step in range(4):
            documents.append(document)
            families[document] = family
            document = changed(document, 100 * family + step, words=2)
    random.Random(0).shuffle(documents)
    made([rows(tmp_path / "a.jsonl", documents)], tmp_path / "o", validation_fraction=0.3, remove_duplicates=False)
    train, validation = documents_of(tmp_path / "o")
    assert sorted(train + validation) == sorted(documents)
    assert validation
    assert not {families[d] for d in train} & {families[d] for d in validation}


SCRIPT = """
from loquela.data.builder import build
from loquela.data.gather import Gathering
from loquela.text.tokenizer import Tokenizer
build(Gathering(["texts.jsonl"]), Tokenizer.load("tokenizer"), "out", processes=2)
"""


def test_processes_that_die_at_their_start_end_the_build(tmp_path: Path) -> None:
    """In a script that does not say what is its main part, each process would run the whole of it again."""
    large = Tokenizer.train("byte", [], special_tokens=[f"<{n}>" for n in range(1000)])
    assert len(large.json) > 1 << 17, "more than a pipe holds"
    large.save(tmp_path / "tokenizer")
    rows(tmp_path / "texts.jsonl", [text(n) for n in range(30)])
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "a process that tokenises has died" in done.stderr
    assert not (tmp_path / "out").exists()


def test_however_many_processes_and_shards_the_tokens_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loquela.data.flow._JOB", 2000)
    sources = [rows(tmp_path / f"{n}.jsonl", [text(100 * n + i) for i in range(40)]) for n in range(3)]
    made(sources, tmp_path / "one")
    made(sources, tmp_path / "two", processes=2, shard=3000)
    (one, _), (two, _) = open_built(tmp_path / "one"), open_built(tmp_path / "two")
    assert isinstance(two.train.tokens, Shards)
    for a, b in ((one.train, two.train), (one.validation, two.validation)):
        assert np.asarray(a.tokens).tolist() == np.asarray(b.tokens).tolist()
    record = json.loads((tmp_path / "two" / "corpus.json").read_text())
    assert all(s["tokens"] <= 3000 for split in record["splits"].values() for s in split["shards"])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_shards_are_one_array(lengths: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(lengths), dtype=np.uint16)
    shards = Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    start = data.draw(st.integers(-3, len(whole) + 3))
    stop = data.draw(st.none() | st.integers(-3, len(whole) + 3))
    assert shards[start:stop].tolist() == whole[start:stop].tolist()
    assert np.asarray(shards).tolist() == whole.tolist()
    assert len(shards) == len(whole)


def test_of_few_documents_the_end_is_held_out(tmp_path: Path) -> None:
    novel = "".join(f"line {n} of a long book\n" for n in range(2000))
    (tmp_path / "novel.txt").write_text(novel)
    report = made([str(tmp_path / "novel.txt")], tmp_path / "out", validation_fraction=0.1)
    train, validation = documents_of(tmp_path / "out")
    assert train[0] + validation[0] == novel
    assert len(validation[0]) == pytest.approx(len(novel) * 0.1, rel=0.01)
    assert validation[0].startswith("line ")
    assert any(f"fewer than {FEW} documents" in line for line in report.notes)


def test_a_long_document_in_pieces_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loquela.data.readers.PIECE", 100)
    monkeypatch.setattr("loquela.data.readers._PATIENCE", 200)
    monkeypatch.setattr("loquela.data.flow._JOB", 150)
    long = ["\n".join(text(50 * n + i, 10) for i in range(40)) for n in range(25)]
    report = made([rows(tmp_path / "a.jsonl", [*long, long[3], changed(long[4], 1)])], tmp_path / "out")
    assert (report.exact_duplicates, report.near_duplicates) == (1, 1)
    train, validation = documents_of(tmp_path / "out")
    assert sorted(train + validation) == sorted(long)


# -- near duplicates


@given(seed=st.integers(0, 10**6), words=st.integers(5, 300), change=st.integers(0, 40))
def test_similarity_is_the_share_of_common_shingles(seed: int, words: int, change: int) -> None:
    draw = np.random.default_rng(seed)
    one = draw.integers(0, 50, size=words)
    other = one.copy()
    other[draw.integers(0, words, size=change)] = 50
    shingles = [{tuple(x[i : i + 5]) for i in range(words - 4)} for x in (one, other)]
    expected = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert similarity(one, other) == pytest.approx(expected)
    assert similarity(one, one) == 1.0


def test_bins_of_parts_join_to_those_of_the_whole() -> None:
    tokens = np.random.default_rng(0).integers(0, 999, size=400)
    parts = minima([tokens[:204], tokens[200:]])  # the parts overlap by the four tokens that a shingle needs
    assert join(parts).tolist() == minima([tokens])[0].tolist()


def test_nearly_all_that_is_near_is_found_and_nothing_else() -> None:
    draw = np.random.default_rng(1)
    documents = [draw.integers(0, 5000, size=int(n)) for n in draw.integers(30, 400, size=300)]
    near = []
    for document in documents:
        copy = document.copy()
        copy[draw.integers(len(copy))] = 5001
        near.append(copy)
    whole = [*documents, *near]
    groups = Duplicates(minima(whole), lambda i: whole[i], 0.7).groups(chained=False)
    assert groups[:300].tolist() == list(range(300))
    like = np.array([similarity(a, b) >= 0.7 for a, b in zip(documents, near, strict=True)])
    found = groups[300:] == np.arange(300)
    assert not (found & ~like).any()
    assert (found & like).sum() >= 0.99 * like.sum()
    assert (groups[300:][~found] == np.arange(300, 600)[~found]).all()


def test_documents_of_few_tokens_are_near_only_if_equal() -> None:
    whole = [np.array([1, 2]), np.array([1, 2]), np.array([2, 1]), np.array([1]), np.empty(0, np.int64)]
    groups = Duplicates(minima(whole), lambda i: whole[i], 0.8).groups(chained=False)
    assert groups.tolist() == [0, 0, 2, 3, 4]


# -- sources


def test_any_mix_of_sources_is_found_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.jsonl", "c.bin", "sub/d.csv", "sub/e.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"x") if name.endswith(".gz") else b"x")
    monkeypatch.chdir(tmp_path)
    assert find(["b.txt", ".", "*.txt"]) == ["b.txt", "a.jsonl", "sub/d.csv", "sub/e.txt.gz"]
    assert find(["**/*.gz"]) == ["sub/e.txt.gz"]
    assert find(["shakespeare"])[0].endswith("shakespeare.txt.gz")
    for name, said in (("*.pdf", "must find files"), ("nowhere.txt", "does not exist")):
        with pytest.raises(DataError, match=said):
            find([name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"must find files ending in \.txt"):
        find(["empty"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    documents = [f"{text(n)} é{n}" for n in range(30)]
    path = tmp_path / name
    if ".parquet" in name:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": list(range(30)), "content": documents}), path)
    else:
        table = [{"id": n, "content": document} for n, document in enumerate(documents)]
        separator = "\t" if ".tsv" in name else ","
        lines = ["content", *documents] if "sv" in name else [json.dumps(row) for row in table]
        if "sv" in name:
            lines = [f"id{separator}content"] + [f"{n}{separator}{document}" for n, document in enumerate(documents)]
        whole = json.dumps(table) if name == "a.json" else "\n".join(lines) + "\n"
        path.write_bytes(gzip.compress(whole.encode()) if name.endswith(".gz") else whole.encode())
    build(Gathering([str(path)], "content"), BYTE, tmp_path / "out", processes=1)
    train, validation = documents_of(tmp_path / "out")
    assert sorted(train + validation) == sorted(documents)


HOSTILE = {
    "no JSON": '{"text": ',
    "an array": "[1, 2]",
    "a number": '{"text": 7}',
    "another name": '{"txt": "a"}',
    "nothing": '{"text": null}',
    "blanks": '{"text": "  "}',
    "half a surrogate": '{"text": "\\ud800"}',
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_row_is_an_error_with_its_number_or_is_counted(tmp_path: Path, row: str) -> None:
    documents = [text(n) for n in range(30)]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": document}) for document in documents]
    path.write_text("\n".join([*lines[:7], row, *lines[7:]]) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl: row 8 must .*--skip-bad-rows"):
        made([str(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = build(Gathering([str(path)], skip_bad_rows=True), BYTE, tmp_path / "out", processes=1)
    assert report.bad_rows == 1
    assert report.documents == 30
    assert any("1 rows are left out, the first: row 8" in line for line in report.notes)


def test_a_set_of_the_hub_needs_its_package_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'loquela\[hub\]'"):
        made(["hub:owner/name"], tmp_path / "out")


def test_a_set_of_the_hub_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    documents, asked = [text(n) for n in range(30)], []

    def load_dataset(name: str, split: str, streaming: bool) -> Any:
        asked.append((name, split, streaming))
        return iter({"text": document} for document in documents)

    stub = types.SimpleNamespace(
        load_dataset=load_dataset, load_dataset_builder=lambda name: types.SimpleNamespace(hash="0123abcd")
    )
    monkeypatch.setitem(sys.modules, "datasets", stub)
    made(["hub:owner/name:test"], tmp_path / "out")
    assert set(asked) == {("owner/name", "test", True)}
    assert sorted(itertools.chain(*documents_of(tmp_path / "out"))) == sorted(documents)
    record = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert record["sources"] == [{"name": "hub:owner/name:test", "sha256": "0123abcd"}]


# -- failures


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.bin", "corpus.json", "train.index"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_directory_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    made([rows(tmp_path / "a.jsonl", [text(n) for n in range(60)])], tmp_path / "out", validation_fraction=0.3)
    file = tmp_path / "out" / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flip" else content[:-3])
    with pytest.raises(DataError, match="must be as `loquela data build` made it, but is not"):
        open_built(tmp_path / "out")


def test_calls_that_cannot_be_meant(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", [text(n) for n in range(30)])
    with pytest.raises(UsageError, match="must not exist yet"):
        made([source], tmp_path)
    for wrong in ({"validation_fraction": 1.0}, {"near": 0.0}, {"near": 1.5}):
        with pytest.raises(UsageError, match="validation_fraction must be"):
            made([source], tmp_path / "out", **wrong)
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(DataError, match="must have documents, but has none"):
        made([str(tmp_path / "none.jsonl")], tmp_path / "out")


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder.built, "write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made([rows(tmp_path / "a.jsonl", [text(n) for n in range(30)])], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert built.is_built(tmp_path / "out") is False
