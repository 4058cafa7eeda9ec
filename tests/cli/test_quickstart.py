from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from test_train import KEYS

from loquela.checkpoint.store import load_model
from loquela.errors import DataError, LoquelaError
from loquela.training import quickstart
from loquela.training.quickstart import MINIMUM, recipe_for
from loquela.training.recipe import Recipe

if TYPE_CHECKING:
    from conftest import Loquela as Run

TALE = """Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.
The sons had to grind, the donkey had to carry the grain and bring the flour, and the cat had to catch the mice.
"""


@pytest.fixture
def tale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tale.txt").write_text(TALE * 8)
    return tmp_path / "tale.txt"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps for any text: what is tested here is not how well it learns."""
    tier = quickstart._TIERS[-1]
    monkeypatch.setattr(quickstart, "_TIERS", (quickstart._Tier(0, 300, 128, 4, tier.learning_rate),))


@pytest.mark.usefixtures("short")
def test_from_a_text_to_a_talk(loquela: Run, tale: Path) -> None:
    done = loquela("quickstart", "tale.txt", stdin="Once upon\n/quit\n")
    assert done.code == 0, done.err
    assert Path("my-model/tale/model.safetensors").is_file()
    assert "bits per byte on the" in done.out
    assert "writes: " in done.err
    assert "it continues your text" in done.err
    second = loquela("quickstart", "tale.txt", stdin="Once upon\n")
    assert second.code == 0
    assert "my-model/tale holds this very run, finished" in second.err
    assert "writes: " not in second.err
    assert second.out.strip(), "straight to the talk"
    assert "bits per byte" not in second.out


@pytest.mark.usefixtures("short")
def test_the_page_is_open_while_one_talks(loquela: Run, tale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER", "true")  # a browser that opens nothing
    pages = []

    def look(model: object, **settings: object) -> None:
        url = beside_notes[-1].split(" at ")[1].split(" ")[0]
        pages.append(httpx.get(url).text)
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tale"
        gone.append(url)

    beside_notes: list[str] = []
    gone: list[str] = []
    monkeypatch.setattr("loquela.cli.beside.note", beside_notes.append)
    monkeypatch.setattr("loquela.cli.chat.talk", look)
    done = loquela("quickstart", "tale.txt", "--page")
    assert done.code == 0, done.err
    assert "<title>Loquela playground</title>" in pages[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(gone[0])


@pytest.mark.usefixtures("short")
def test_json_without_a_talk(loquela: Run, tale: Path) -> None:
    done = loquela("quickstart", tale, "--no-chat", "--json", "--output", "model", "--seed", "4")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert set(KEYS) <= result.keys()
    assert result["model"] == "model"
    assert Recipe.load(Path("model/recipe.yaml")).seed == 4


@pytest.mark.usefixtures("short")
def test_without_a_talk_it_ends_after_the_sample(loquela: Run, tale: Path) -> None:
    outs = [loquela("quickstart", tale, "--no-chat", "--output", "model").out for _ in range(2)]
    sample = json.loads(Path("model/train_results.json").read_text())["sample"]
    assert all(sample["prompt"] + sample["text"] in out for out in outs)


@pytest.mark.usefixtures("short")
def test_another_text_in_the_directory_is_refused_unless_overwritten(loquela: Run, tale: Path) -> None:
    assert loquela("quickstart", tale, "--no-chat", "--output", "model").code == 0
    tale.write_text(TALE * 9)
    refused = loquela("quickstart", tale, "--no-chat", "--output", "model")
    assert refused.code == 1
    assert "tale.txt has changed since" in refused.err
    assert loquela("quickstart", tale, "--no-chat", "--output", "model", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none.txt"], 1, "'none.txt' does not exist"),
        (["tale.txt", "--corpus", "quijote"], 2, "one text must be given, but there are two"),
        (["--corpus", "quixote"], 2, "did you mean 'quijote'?"),
        (["tiny.txt"], 1, f"must have at least {MINIMUM} characters"),
        (["latin.txt"], 1, "latin-1"),
        (["binary.bin"], 1, ""),
    ],
)
def test_what_cannot_be_is_one_line(loquela: Run, tale: Path, arguments: list[str], code: int, said: str) -> None:
    Path("tiny.txt").write_text("too little")
    Path("latin.txt").write_bytes("año ".encode("latin-1") * 400)
    Path("binary.bin").write_bytes(bytes(range(256)) * 10)
    done = loquela("quickstart", *arguments, "--no-chat")
    assert done.code == code
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not Path("my-model").exists()


@pytest.mark.parametrize("characters", [MINIMUM, 500, 1000, 4000])
def test_the_shortest_texts_train(tale: Path, characters: int) -> None:
    """Down to the minimum there is a block to train on and an end to validate on."""
    from loquela.training.run import train

    text = (TALE * 30)[:characters]
    tale.write_text(text)
    recipe = recipe_for(tale, "model", seed=characters)
    result = train(recipe.model_copy(update={"max_steps": 3}))
    assert result.val_tokens >= 1
    assert load_model("model").network.context_length == recipe.block_size


def test_recipes_grow_with_the_text(tmp_path: Path) -> None:
    steps, sizes = [], []
    for characters in (MINIMUM, 20_000, 100_000, 300_000, 1_000_000):
        (tmp_path / "text.txt").write_text("a line of words\n" * (characters // 16 + 1))
        recipe = recipe_for(tmp_path / "text.txt", "model")
        steps.append(recipe.max_steps)
        sizes.append(recipe.tokenizer.vocab_size)  # type: ignore[union-attr]
        assert yaml.safe_load(recipe.to_yaml())
    assert steps == sorted(steps)  # type: ignore[type-var]
    assert sizes == sorted(sizes)  # type: ignore[type-var]
    (tmp_path / "text.txt").write_text("a" * (MINIMUM - 1))
    with pytest.raises(DataError, match="at least"):
        recipe_for(tmp_path / "text.txt", "model")


def test_of_a_huge_text_a_bounded_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line of words\n" * 1_000_000)
    recipe = recipe_for(tmp_path / "text.txt", "model")
    assert recipe.validation_fraction * 16_000_000 <= quickstart.HELD_OUT


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("tinyshakespeare.txt", 2.5),
        ("es_unamuno_niebla.txt", 2.5),
        ("wikitext2_valid.txt", 2.5),
        ("the_verdict.txt", 3),
    ],
)
def test_it_learns_real_texts_in_a_minute(shared_data: Path, tmp_path: Path, name: str, bound: float) -> None:
    from loquela.training.run import train

    try:
        result = train(recipe_for(shared_data / "lm" / name, tmp_path / "model"))
    except LoquelaError as error:
        pytest.fail(str(error))
    assert result.val_bits_per_byte < bound
