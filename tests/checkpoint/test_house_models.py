"""The models and adapters in the package: each opens, says where it comes from, and does its one thing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import loquela
from loquela.checkpoint import house
from loquela.checkpoint.files import MANIFEST, verify
from loquela.data.corpora import resolve as corpus
from loquela.data.readers import read_pieces
from loquela.generation.fill import fill
from loquela.serving.options import Options

MODELS = ["cloze", "cuentos", "recurrent", "stories", "translator"]
ADAPTERS = ["dogs", "shakespeare", "words"]
PLACES = sorted([*(house.HOUSE / name for name in MODELS), *(house.ADAPTERS / name for name in ADAPTERS)])
LIMIT = 25_000_000
ROOT = Path(__file__).resolve().parents[2]
OPENING = "Once upon a time, there was a little"
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her mom."


@pytest.fixture(scope="module")
def stories() -> loquela.LanguageModel:
    return loquela.load("stories", adapter={name: name for name in ADAPTERS})


def written(model: loquela.LanguageModel, prompt: str, **settings: Any) -> str:
    completion = model.generate(prompt, **({"max_new_tokens": 40, "temperature": 0} | settings))
    assert isinstance(completion.text, str)
    return completion.text


def known(text: str, name: str) -> float:
    """The share of the words of a text that a text in the package has too."""
    text_in_package = "".join(piece.text for piece in read_pieces(corpus(name)))
    words = set(re.findall(r"\w+", text_in_package.lower()))
    found = re.findall(r"\w+", text.lower())
    assert len(found) > 10, text
    return sum(word in words for word in found) / len(found)


def test_the_house_is_whole_and_small() -> None:
    assert house.model_names() == MODELS
    assert house.adapter_names() == ADAPTERS
    assert sum(file.stat().st_size for file in house.HOUSE.rglob("*") if file.is_file()) < LIMIT


@pytest.mark.parametrize("place", PLACES, ids=[place.name for place in PLACES])
def test_every_one_says_what_it_is_and_where_it_comes_from(place: Path) -> None:
    assert (place / MANIFEST).is_file()
    verify(place)
    card = (place / "README.md").read_text(encoding="utf-8")
    receipt = json.loads((place / "receipt.json").read_text(encoding="utf-8"))
    for heading in ("Text it learnt from", "How it was made", "Measured", "Samples", "Limits"):
        assert f"\n## {heading}\n" in card
    assert receipt["sources"]
    for source in receipt["sources"]:
        assert source["licence"] in card
        assert source["about"] in card
        assert re.fullmatch("[0-9a-f]{64}", source["sha256"])
    assert receipt["figures"]
    for what, value in receipt["figures"].items():
        assert f"| {what} | {value} |" in card
    assert receipt["seconds"] > 10
    assert f"| seconds | {receipt['seconds']:,.0f} |" in card
    for file in (f for f in place.iterdir() if f.suffix in (".json", ".md", ".csv")):
        assert not re.search(r"(^|[\s\"'(=])(/[a-z]+/|[A-Z]:\\)", file.read_text(encoding="utf-8")), file.name


@pytest.mark.parametrize("place", PLACES, ids=[place.name for place in PLACES])
def test_the_page_says_what_the_receipt_says(place: Path) -> None:
    page = (ROOT / "docs" / "house.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in page if line.startswith(f"| `{place.name}` |")]
    receipt = json.loads((place / "receipt.json").read_text(encoding="utf-8"))
    assert f"| {receipt['seconds']:,.0f} |" in row
    for what, value in receipt["figures"].items():
        assert f"{what}: {value}" in row


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_stored_in_half_and_computed_in_full(name: str) -> None:
    config = json.loads((house.HOUSE / name / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float16"
    model = loquela.load(name)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    stored = loquela.load(name, dtype="float16").network.state_dict()
    assert all(torch.equal(p.half(), stored[key]) for key, p in model.network.state_dict().items())


@pytest.mark.parametrize(("name", "bits"), [("stories", 0.9), ("recurrent", 1.2)])
def test_stories_are_expected_and_written(name: str, bits: float) -> None:
    model = loquela.load(name)
    text = written(model, OPENING)
    assert known(text, "shakespeare") > 0.7, text
    assert model.score(STORY).bits_per_byte < bits
    shuffled = " ".join(sorted(STORY.split()))
    assert model.score(shuffled).bits_per_byte > model.score(STORY).bits_per_byte + 1


def test_spanish_is_written() -> None:
    model = loquela.load("cuentos")
    text = written(model, "En un lugar de la Mancha", temperature=0.8, seed=0)
    assert known(text, "quijote") > 0.8, text
    spanish, english = "La casa de mi padre es muy grande.", "The house of my father is very big."
    assert model.score(spanish).bits_per_byte + 1 < model.score(english).bits_per_byte


def test_a_story_ends_by_itself(stories: loquela.LanguageModel) -> None:
    ends = [stories.generate("One day, a boy", max_new_tokens=220, seed=seed).finish_reason for seed in range(4)]
    assert "stop" in ends


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Once upon a [MASK], there was a little girl named Lily.", "time"),
        ("One day, the boy [MASK] to the park with his mom.", "went"),
    ],
)
def test_masks_are_filled(text: str, word: str) -> None:
    model = loquela.load("cloze")
    filled = fill(model.network, model.tokenizer, text)
    assert word in [alternative.text for alternative in filled.tokens[0].top[:3]]


@pytest.mark.parametrize(("english", "word"), [("I don't like coffee.", "café"), ("Where is my book?", "libro")])
def test_sentences_are_translated(english: str, word: str) -> None:
    model = loquela.load("translator")
    completion = model.generate(english)
    assert word in completion.text, completion.text
    assert completion.finish_reason == "stop"
    assert completion.text == model.generate(english, seed=5).text  # it does not draw


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_worn_by_those_who_ask_for_it(stories: loquela.LanguageModel, name: str) -> None:
    bare = written(stories, OPENING, adapter=None)
    assert bare == written(loquela.load("stories"), OPENING)
    assert written(stories, OPENING, adapter=name) != bare
    config = json.loads((house.ADAPTERS / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "stories"


def test_the_adapters_are_of_three_kinds_and_each_does_what_it_is_for(stories: loquela.LanguageModel) -> None:
    kinds = {
        json.loads((house.ADAPTERS / name / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
        for name in ADAPTERS
    }
    assert len(kinds) == 3
    told = written(stories, "Words: dog, park, ball. Story:", adapter="words", max_new_tokens=120)
    assert sum(word in told for word in ("dog", "park", "ball")) >= 2, told
    play = "ROMEO:\nWhat, shall I speak of love to thee, my lord?\n\nJULIET:\nAy, if thou wilt."
    assert stories.score(play, adapter="shakespeare").bits_per_byte < stories.score(play).bits_per_byte - 0.5


@pytest.mark.parametrize(("name", "kind"), [("stories", "AutoModelForCausalLM"), ("cloze", "AutoModelForMaskedLM")])
def test_transformers_opens_it_and_agrees(name: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    place = house.HOUSE / name
    theirs = getattr(transformers, kind).from_pretrained(place, dtype=torch.float32).eval()
    ours = loquela.load(name)
    ids = ours.tokenizer.encode("Once upon a time, there was a little girl.")
    assert transformers.AutoTokenizer.from_pretrained(place)("Once upon a time, there was a little girl.")[
        "input_ids"
    ] == list(ids)
    with torch.no_grad():
        difference = (theirs(torch.tensor([ids])).logits - ours.logits(ids)).abs().max()
    assert float(difference) < 1e-3


def test_play_opens_stories_with_its_adapters(loquela_play: list[Options]) -> None:
    (options,) = loquela_play
    assert options.model_name == "stories"
    assert options.adapters == {name: house.ADAPTERS / name for name in ADAPTERS}


@pytest.fixture
def loquela_play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Options]:
    """The options of the servers that `loquela play` starts in an empty directory."""
    from loquela.cli import serve
    from loquela.cli.main import main

    started: list[Options] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "start", lambda options, **_: started.append(options))
    monkeypatch.setattr("sys.argv", ["loquela", "play", "--no-browser"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    return started
