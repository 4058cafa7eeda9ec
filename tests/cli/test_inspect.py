"""`loquela inspect` as a stranger would call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loquela import peft
from loquela.api import load

Run = Callable[..., Any]
TEXT = "The cat sat on the mat"


def test_the_list_of_pictures(loquela: Run) -> None:
    done = loquela("inspect")
    assert done.code == 0
    for word in ("attention", "anatomy", "dims=2", "forgetting"):
        assert word in done.out


def test_data_of_a_picture(loquela: Run, model_directory: Path) -> None:
    done = loquela("inspect", "attention", "-m", model_directory, TEXT, "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    tokens = load(model_directory).tokenizer.encode(TEXT)
    assert len(found["tokens"]) == len(tokens)
    weights = np.array(found["attention"])
    assert weights.shape == (2, 4, len(tokens), len(tokens))
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5
    assert loquela("inspect", "attention", "-m", model_directory, "--json", stdin=TEXT + "\n").out == done.out


def test_options_and_settings(loquela: Run, model_directory: Path) -> None:
    found = json.loads(loquela("inspect", "next", "-m", model_directory, TEXT, "top=3", "top_k=2", "--json").out)
    assert len(found["top"]) == 3
    assert found["stages"][-1]["kept"] == 2
    assert [token["after"] > 0 for token in found["top"]] == [True, True, False]
    shown = json.loads(loquela("inspect", "loop", "-m", model_directory, TEXT, "max_new_tokens=4", "--json").out)
    assert len(shown["steps"]) == 4
    found = json.loads(
        loquela("inspect", "diff", "-m", model_directory, TEXT, f"other={model_directory}", "--json").out
    )
    assert {change for change in found["change"] if change is not None} == {0.0}
    assert {row["moved"] for row in found["moved"]} == {0.0}


@pytest.mark.parametrize("what", ["anatomy", "attention", "attribution", "lens", "loop", "next", "tokens"])
def test_drawn_where_no_file_is_named(loquela: Run, model_directory: Path, what: str) -> None:
    done = loquela("inspect", what, "-m", model_directory, TEXT)
    assert done.code == 0
    assert len(done.out.splitlines()) > 3
    assert "\x1b" not in done.out


def test_a_file(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "lens.html"
    done = loquela("inspect", "lens", "-m", model_directory, TEXT, "--output", file)
    assert (done.code, done.out) == (0, "")
    assert str(file) in done.err.replace("\n", "")
    assert "What the model would say" in file.read_text()
    both = loquela("inspect", "lens", "-m", model_directory, TEXT, "-o", file, "--json")
    assert "rank" in json.loads(both.out)


def test_a_report(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.html"
    assert loquela("inspect", "all", "-m", model_directory, TEXT, "--report", file).code == 0
    content = file.read_text()
    assert len(content.encode()) < 6_000_000
    for heading in ("attention: who looks at whom", "anatomy: the loaded model", "gradients: how far back"):
        assert heading in content
    assert "a diff needs a second model" in content  # said, not left out
    assert loquela("inspect", "tokens,next", "-m", model_directory, TEXT, "--report", file).code == 0
    assert "attention: who" not in file.read_text()


def test_an_adapter(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    network = load(model_directory).network
    peft.attach(network, peft.config_for("lora", r=2, target_modules="all-linear"), "mine", seed=0)
    with torch.no_grad():
        for parameter in peft.trainable(network, "mine").values():
            parameter += 0.1
    peft.save_adapter(network, "mine", tmp_path / "mine", base=str(model_directory))
    worn = ("-m", model_directory, "--adapter", tmp_path / "mine", "--json")
    assert json.loads(loquela("inspect", "anatomy", *worn).out)["adapter"]["method"] == "lora"
    changed = json.loads(loquela("inspect", "diff", TEXT, *worn).out)["change"]
    assert max(abs(change) for change in changed if change is not None) > 1e-3


def test_wrong_usage(loquela: Run, model_directory: Path, tmp_path: Path) -> None:
    here = ("-m", model_directory)
    for arguments, said in [
        (("atention", *here, TEXT), "did you mean 'attention'"),
        (("attention", TEXT), "--model DIR"),
        (("attention", *here, TEXT, "heed=1"), "did you mean 'head'"),
        (("attention", *here, TEXT, "and more"), "one text, in quotes"),
        (("attention", *here, TEXT, "layer=x"), "layer must be a whole number"),
        (("attention,next", *here, TEXT), "--report FILE.html"),
        (("attention", *here, TEXT, "--output", tmp_path / "x.pdf"), "as .html, .png or .svg"),
        (("attention", *here, TEXT, "--report", tmp_path / "x.png"), "written as .html"),
        (("attention", *here, TEXT, "--view", "side", "-o", tmp_path / "x.html"), "a view of attention"),
        (("attention", *here, TEXT, "--view", "map"), "a file must be named"),
        (("next", *here, TEXT, "--report", tmp_path / "x.html", "--json"), "must be left out"),
    ]:
        done = loquela("inspect", *arguments)
        assert done.code == 2, arguments
        assert said in done.err.replace("\n", " ")
        assert done.out == ""
    assert loquela("inspect", "forgetting", tmp_path).code == 1
    assert "takes no text" in loquela("inspect", "anatomy", *here, TEXT).err
