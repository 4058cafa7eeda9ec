"""Files: an offline page that a browser draws without a word in its console and without a request, and images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from specimens import GAP, TEXT, model_of

from loquela.errors import MissingExtraError, StorageError, UsageError
from loquela.inspection import PICTURES, inspect, report
from loquela.inspection.export import browser
from loquela.inspection.shown import Shown

LIMIT = 6_000_000
NASTY = "</script><b>&amp; \u2028 ☃ <|im_end|> '\"\n\tcat"
ASKED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "anatomy": ("t5", None, {}),
    "attention": ("llama", NASTY, {}),
    "attribution": ("llama", NASTY, {}),
    "diff": ("llama", NASTY, {}),
    "embeddings": ("llama", "cat dog mat log the sat", {"dims": 3}),
    "gradients": ("lstm", TEXT, {}),
    "lens": ("gpt2", NASTY, {}),
    "loop": ("t5", TEXT, {"max_new_tokens": 4}),
    "next": ("llama", NASTY, {"top_p": 0.9, "min_p": 0.01}),
    "positions": ("position_switch alibi", None, {}),
    "tokens": ("bert", GAP, {}),
}


def draw(name: str) -> Shown:
    model, text, options = ASKED[name]
    if name == "diff":
        options = {"other": model_of.__wrapped__(model)}
    return inspect(name, model_of(model), text, **options)


def everything(tmp_path: Path) -> dict[str, Shown]:
    shown = {name: draw(name) for name in ASKED}
    (tmp_path / "rows.jsonl").write_text('{"lang": "eng", "text": "The cat sat."}\n')
    shown["languages"] = inspect.languages(model_of("llama"), str(tmp_path / "rows.jsonl"))
    stages = [{"step": 0, "own": 1.2}, {"step": 9, "own": 1.3}]
    curves = {"stages": stages, "tasks": [{"step": 0, "loss": 2.0, "tasks": {}}], "verdict": None}
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    tokens = [{"probe": "own", "tokens": ["<b>", " x"], "before": [0.1, 0.2], "after": [2.0, 0.1]}]
    (tmp_path / "probe_tokens.json").write_text(json.dumps(tokens))
    shown["forgetting"] = inspect.forgetting(str(tmp_path))
    assert set(shown) == set(PICTURES)
    return shown


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A page of a browser without a window; its console and its requests are kept."""
    program = browser()
    if program is None:
        pytest.skip("no Chromium on the PATH, and none named by LOQUELA_BROWSER")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]
        )
        yield started
        started.close()


def message_of(message: Any, console: list[str]) -> None:
    if "GL Driver Message" not in message.text:  # the driver's word on drawing 3-D without a graphics card
        console.append(f"{message.type}: {message.text}")


def visit(chromium: Any, file: Path, scheme: str) -> tuple[Any, list[str], list[str]]:
    page = chromium.new_page(color_scheme=scheme)
    page.set_default_timeout(120_000)  # a busy machine is no failure
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: message_of(message, console))
    page.on("pageerror", lambda error: console.append(f"error: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.documentElement.dataset.ready")
    return page, console, requests


def test_every_picture_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    shown = everything(tmp_path)
    file = tmp_path / "report.html"
    asked = [(one.picture, lambda data=one.data: data) for one in shown.values()]
    file.write_text(report("Everything", asked, model_of("llama")), encoding="utf-8")
    assert file.stat().st_size < LIMIT
    page, console, requests = visit(chromium, file, "light")
    figures = sum(len(one.figures()) for one in shown.values())
    assert page.locator("figure").count() == figures
    assert page.locator(".main-svg").count() >= figures
    assert all(caption.strip() for caption in page.locator("figcaption").all_inner_texts())
    assert not page.locator("figure b").count()  # what the text holds is no markup
    page.click("#theme")
    page.wait_for_function(
        "Array.from(document.querySelectorAll('.js-plotly-plot')).every(" + PAPER + " === '#14161b')"
    )
    assert console == []
    assert requests == [file.as_uri()]
    page.close()


PAPER = "plot => plot._fullLayout.paper_bgcolor"


@pytest.mark.parametrize(("scheme", "paper"), [("light", "#ffffff"), ("dark", "#14161b")])
def test_as_light_or_dark_as_the_system(chromium: Any, tmp_path: Path, scheme: str, paper: str) -> None:
    file = tmp_path / "next.html"
    draw("next").save(file)
    page, console, requests = visit(chromium, file, scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.getElementById('figure-0')._fullLayout.paper_bgcolor") == paper
    assert console == []
    assert requests == [file.as_uri()]
    page.close()


def test_the_slider_goes_through_the_loop(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "loop.html"
    shown = draw("loop")
    shown.save(file)
    page, console, _ = visit(chromium, file, "light")
    page.evaluate("Plotly.animate('figure-0', ['2'], {mode: 'immediate', frame: {duration: 0, redraw: true}})")
    page.wait_for_function("document.getElementById('figure-0').layout.title.text.startsWith('Step 2')")
    drawn = page.evaluate("Array.from(document.getElementById('figure-0').data[0].x)")
    candidates = shown.data["steps"][2]["candidates"]
    assert drawn[:5] == pytest.approx([c["probability"] for c in candidates[:5]])
    assert console == []
    page.close()


def test_the_menu_of_heads_and_what_a_cell_says(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "attention.html"
    shown = inspect.attention(model_of("llama"), "The cat sat on", layer=0, head=1)
    shown.save(file, "map")
    page, console, _ = visit(chromium, file, "light")
    assert page.evaluate("document.getElementById('figure-0').layout.title.text").startswith("Layer 0, head 1")
    page.locator(".updatemenu-header").click()
    page.wait_for_selector(".updatemenu-dropdown-button")
    place = page.locator(".updatemenu-dropdown-button").nth(6).bounding_box()
    page.mouse.click(place["x"] + 20, place["y"] + 8)
    page.wait_for_function("document.getElementById('figure-0').layout.title.text.startsWith('Layer 1, head 2')")
    visible = page.evaluate("document.getElementById('figure-0').data.map(trace => trace.visible)")
    assert visible == [i == 6 for i in range(8)]
    area = page.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.1, area["y"] + area["height"] * 0.6)  # the third row's first cell
    page.wait_for_selector(".hovertext")
    said = f"·sat looks at The: {shown.data['attention'][1][2][2][0]:.3f}"
    assert page.locator(".hovertext").first.text_content() == said
    assert console == []
    page.close()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_images(chromium: Any, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"next.{kind}"
    draw("next").save(file, view="waterfall")
    content = file.read_bytes()
    if kind == "png":
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 2200
    else:
        assert content.startswith(b"<svg")
        assert "What each setting removes" in content.decode()


def test_pages_hold_no_address_and_little_else(tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    for name in ("attention", "next", "embeddings"):
        content = draw(name).html()
        own = content.replace(get_plotlyjs(), "")
        assert not re.search(r"https?:|//[a-z]|src=|@import|url\(", own)
        assert "default-src 'none'" in own
        assert len(content.encode()) < LIMIT
        assert "<b>&amp;" not in own


def test_a_large_model_stays_below_the_limit() -> None:
    """Twelve layers of twelve heads over 128 tokens."""
    import numpy as np

    weights = np.random.default_rng(0).dirichlet(np.ones(128), (12, 12, 128))
    heads = [
        {
            "layer": i,
            "head": j,
            "pattern": "mixed",
            "entropy": 1.0,
            "induction": 0.1,
            "previous": 0.1,
            "first": 0.2,
            "itself": 0.1,
        }
        for i in range(12)
        for j in range(12)
    ]
    tokens = [f"token{i}" for i in range(128)]
    data = {
        "tokens": tokens,
        "queries": tokens,
        "keys": tokens,
        "part": "decoder",
        "parts": ["decoder"],
        "heads": heads,
    }
    data |= {"attention": weights, "rollout": weights[0, 0], "shown": [0, 0], "unavailable": {}}
    assert len(Shown(PICTURES["attention"], data).html().encode()) < LIMIT


def test_in_a_notebook() -> None:
    shown = draw("next")
    bundle = shown._repr_mimebundle_()
    assert bundle["text/html"].startswith("<iframe srcdoc=")
    assert "<script" not in bundle["text/html"]  # quoted: it runs in a frame of its own
    assert bundle["text/plain"] == repr(shown)


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = draw("next")
    with pytest.raises(StorageError, match="cannot be"):
        shown.save(tmp_path / "nowhere" / "next.html")
    with pytest.raises(UsageError, match=r"as \.html, \.png or \.svg"):
        shown.save(tmp_path / "next.pdf")
    monkeypatch.delenv("LOQUELA_BROWSER", raising=False)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(MissingExtraError, match="Chromium"):
        shown.save(tmp_path / "next.png")
