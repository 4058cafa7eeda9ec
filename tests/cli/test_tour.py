"""`loquela tour`: every row in both languages, on a model; every command that it names is one that exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.core import TyperCommand

from loquela.checkpoint.store import save_model
from loquela.cli import tour
from loquela.cli.main import app
from loquela.cli.tune import _extra
from loquela.inspection import PICTURES
from loquela.inspection.reading import UnavailableError
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer
from loquela.training.recipe import Recipe
from loquela.training.recipe_file import read
from loquela.tuning.recipe import TuneRecipe

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
ROWS = tour.rows()
COMMANDS = sorted({command for row in ROWS for command in (*row.live, *row.house, *row.more)})
LANGUAGES = ("en", "es")


def words_of(command: str) -> list[str]:
    """What a shell would hand to `loquela`."""
    return shlex.split(command.rpartition(" | ")[2].replace("{model}", "DIR").replace("{text}", "'some text'"))


def test_the_lecture_has_28_rows_each_whole_in_both_languages() -> None:
    assert [row.number for row in ROWS] == list(range(1, 29))
    for row in ROWS:
        for texts in (row.concept, row.says, *([row.sees] if row.sees else [])):
            assert sorted(texts) == sorted(LANGUAGES), row.number
            assert all(text.strip() for text in texts.values())
            assert texts["en"] != texts["es"] or row.concept["en"] == "Softmax" or row.concept["en"] == "LoRA"
        assert row.live or (row.sees and row.more), f"row {row.number} shows nothing and says nothing of it"


def test_the_page_has_what_a_row_points_to() -> None:
    sections = (ROOT / "src/loquela/serving/page/js/main.js").read_text(encoding="utf-8")
    for row in ROWS:
        for tab in row.page[:1]:
            assert f"  {tab}: {{ title:" in sections, row.number
        assert set(row.page[1:]) <= set(PICTURES), row.number
    assert sum(bool(row.page) for row in ROWS) > 24


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_exists(command: str) -> None:
    """The verb's own parser takes the flags; pictures, options and keys of recipes are known names."""
    program, verb, *rest = words_of(command)
    assert program == "loquela"
    found: Any = typer.main.get_command(app)
    found = found.get_command(None, verb)
    assert found is not None, verb
    if not isinstance(found, TyperCommand):
        found, rest = found.get_command(None, rest[0]), rest[1:]
        assert found is not None
    context = found.make_context("loquela", list(rest), resilient_parsing=False)
    for recipe in (word for word in rest if word.endswith(".yaml")):
        assert (ROOT / recipe).is_file(), recipe
    if verb == "inspect":
        picture = PICTURES[context.params["what"]]
        assert all(word.partition("=")[0] in picture.options or picture.takes_settings for word in rest if "=" in word)
    if verb == "tune":
        source, changes = _extra(context.args)
        read(ROOT / source) if source else None
        race = context.params["race"]
        for method in race.split(",") if race else [context.params["method"] or "lora"]:
            given = {"model": "DIR", "data": "rows.jsonl", "output_dir": "out", "method": method}
            TuneRecipe.load(given, changes)  # raises for a method, and for a setting that it does not have
    if verb == "train":
        assert all(word.partition(".")[0] in Recipe.model_fields for word in rest if "=" in word)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_whole_tour_in_a_pipe(loquela: Run, model_directory: Path, language: str) -> None:
    done = loquela("tour", "-m", model_directory, "--language", language)
    assert done.code == 0
    assert "cannot show it" not in done.out
    assert "no puede mostrarlo" not in done.out
    flat = " ".join(done.out.split())
    for row in ROWS:
        assert f"{row.number} · {row.concept[language]}" in done.out
        assert row.says[language] in flat
        for command in (*row.live, *row.more):
            shown = command.replace("{model}", str(model_directory)).replace("{text}", "'Once upon a time'")
            assert f"  {shown}\n" in done.out  # on one line, to be copied
    assert "{" not in done.out.replace('{"', "").replace("{}", "")


@pytest.mark.parametrize("row", [row for row in ROWS if row.house], ids=lambda row: str(row.number))
def test_on_the_house_models_where_none_is_named(
    loquela: Run, row: tour.Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = loquela("tour", "--row", row.number)
    assert done.code == 0, done.err
    assert "cannot show it" not in done.out
    for command in row.house:
        shown = command.replace("{text}", "'Once upon a time'")
        assert f"  {shown}\n" in done.out
        assert done.out.split(f"  {shown}\n")[1].strip()
    assert list(tmp_path.iterdir()) == []


def test_what_runs_is_the_command_that_is_printed(loquela: Run, model_directory: Path) -> None:
    text = "The cat sat on the mat"
    shown = loquela("tour", "-m", model_directory, "--row", "2", "--text", text).out
    assert loquela("score", "-m", model_directory, stdin=text).out in shown
    assert loquela("inspect", "tokens", "-m", model_directory, text).out in shown
    assert "1 · " not in shown
    assert "3 · " not in shown


def test_what_a_model_cannot_show_is_said(loquela: Run, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnavailableError("attention is unavailable: this network has none")

    monkeypatch.setattr(PICTURES["attention"].module, "data", refuse)
    done = loquela("tour", "-m", model_directory, "--from", "11")
    assert done.code == 0
    assert "This model cannot show it: attention is unavailable: this network has none" in done.out
    assert "28 · " in done.out
    long = loquela("tour", "-m", model_directory, "--row", "11", "--text", "a cat " * 100, "--language", "es")
    assert (long.code, "no puede mostrarlo" in long.out) == (0, True)


@pytest.mark.parametrize(
    ("raw", "lacks"),
    [
        ({"model_type": "lstm", "hidden_size": 24, "num_hidden_layers": 1}, 11),
        (
            {
                "model_type": "bert",
                "architectures": ["BertForMaskedLM"],
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
            15,
        ),
    ],
    ids=["lstm", "bert"],
)
def test_a_model_of_another_kind(
    loquela: Run, model_directory: Path, tmp_path: Path, raw: dict[str, Any], lacks: int
) -> None:
    tokenizer = Tokenizer.load(model_directory)
    module = architecture(raw["model_type"])
    torch.manual_seed(0)
    network = module.NETWORK(module.CONFIG.from_dict(raw | {"vocab_size": tokenizer.vocab_size}))
    save_model(network, tokenizer, tmp_path / "model")
    done = loquela("tour", "-m", tmp_path / "model")
    assert done.code == 0, done.err
    _, *shown = re.split(r"^\d+ · ", done.out, flags=re.MULTILINE)
    assert len(shown) == 28
    assert "This model cannot show it: " in shown[lacks - 1]


def test_enter_goes_on_and_q_leaves(loquela: Run, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "_interactive", lambda: True)
    done = loquela("tour", "-m", model_directory, "--from", "17", stdin="\nq\n\n")
    assert done.code == 0
    assert "18 · " in done.out
    assert "19 · " not in done.out
    assert done.err.count("q: leave") == 2
    assert "18 · " not in loquela("tour", "-m", model_directory, "--from", "17", stdin="").out  # Ctrl-D
    answers = loquela("tour", "-m", model_directory, "--from", "2", stdin="q\n").out
    assert "bits per byte" in answers  # what the person types is not what `score` reads


def test_an_interruption_ends_the_tour(loquela: Run, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("loquela.api.LanguageModel.score", interrupt)
    done = loquela("tour", "-m", model_directory, "--from", "2")
    assert done.code == 130
    assert "3 · " not in done.out


def test_the_list_needs_no_model(loquela: Run) -> None:
    for language in LANGUAGES:
        lines = loquela("tour", "--list", "--language", language).out.splitlines()
        assert lines == [f"{row.number:>2}  {row.concept[language]}" for row in ROWS]


def test_wrong_usage(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    here = ("-m", model_directory)
    for arguments, code, said in [
        ((*here, "--row", "29"), 2, "from 1 to 28, but is 29"),
        ((*here, "--from", "40"), 2, "from 1 to 28, but is 40"),
        ((*here, "--row", "2", "--from", "3"), 2, "both are"),
        ((*here, "--text", " "), 2, "is empty"),
        ((*here, "--language", "fr"), 2, "fr"),
        (("-m", tmp_path / "nowhere"), 1, "nowhere"),
    ]:
        done = loquela("tour", *arguments)
        assert (done.code, done.out) == (code, ""), arguments
        assert said in done.err.replace("\n", " ")


def test_without_a_model_the_way_out_is_said(loquela: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loquela.checkpoint.house.HOUSE", tmp_path)
    done = loquela("tour", "--row", "1")
    assert done.code == 2
    assert "loquela quickstart makes one" in done.err.replace("\n", " ")
