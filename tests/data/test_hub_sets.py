"""Data sets by their name: read by the real package from a directory, and what is said where that cannot be."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from loquela.data.hub import HubSet, named, revision, rows
from loquela.data.pairs import Labelled, Tagged, read_examples
from loquela.errors import DataError, MissingExtraError, UsageError
from loquela.evaluation.run import prepare_task
from loquela.evaluation.task import Hub

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.jsonl}
  - {split: validation, path: validation.jsonl}
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': bad, '1': good}
---
"""


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A set with named labels in a directory, which the package reads as it would one of the Hub."""
    pytest.importorskip("datasets")
    place = tmp_path / "someone" / "films"
    place.mkdir(parents=True)
    (place / "README.md").write_text(CARD)
    for split, count in (("train", 30), ("validation", 12)):
        lines = [json.dumps({"text": f"film {split} {i}", "label": i % 2}) for i in range(count)]
        (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return "hub:someone/films"


@pytest.mark.filterwarnings("ignore")
def test_rows_with_the_names_of_their_labels(owner: str) -> None:
    examples = read_examples(owner)
    assert (examples.form, len(examples)) == ("classification", 30)
    assert examples.rows[1].meaning == Labelled("film train 1", "good")
    assert len(read_examples(f"{owner}:validation")) == 12
    assert any("30 rows, format classification" in note for note in examples.notes)
    assert revision(HubSet("someone/films"))
    with pytest.raises(DataError, match="someone/films must be a data set that can be read"):
        read_examples(f"{owner}:nothing")
    prepared = prepare_task(owner)
    assert prepared.task.kind == "choice"
    assert prepared.task.choices == ["bad", "good"]
    assert prepared.task.data.hub == Hub(path="someone/films")
    assert [row["text"] for row in prepared.rows] == [f"film validation {i}" for i in range(12)]
    assert "someone/films (validation): label, text → choice" in prepared.note


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", HubSet("owner/name")),
        ("owner/name:test", HubSet("owner/name", None, "test")),
        ("owner/name/config", HubSet("owner/name", "config")),
        ("hub:imdb", HubSet("imdb")),
        ("hub:owner/name/c:dev", HubSet("owner/name", "c", "dev")),
        ("rows.jsonl", None),
        ("data/rows.jsonl", None),
        ("data/rows.tsv.gz", None),
        ("/tmp/somewhere/x", None),
        ("name", None),
    ],
)
def test_names_of_sets_and_of_files(source: str, expected: HubSet | None) -> None:
    assert named(source) == expected


def test_what_lies_here_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert named("owner/name") is None
    for wrong in ("hub:", "hub:a//b", "hub:a/b/c/d"):
        with pytest.raises(UsageError, match="must be hub:NAME"):
            named(wrong)


def test_without_the_package_or_the_network_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'loquela\[hub\]'"):
        read_examples("owner/name")

    def load_dataset(name: str, **options: Any) -> Any:
        raise ConnectionError("no route to the Hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"owner/name must be .* but: no route to the Hub; give a file instead"):
        read_examples("owner/name")


def test_tags_are_named_too_and_a_stream_may_break(monkeypatch: pytest.MonkeyPatch) -> None:
    names = types.SimpleNamespace(names=["O", "B-PER"])

    class Stream(list[Any]):
        features = types.MappingProxyType({"tokens": object(), "ner_tags": types.SimpleNamespace(feature=names)})

    class Broken(Stream):
        def __iter__(self) -> Any:
            yield from super().__iter__()
            raise TimeoutError

    asked: list[tuple[Any, ...]] = []
    found = [{"tokens": ["Ana", "sings"], "ner_tags": [1, 0]}]

    def load_dataset(*names: str, split: str, streaming: bool) -> Any:
        asked.append((*names, split, streaming))
        return (Broken if split == "broken" else Stream)(found)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_examples("owner/name/es:dev").rows[0].meaning == Tagged(("Ana", "sings"), ("B-PER", "O"))
    assert asked == [("owner/name", "es", "dev", True)]
    with pytest.raises(DataError, match="but: TimeoutError"):
        list(rows(HubSet("owner/name", None, "broken")))
