"""Every picture on every kind of model: plain data, figures with titles and captions, and a terminal's version."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from specimens import GAP, MORE, SHAPES, TEXT, Make, model_of

from loquela import inspect as top_level
from loquela import peft
from loquela.api import LanguageModel
from loquela.errors import DataError, MissingExtraError, UsageError
from loquela.inspection import PICTURES, UnavailableError, inspect
from loquela.inspection.geometry import pca, project
from loquela.inspection.pictures.positions import table

EVERYWHERE = {"anatomy", "diff", "languages", "next", "tokens"}
LACKING = {  # picture → kinds of model that cannot show it
    "attention": {"rnn", "lstm", "ngram", "ngram_residual", "textgenrnn"},
    "attribution": {"ngram", "ngram_residual", "textgenrnn"},
    "embeddings": {"ngram", "ngram_residual"},
    "gradients": {"ngram", "ngram_residual", "textgenrnn"},
    "lens": {"rnn", "lstm", "ngram", "ngram_residual", "textgenrnn"},
    "loop": {"bert"},
    "positions": {"rnn", "lstm", "ngram", "ngram_residual", "textgenrnn"},
}


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "languages.jsonl"
    rows = [{"lang": "eng", "text": "The cat sat."}, {"lang": "spa", "text": "El gato se sentó."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def ask(picture: str, model: LanguageModel, languages: Path) -> dict[str, Any]:
    text: Any = str(languages) if picture == "languages" else GAP if model.network.kind == "encoder" else TEXT
    options: dict[str, Any] = {"diff": {"other": model}, "loop": {"max_new_tokens": 3}}.get(picture, {})
    return inspect(picture, model, text, **options).data


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("picture", sorted({*EVERYWHERE, *LACKING}))
def test_every_picture_of_every_model(model: Make, languages: Path, picture: str, name: str) -> None:
    found = model(name)
    before = {key: value.clone() for key, value in found.network.state_dict().items()}
    if name.split()[0] in LACKING.get(picture, ()):
        with pytest.raises(UnavailableError, match="unavailable"):
            ask(picture, found, languages)
        return
    data = ask(picture, found, languages)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for key, why in data["unavailable"].items():
        assert why
        assert data.get(key) is None or key in ("induction", "next_rank")
    figures = PICTURES[picture].figures(data)
    assert figures
    for figure in figures.values():
        assert figure.layout.title.text
        assert len(figure.layout.meta["caption"]) > 40
        assert figure.layout.height
    console = Console(file=io.StringIO(), width=120)
    console.print(PICTURES[picture].terminal(data))
    assert console.file.getvalue().strip()  # type: ignore[attr-defined]
    after = found.network.state_dict()
    assert all(torch.equal(before[key], value) for key, value in after.items())  # looking changes nothing
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in found.network.modules())


def test_every_picture_is_found_and_says_what_it_takes() -> None:
    assert set(PICTURES) == {*EVERYWHERE, *LACKING, "forgetting"}
    for picture in PICTURES.values():
        assert picture.title
        assert set(picture.takes) <= {"model", "text", "file"}
        for option in picture.options.values():
            assert option.help.endswith((".", "?"))
            assert option.default is None or type(option.default) is option.kind
    with pytest.raises(UsageError, match="did you mean 'attention'"):
        PICTURES["atention"]
    assert set(dir(inspect)) == set(PICTURES)
    assert top_level is inspect
    with pytest.raises(AttributeError, match="no picture"):
        _ = inspect.nothing


def test_wrong_calls(model: Make) -> None:
    found = model("llama")
    for call, said in [
        (lambda: inspect.attention(found), "needs a text"),
        (lambda: inspect.attention(found, "a", "b"), "takes model and text"),
        (lambda: inspect.attention(found, "a", heed=1), "no option 'heed'; did you mean 'head'"),
        (lambda: inspect.next(found, "a", top_q=1), "did you mean 'top"),
        (lambda: inspect.diff(found, "a cat"), "needs a second model"),
        (lambda: inspect.embeddings(found, "cat"), "from 2 to"),
        (lambda: inspect.embeddings(found, "cat dog", dims=4), "dims must be 2 or 3"),
        (lambda: inspect.loop(found, "a cat", max_new_tokens=65), "from 1 to 64"),
        (lambda: inspect.attention(found, [5] * 65), "context window of 64"),
        (lambda: inspect.tokens(found, "The cat").figure("side"), "must be one of cut, surprise"),
        (lambda: PICTURES["attention"].options["layer"].parse("x"), "layer must be a whole number"),
    ]:
        with pytest.raises(Exception, match=said):
            call()


def test_tokens(stories: LanguageModel) -> None:
    text = "Once upon a time, Lily saw a € sign."
    shown = inspect.tokens(stories, text).data
    ids = stories.tokenizer.encode(text)
    assert [token["id"] for token in shown["tokens"]] == ids
    scored = stories.score(text)
    assert shown["tokens"][0]["log_prob"] is None
    assert shown["tokens"][0]["bytes"] is None
    assert sum(t["log_prob"] for t in shown["tokens"][1:]) == pytest.approx(scored.log_prob, abs=1e-4)
    assert bytes.fromhex("".join(t["bytes"] for t in shown["tokens"][1:])).decode().strip() == text


def test_an_encoder_scores_each_token_when_it_is_masked(model: Make) -> None:
    found = model("bert")
    shown = inspect.tokens(found, "The cat sat").data
    ids = found.tokenizer.encode("The cat sat")
    masked = [*ids]
    masked[1] = found.tokenizer.mask_id or 0
    expected = found.logits(masked)[0, 1].double().log_softmax(-1)[ids[1]]
    assert shown["tokens"][1]["log_prob"] == pytest.approx(float(expected), abs=1e-4)


def test_embeddings(encoder: LanguageModel) -> None:
    words = "paris london berlin cat dog horse red blue green"
    shown = inspect.embeddings(encoder, words, analogy="france,paris,germany", neighbours=5).data
    assert shown["analogy"]["nearest"][0]["text"] == "berlin"
    assert "cats" in [n["text"] for n in shown["neighbours"][3]]
    table = encoder.network.get_parameter("token_embedding.weight").detach()
    rows = table[[encoder.tokenizer.id_of(w) or 0 for w in words.split()]]
    assert np.allclose(shown["similarity"], torch.cosine_similarity(rows[:, None], rows[None], dim=-1), atol=1e-5)
    sentences = "The cat sits outside.\nA kitten sleeps.\nBerlin is the capital of Germany."
    shown = inspect.embeddings(encoder, sentences, dims=3).data
    assert shown["kind"] == "sentences"
    assert shown["similarity"][0][1] > shown["similarity"][0][2]
    assert shown["neighbours"] is None
    assert "neighbours" in shown["unavailable"]


def test_pca_keeps_all_that_it_can() -> None:
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(30, 8)) * np.arange(1, 9)
    points, shares = pca(x, 3)
    theirs = PCA(3).fit(x)
    assert np.allclose(np.abs(points), np.abs(theirs.transform(x)))
    assert np.allclose(shares, theirs.explained_variance_ratio_)
    flat, shares = pca(np.array([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]), 3)
    assert np.allclose(flat[:, 1:], 0)
    assert shares == pytest.approx([1, 0, 0])


def test_other_maps(encoder: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(12, 5))
    points, shares = project(x, 2, "tsne")
    assert points.shape == (12, 2)
    assert shares is None
    assert np.array_equal(points, project(x, 2, "tsne")[0])
    with pytest.raises(UsageError, match="method must be one of"):
        project(x, 2, "map")
    with pytest.raises(UsageError, match="at least 4 points"):
        project(x[:3], 2, "tsne")
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(MissingExtraError, match="extra `maps`"):
        project(x, 2, "umap")


def test_positions(model: Make) -> None:
    def encodings(name: str) -> dict[str, Mapping[str, Any]]:
        return {e["kind"]: e for e in inspect.positions(model(name), length=24).data["encodings"]}

    assert encodings("position_switch none") == {}
    assert list(encodings("position_switch sinusoidal")) == ["sinusoidal"]
    table = np.array(encodings("position_switch sinusoidal")["sinusoidal"]["table"])
    assert np.allclose(table[:, 0], np.sin(np.arange(24)), atol=1e-5)
    assert np.allclose(table[:, 31], np.cos(np.arange(24) / 10_000 ** (30 / 32)), atol=1e-5)
    rotary = encodings("llama")["rotary"]
    assert rotary["wavelengths"] == pytest.approx([2 * np.pi * 10_000 ** (i / 4) for i in range(4)], rel=1e-3)
    assert np.allclose(
        rotary["angles"], np.arange(24)[:, None] * 2 * np.pi / np.array(rotary["wavelengths"]), atol=1e-3
    )
    slopes = [
        row[0] / encodings("position_switch alibi")["alibi"]["distances"][0]
        for row in encodings("position_switch alibi")["alibi"]["bias"]
    ]
    assert slopes == pytest.approx([2 ** (-2 * (i + 1)) for i in range(4)], abs=1e-5)
    relative = encodings("position_switch relative")["relative"]
    bias = model("position_switch relative").network.relative_bias(24, 24).detach()  # type: ignore[operator]
    for i, distance in enumerate(relative["distances"]):
        assert distance <= 0
        assert [row[i] for row in relative["bias"]] == pytest.approx(bias[:, 23, 23 + distance].tolist(), abs=1e-5)
    both = inspect.positions(model("t5"), length=12).data["encodings"]
    assert [e["where"].split(".")[0] for e in both] == ["encoder", "decoder"]
    assert both[0]["distances"] == list(range(-11, 12))


@pytest.mark.parametrize("name", [name for name in (*SHAPES, *MORE) if not name.startswith("ngram")])
def test_the_parts_of_the_anatomy_are_all_of_it(model: Make, name: str) -> None:
    shown = inspect.anatomy(model(name), length=10).data
    counted = sum(part["parameters"] * part["repeat"] for part in shown["parts"])
    assert counted == shown["parameters"] == model(name).network.parameter_count()
    assert shown["flops"] == sum(part["flops"] * part["repeat"] for part in shown["parts"])


def test_the_order_and_cost_of_the_parts(model: Make) -> None:
    shown = inspect.anatomy(model("llama"), length=10).data
    names = [part["name"] for part in shown["parts"]]
    assert names == [
        "token embedding",
        "attention norm",
        "attention",
        "feedforward norm",
        "feedforward",
        "norm",
        "lm head",
    ]
    attention, feedforward = shown["parts"][2], shown["parts"][4]
    assert attention["flops"] == 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32) + 2 * 2 * 32 * 10
    assert feedforward["flops"] == 2 * 3 * 32 * 48
    pair = [part["name"] for part in inspect.anatomy(model("t5")).data["parts"] if part["side"] == "decoder"]
    assert pair.index("attention") < pair.index("cross") < pair.index("feedforward")
    experts = next(p for p in inspect.anatomy(model("mixtral")).data["parts"] if p["kind"] == "feed_forward")
    assert experts["detail"] == "2 of 4 experts"
    assert experts["flops"] == 2 * (2 * 3 * 32 * 48) + 2 * 32 * 4


def test_an_adapter_in_every_picture(languages: Path) -> None:
    found = model_of.__wrapped__("llama")
    peft.attach(found.network, peft.config_for("lora", r=2, target_modules="all-linear"), "own", seed=0)
    trained = peft.trainable(found.network, "own")
    plain = inspect.next(found, TEXT).data
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1
    worn = {"adapter": "own"}
    assert inspect.next(found, TEXT).data == plain
    assert inspect.next(found, TEXT, **worn).data["top"] != plain["top"]
    anatomy = inspect.anatomy(found, **worn).data
    assert anatomy["trained"] == sum(p.numel() for p in trained.values())
    assert sum(t["parameters"] for p in anatomy["parts"] for t in p["adapter"]) * 2 == anatomy["trained"]
    diff = inspect.diff(found, TEXT, **worn).data
    assert max(abs(c) for c in diff["change"] if c is not None) > 1e-3
    moved = {row["name"]: row["moved"] for row in diff["moved"]}
    layer = found.network.get_submodule("decoder.layers.0.feedforward.up_proj")
    added = (
        trained["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
        @ trained["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    )
    scale = 8 / 2
    expected = float((added * scale).norm() / layer.weight.detach().norm())  # type: ignore[arg-type, union-attr, operator]
    assert moved["decoder.layers.0.feedforward.up_proj.weight"] == pytest.approx(expected, rel=1e-4)
    terms = inspect.attribution(found, TEXT, **worn).data
    assert sum(t["value"] for t in terms["terms"]) == pytest.approx(terms["total"], abs=1e-4)


def test_a_loop_is_the_generation_itself(model: Make) -> None:
    for name in ("llama", "t5", "lstm"):
        found = model(name)
        shown = inspect.loop(found, TEXT, max_new_tokens=6, seed=4, temperature=0.9).data
        expected = found.generate(TEXT, max_new_tokens=6, seed=4, temperature=0.9, top=0)
        assert [step["id"] for step in shown["steps"]] == [piece.id for piece in expected.tokens]
        first = len(found.tokenizer.encode(TEXT)) if found.network.kind == "decoder" else 1
        assert [step["cached"] for step in shown["steps"]] == [first + i for i in range(len(shown["steps"]))]
        assert all(len(step["input"]) == 1 for step in shown["steps"][1:])
        if name == "llama":  # 2 layers, keys and values, 2 heads of 8 numbers, 4 bytes each
            assert [step["cache_bytes"] for step in shown["steps"]] == [
                2 * 2 * 2 * 8 * 4 * s["cached"] for s in shown["steps"]
            ]
        if name == "t5":
            cross = np.array(shown["cross"])
            assert cross.shape == (len(shown["steps"]), len(shown["prompt"]))
            assert np.allclose(cross.sum(-1), 1, atol=1e-4)


def test_languages(model: Make, languages: Path) -> None:
    shown = inspect.languages(model("llama"), str(languages), other=model("gpt2")).data
    english = shown["languages"][0]
    count = len(model("llama").tokenizer.encode("The cat sat.", add_special_tokens=False))
    assert (english["words"], english["bytes"], english["tokens"]) == (3, 12, [count, count])
    assert english["tokens_per_word"][0] == pytest.approx(count / 3, abs=1e-4)
    with pytest.raises(DataError, match="must be a JSONL file"):
        inspect.languages(model("llama"), str(languages.parent))


def test_gradients_through_depth_are_derivatives(model: Make) -> None:
    shown = inspect.gradients(model("llama"), TEXT, compare=False).data
    assert shown["depth"]["layers"] == ["embedding", "decoder layer 0", "decoder layer 1"]
    assert [curve["distances"][0] for curve in shown["distance"]] == [1]
    ids = torch.tensor([model("llama").tokenizer.encode(TEXT)])
    network = model("llama").network
    with torch.enable_grad():
        x = network.token_embedding(ids).detach().requires_grad_()  # type: ignore[operator]
        handle = network.get_submodule("token_embedding").register_forward_hook(lambda m, i, o: x)
        logits = network(ids)[0, :-1]
        handle.remove()
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, ids[0, 1:]), x)
    assert shown["depth"]["norms"][0] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_forgetting(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    ends = {"step": 40, "own text": 1.31, "news": 0.88}
    stages = [{"step": 0, "own text": 1.2, "news": 0.9}, ends, ends]  # the last is measured once more
    curves = [{"step": 0, "loss": 2.0, "tasks": {"a": 2.0}}, {"step": 40, "loss": 1.0, "tasks": {"a": {"loss": 1.1}}}]
    said = {"stages": stages, "tasks": curves, "verdict": {"sentence": "better, but it lost something"}}
    (evidence / "curves.json").write_text(json.dumps(said))
    tokens = [{"probe": "news", "tokens": [" The", " cat"], "before": [0.1, 0.2], "after": [2.0, 0.1]}]
    (evidence / "probe_tokens.json").write_text(json.dumps(tokens))
    shown = inspect.forgetting(str(tmp_path))
    assert shown.data["stages"] == [0, 40]
    assert shown.data["change"] == [[0, pytest.approx(0.11)], [0, pytest.approx(-0.02)]]
    assert shown.data["tasks"]["values"] == {"all": [2.0, 1.0], "a": [2.0, 1.1]}
    assert list(shown.figures()) == ["matrix", "tasks", "texts"]
    with pytest.raises(DataError, match="what loquela tune writes"):
        inspect.forgetting(str(tmp_path / "nothing"))


@pytest.mark.parametrize(("method", "before", "queries"), [("prompt", 4, 0), ("prefix", 4, 0)])
def test_virtual_tokens_are_looked_at(method: str, before: int, queries: int) -> None:
    """What is worn stands before the text: attention has columns for it, and nothing else is moved by it."""
    found = model_of.__wrapped__("llama")
    peft.attach(found.network, peft.config_for(method, num_virtual_tokens=4), "soft", seed=0)
    count = len(found.tokenizer.encode(TEXT))
    shown = inspect.attention(found, TEXT, adapter="soft").data
    assert np.array(shown["attention"]).shape == (2, 4, count + queries, count + before)
    assert shown["keys"][:before] == [f"prefix {i}" for i in range(before)]
    assert shown["rollout"] is None
    lens = inspect.lens(found, TEXT, adapter="soft").data
    with peft.wearing(found.network, "soft"):
        expected = found.network(torch.tensor([found.tokenizer.encode(TEXT)]))[0].argmax(-1).tolist()
    assert [cell[0]["text"] for cell in lens["top"][-1]] == [found.tokenizer.token(i) for i in expected]
    terms = inspect.attribution(found, TEXT, adapter="soft").data
    assert sum(t["value"] for t in terms["terms"]) == pytest.approx(terms["total"], abs=1e-4)
    assert len(terms["saliency"]) == count
    anatomy = inspect.anatomy(found, adapter="soft").data
    assert anatomy["parts"][0]["detail"] == "4 positions before the text"
    assert sum(t["parameters"] for t in anatomy["parts"][0]["adapter"]) == anatomy["trained"] > 0
    words = inspect.embeddings(found, "cat dog mat", adapter="soft").data
    if method == "prompt":
        assert len(words["soft_prompt"]["nearest"]) == len(words["soft_prompt"]["points"]) == 4
    else:  # a prefix is keys and values, which no word is near to
        assert words["soft_prompt"] is None


def test_the_picture_that_the_documentation_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "inspection.md").read_text()
    (source,) = [block for block in page.split("```python\n")[1:] if "VIEWS =" in block]
    (tmp_path / "norms_by_layer.py").write_text(source.split("```")[0])
    from loquela.inspection import pictures
    from loquela.inspection.picture import Pictures

    monkeypatch.setattr(pictures, "__path__", [*pictures.__path__, str(tmp_path)])
    picture = Pictures()["norms_by_layer"]
    assert picture.title == "How long each token's vector is after every layer"
    assert (picture.options["most"].kind, picture.options["most"].help) == (int, "Tokens at most.")
    data = picture.data(model_of("llama"), TEXT)
    assert np.array(data["norms"]).shape == (2, len(data["tokens"]))
    assert picture.figure(data).layout.title.text == "The length of each vector"
    assert str(picture.terminal(data)).startswith("The:")


def test_the_documentation_names_every_picture_and_key() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "inspection.md").read_text()
    for name, picture in PICTURES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        for view in picture.views:
            assert f"`{view}`" in row
    for name, text in (("tokens", TEXT), ("attention", TEXT), ("next", TEXT), ("lens", TEXT), ("attribution", TEXT)):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        for key in inspect(name, model_of("llama"), text).data:
            assert f"`{key}`" in row or key == "unavailable", (name, key)


def test_one_large_number_does_not_pale_the_learned_positions(model: Make) -> None:
    found = model("position_switch learned")
    shown = inspect.positions(found).data
    assert table(shown).data[0].zmax is None
    with torch.no_grad():
        next(p for n, p in found.network.named_parameters() if "position" in n)[0, 0] = 1000.0
    pale = inspect.positions(found).data
    drawn = table(pale)
    assert drawn.data[0].zmax == -drawn.data[0].zmin < 100
    assert drawn.data[0].z[0][0] == 1000, "the data are whole"
    assert "up to 1e+03" in str(drawn.layout)
