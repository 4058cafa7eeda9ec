"""The house models are opened by their names, wherever a directory is; a path that exists wins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import loquela
from loquela import peft
from loquela.checkpoint import house
from loquela.checkpoint.hub import resolve
from loquela.checkpoint.store import load_model
from loquela.cli import play
from loquela.cli.serve import adapters_of
from loquela.errors import CheckpointError, UsageError


@pytest.fixture
def own_house(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house with one small model; the test stands in an empty directory."""
    place = tmp_path / "house"
    shutil.copytree(model_directory, place / "tales")
    monkeypatch.setattr(house, "HOUSE", place)
    monkeypatch.setattr(house, "ADAPTERS", place / "adapters")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return place


def test_a_name_opens_the_house_model(own_house: Path) -> None:
    assert house.model_names() == ["tales"]
    assert resolve("tales") == resolve(Path("tales")) == own_house / "tales"
    assert loquela.load("tales").generate("The", max_new_tokens=2, seed=0).text


def test_a_path_that_exists_wins_over_a_name(own_house: Path) -> None:
    Path("tales").mkdir()
    assert resolve("tales") == Path("tales")
    with pytest.raises(CheckpointError, match=r"must have a config\.json"):
        load_model("tales")


def test_what_is_shipped_is_found_beside_a_path_of_its_name(own_house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "SHIPPED", "tales")
    assert play.shipped_model() == "tales"
    Path("tales").mkdir()
    assert play.shipped_model() == str(own_house / "tales")


@pytest.mark.parametrize("name", ["tale", "adapters", ".", "..", "tales/", "./tales", "elsewhere/../tales"])
def test_only_the_very_name_is_one(own_house: Path, name: str) -> None:
    assert resolve(name) == Path(name) or not resolve(name).is_relative_to(own_house)


def test_an_unknown_name_is_told_those_that_there_are(own_house: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist, nor is it one that the package has \(tales\)$"):
        loquela.load("talse")


def test_an_adapter_is_worn_by_its_name(own_house: Path) -> None:
    network = load_model("tales").network
    peft.attach(network, peft.config_for("ia3"), "mine", seed=0)
    peft.save_adapter(network, "mine", own_house / "adapters" / "mine", base="tales")
    model = loquela.load("tales", adapter="mine")
    assert model.adapters == ("default",)
    assert adapters_of(["mine", "other=mine"]) == dict.fromkeys(("mine", "other"), own_house / "adapters" / "mine")
    with pytest.raises(CheckpointError, match=r"nor is it one that the package has \(mine\)$"):
        loquela.load("tales", adapter="yours")
    with pytest.raises(UsageError, match="NAME=DIR"):
        adapters_of(["yours"])
