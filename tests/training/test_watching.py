"""What a run leaves for those who watch it: the report, the receipt, and further places to log to."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from interrupting import RECIPE, write_recipe

from loquela.data.readers import file_hash
from loquela.errors import MissingExtraError
from loquela.training.log import Row
from loquela.training.receipt import code_hash
from loquela.training.report import write_report
from loquela.training.run import train


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("text")
    write_recipe(directory)
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    raw["model"].update(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    raw.update(data=str(directory / "text.txt"), max_steps=8, eval_steps=4, save_steps=4, logging_steps=2)
    raw.update(sample_steps=3, sample_prompt="the sea & <b>")
    return raw


@pytest.fixture(scope="module")
def trained(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "out"
    train({**recipe, "output_dir": str(output)})
    return output


class Links(HTMLParser):
    """Everything on a page that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        self.scripts += tag == "script"


def test_the_report_is_one_page_that_fetches_nothing(trained: Path) -> None:
    file = trained / "report.html"
    page = file.read_text()
    assert file.stat().st_size < 6e6
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "default-src 'none'" in page
    assert "@import" not in page.split("<script>")[0]
    for wanted in ("bits per byte, held out", "norm of the gradient", "tokens per second", "MFU"):
        assert wanted in page
    made = json.loads((trained / "receipt.json").read_text())
    assert made["data"]["sha256"][0] in page
    assert made["made_by"]["code_sha256"] in page
    assert "model_type: llama" in page
    assert "the sea &amp; &lt;b&gt;" in page
    assert "step 3:" in page
    assert "step 6:" in page


def test_what_a_model_writes_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\u2028"
    row = Row(1, 10, 1.0, 2.0, 0.1, 1.0)
    made: dict[str, Any] = {
        "made_by": {"loquela": "0", "code_sha256": "0", "command": ""},
        "recipe": {"model": {"model_type": evil}, "sample_prompt": evil},
        "data": {"files": [evil], "sha256": ["0"], "train_tokens": 1, "validation_tokens": 1, "tokenizer_sha256": "0"},
        "seeds": {"seed": 0},
        "precision": {"products": evil, "weights": "float32"},
        "parameters": 1,
        "steps": 1,
        "tokens": 1,
        "seconds": 1.0,
        "processes": 1,
        "operations": 1,
        "energy": {"kilowatt_hours": 0.1, "watts_per_process": 5, "formula": evil},
        "environment": {"processor": evil},
        "result": {"val_bits_per_byte": None, "val_loss": 1.0, "val_tokens": 1, "tokens_per_second": 1.0},
    }
    samples = [{"step": 1, "prompt": evil, "text": evil}]
    write_report(tmp_path / "report.html", evil, [row], tmp_path / "none.csv", samples, made)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    links = Links()
    links.feed(page)
    assert links.scripts == 1 + 4, "plotly, and a chart each"


def test_the_receipt_says_how_the_model_was_made(trained: Path, recipe: dict[str, Any]) -> None:
    for place in (trained, trained / "checkpoint-8"):
        made = json.loads((place / "receipt.json").read_text())
        assert made["data"]["sha256"] == [file_hash(Path(recipe["data"]))]
        assert made["data"]["files"] == ["text.txt"]
        assert made["recipe"]["seed"] == made["seeds"]["seed"] == 11
        assert made["made_by"]["code_sha256"] == code_hash()
        assert made["steps"] == 8
        assert made["precision"] == {"products": "float32", "weights": "float32"}
        energy = made["energy"]
        watts = energy["watts_per_process"]
        assert energy["kilowatt_hours"] == pytest.approx(made["seconds"] * watts / 3.6e6, rel=0.01)
        assert made["operations"] > 6 * 8 * 8 * 48 * 16 * 16
        assert {"python", "torch", "processor", "threads"} <= made["environment"].keys()
    result = json.loads((trained / "receipt.json").read_text())["result"]
    assert result["val_loss"] == json.loads((trained / "train_results.json").read_text())["val_loss"]
    manifest = json.loads((trained / "manifest.json").read_text())
    assert "receipt.json" in manifest["files"], "a change in it is found"


# -- further places


def test_tensorboard_has_the_numbers_of_the_rows(recipe: dict[str, Any], tmp_path: Path, trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train({**recipe, "output_dir": str(tmp_path / "out"), "report_to": "tensorboard"})
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    names = {"train/loss", "train/bits_per_byte", "train/gradient_norm", "train/learning_rate", "speed/mfu",
             "validation/loss", "validation/bits_per_byte", "speed/tokens_per_second"}  # fmt: skip
    assert names <= set(events.Tags()["scalars"])
    rows = (trained / "loss.csv").read_text().splitlines()[1:]
    again = {**recipe, "output_dir": str(tmp_path / "out"), "max_steps": 1, "overwrite_output_dir": True}
    train(again)
    assert not (tmp_path / "out" / "tensorboard").exists(), "what is begun anew is begun anew in all its files"
    logged = events.Scalars("train/loss")
    assert [point.step for point in logged] == [int(row.split(",")[0]) for row in rows]
    assert [point.value for point in logged] == pytest.approx([float(row.split(",")[2]) for row in rows], rel=1e-6)


class Fake(ModuleType):
    """Stands for wandb and mlflow: notes every call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append((name, arguments, keywords))
            return self

        return call


@pytest.mark.parametrize(("name", "logs", "ends"), [("wandb", "log", "finish"), ("mlflow", "log_metrics", "end_run")])
def test_other_places_are_told_every_row_and_closed(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, logs: str, ends: str
) -> None:
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    train({**recipe, "output_dir": str(tmp_path / "out"), "report_to": name})
    told = [(arguments[0], keywords["step"]) for call, arguments, keywords in fake.calls if call == logs]
    numbers = [(values, step) for values, step in told if len(values) > 2]
    assert [step for _, step in numbers] == [2, 4, 6, 8]
    assert all("loss" in " ".join(values) for values, _ in numbers)
    assert fake.calls[-1][0] == ends


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_place_whose_package_is_missing_says_what_to_install(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'loquela[{name}]'")):
        train({**recipe, "output_dir": str(tmp_path / "out"), "report_to": name})


def test_a_plan_with_the_measured_share_of_the_peak_gives_the_measured_speed(trained: Path) -> None:
    """The same formula on paper and in timing.csv: what the plan says of a run is what the run did."""
    import csv

    import torch

    from loquela.checkpoint.configs import read_config
    from loquela.checkpoint.flops import peak_flops
    from loquela.checkpoint.plan import Hardware, plan

    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None
    with (trained / "timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    on = Hardware("this", flops=peak, memory=1e9, watts=5)
    for row in rows:
        mfu = float(row["mfu"])
        made = plan(read_config(trained), on=on, devices=1, sequence=48, rows=4, mfu=max(mfu, 1e-9))
        assert made.fits, "and it did run in much less than a gigabyte"
        # mfu is written with six digits
        assert abs(made.tokens_per_second / float(row["tokens_per_second"]) - 1) < 0.6e-6 / max(mfu, 1e-9) + 1e-3
