"""Every code block of the documentation is run, page by page, as a reader would: in order, in an empty directory.

What the pages take as given (a model called DIR, a text called my.txt …) is made here from the text that is shipped.
Five things differ, and nothing else: training ends after a few steps, a task asks a few items, a tour shows a row or
two, port 8000 is one that is free, and a server computes in torch, since compiling the other engine's kernels can take
longer than the whole page.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import Runner, blocks

from loquela import peft
from loquela.checkpoint import house
from loquela.checkpoint.store import load_model
from loquela.data.corpora import resolve
from loquela.evaluation import run
from loquela.training.recipe import Recipe
from loquela.tuning.recipe import TuneRecipe

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HOUSE = {"stories", "cuentos", "cloze", "translator", "recurrent", "words", "dogs"}
STEPS = 2
ITEMS = 4


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language, f"{name(page)}:{block.line} has no language"


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    left_out = [f"{name(page)}:{b.line}: {b.left_out}" for page in PAGES for b in blocks(page) if b.left_out]
    run = [b for page in PAGES for b in blocks(page) if b.is_run]
    print(*left_out, f"{len(run)} blocks are run, {len(left_out)} are not", sep="\n")
    assert len(left_out) <= 22
    assert all(len(reason.split(": ", 1)[1]) > 10 for reason in left_out)
    assert len(run) > 3 * len(left_out)


def test_code_that_is_shown_is_the_source_s() -> None:
    for page in PAGES:
        for block in blocks(page):
            if source := block.remarks.get("source"):
                said = (ROOT / "src" / source).read_text(encoding="utf-8")
                lines = {line.split("  # noqa")[0].strip() for line in said.splitlines()}
                gone = [line for line in block.text.splitlines() if line.strip() and line.strip() not in lines]
                assert not gone, f"{name(page)}:{block.line} shows what {source} does not say: {gone}"


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take as given."""
    place = tmp_path_factory.mktemp("given")
    text = gzip.decompress(resolve("shakespeare").read_bytes()).decode()
    (place / "my.txt").write_text(text[:40_000], encoding="utf-8")
    speeches = re.findall(r"([A-Z][A-Za-z ]+):\n(.+?)\n\n", text[:60_000], re.DOTALL)
    said = [(speaker, " ".join(speech.split())[:90]) for speaker, speech in speeches]
    with (place / "examples.jsonl").open("w", encoding="utf-8") as rows:
        for speaker, speech in said[:40]:
            rows.write(json.dumps({"prompt": f"{speaker.title()} says:", "completion": f" {speech}"}) + "\n")
    with (place / "reviews.tsv").open("w", encoding="utf-8") as rows:
        for speaker, speech in said[:60]:
            rows.write(f"{speech}\t{'citizen' if 'Citizen' in speaker else 'lord'}\n")
    recipe: dict[str, Any] = {
        "model": {
            "model_type": "qwen3",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "data": str(place / "my.txt"),
        "block_size": 64,
        "per_device_train_batch_size": 16,
        "max_steps": 25,
        "learning_rate": 0.01,
        "output_dir": str(place / "DIR"),
    }
    from loquela.training.run import train

    train(Recipe.load(recipe))
    (place / "DIR" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    for title, method, settings in (
        ("sentiment", "lora", {"r": 2, "init_lora_weights": False}),
        ("translate", "prompt", {"num_virtual_tokens": 4}),
        ("polite", "lora", {"r": 2, "init_lora_weights": False}),
        ("mine", "lora", {"r": 2, "init_lora_weights": False}),
    ):
        network = load_model(place / "DIR").network
        peft.attach(network, peft.config_for(method, **settings), title, seed=1)
        peft.save_adapter(network, title, place / "adapters" / title, base="DIR")
    return place


def houses(page: Path) -> set[str]:
    """The house models and adapters that a page's blocks open."""
    said = "\n".join(block.text for block in blocks(page) if block.is_run)
    opened = HOUSE & set(re.findall(r"""(?:-m |--adapter |load\("|": ")(\w+)""", said))
    return opened | {"stories"} if "loquela tour" in said else opened


def furnish(directory: Path, stage: Path) -> None:
    """Put what is given into a page's directory, under all the names that the pages use."""
    for given in ("my.txt", "examples.jsonl", "reviews.tsv", "DIR"):
        (directory / given).symlink_to(stage / given)
    for model in ("base", "tuned", "my-model/shakespeare", "tokenizer"):
        shutil.copytree(stage / "DIR", directory / model)
    (directory / "adapters").mkdir()
    for adapter in sorted((stage / "adapters").iterdir()):
        (directory / "adapters" / adapter.name).symlink_to(adapter)
    (directory / "books").mkdir()
    (directory / "books" / "one.txt").symlink_to(stage / "my.txt")
    (directory / "crawl").mkdir()
    with gzip.open(directory / "crawl" / "one.jsonl.gz", "wt", encoding="utf-8") as rows:
        rows.writelines(json.dumps({"text": part}) + "\n" for part in (stage / "my.txt").read_text().split("\n\n"))
    recipe = yaml.safe_load((ROOT / "recipes" / "shakespeare.yaml").read_text(encoding="utf-8"))
    del recipe["tokenizer"]
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for part in ("recipes", "benchmarks"):
        (directory / part).symlink_to(ROOT / part)
    data = Path(os.environ.get("LOQUELA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if data.is_dir():
        (directory / "data").symlink_to(data)
        for file in ("stories260K.bin", "tok512.bin"):
            (directory / file).symlink_to(data / "models" / "stories260K" / file)


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training end after a few steps, and every task ask a few items."""

    def limited(cls: Any, **changes: Any) -> None:
        whole = cls.load.__func__

        def load(kind: Any, source: Any, overrides: Any = ()) -> Any:
            recipe = whole(kind, source, overrides)
            return recipe.model_copy(update={**changes, "max_steps": min(recipe.max_steps or STEPS, STEPS)})

        monkeypatch.setattr(cls, "load", classmethod(load))

    limited(Recipe, eval_steps=None, sample_steps=None, warmup_steps=0)
    limited(TuneRecipe, eval_steps=None, probe_tokens=64, validation_rows=4)
    asked = run.sample
    monkeypatch.setattr(run, "sample", lambda rows, limit: asked(rows, min(limit or ITEMS, ITEMS)))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.is_run for b in blocks(p))], ids=name)
def test_code_blocks(page: Path, stage: Path, tmp_path: Path, cut_short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := houses(page) - {*house.model_names(), *house.adapter_names()}:
        pytest.skip(f"house models that are not in this checkout: {', '.join(sorted(missing))}")
    furnish(tmp_path, stage)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = Runner(name(page), tmp_path, port, monkeypatch)
    try:
        for block in blocks(page):
            if block.is_run and Path(block.remarks.get("needs", ".")).exists():
                runner.run(block)
            elif block.language == "yaml":
                yaml.safe_load(block.text)
            elif block.language == "json":
                json.loads(block.text)
    finally:
        runner.end()
