"""The playground in a real browser: every section does what it says, nothing leaves the origin, no error is logged."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loquela import peft
from loquela.checkpoint import house
from loquela.checkpoint.store import load_model

Running = Any  # conftest.Running
sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no Chromium is installed: the page is not looked at", allow_module_level=True)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
ROOT = Path(__file__).resolve().parents[2]
PAYLOADS = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=document.title='owned'>",
    "[a](javascript:document.title='owned')",
    '<a href="javascript:alert(1)">x</a>',
    "<iframe src=https://example.com></iframe>",
    "![x](https://example.com/x.png)",
    "</textarea><script>document.title='owned'</script>",
    "<style>@import 'https://example.com/x.css'</style>",
    "'\"><b onmouseover=document.title='owned'>",
]


@pytest.fixture(scope="module")
def adapters(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    network = load_model(model_directory).network
    found = {}
    for number, (name, config) in enumerate(
        {"tuned": peft.config_for("lora", r=2), "soft": peft.config_for("prompt", num_virtual_tokens=3)}.items()
    ):
        peft.attach(network, config, name, seed=number)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        peft.save_adapter(network, name, found[name], base=str(model_directory))
    return found


@pytest.fixture(scope="module")
def server(
    start: Callable[..., Running], model_directory: Path, adapters: dict[str, Path], tmp_path_factory: Any
) -> Running:
    runs = tmp_path_factory.mktemp("runs")
    (runs / "one").mkdir()
    log = "step,tokens,train_loss,val_loss,learning_rate,grad_norm\n10,100,3.5,,0.1,1\n20,200,3.0,3.1,0.1,1\n"
    (runs / "one" / "loss.csv").write_text(log)
    (runs / "one" / "checkpoint-20").mkdir()
    state = {"samples": [{"step": 20, "prompt": "The cat", "text": " sat"}]}
    (runs / "one" / "checkpoint-20" / "trainer_state.json").write_text(json.dumps(state))
    return start(model_directory, adapters=adapters, runs=(runs,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, ready; afterwards the console must be clean and no request have left the origin."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened, said, asked = context.new_page(), [], []
    # A request that is refused (400) the browser notes by itself; the page shows the server's sentence.
    opened.on("console", lambda m: said.append(m.text) if m.type == "error" and "status of 400" not in m.text else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server.url)
    opened.locator("html[data-ready=yes]").wait_for(timeout=30_000)
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []
    context.close()


def complete(page: Any, prompt: str = "The cat", tokens: int = 12) -> Any:
    page.fill("#prompt", prompt)
    page.locator("section[aria-label=Settings] input[type=number]").first.fill(str(tokens))
    page.click("#go")
    page.locator("#said", has_text="tokens in").wait_for(timeout=30_000)
    return page.locator("#output .chip")


def shot(page: Any, tmp_path: Path) -> None:
    assert len(page.screenshot(path=tmp_path / "page.png", full_page=True)) > 5_000


def test_complete_with_chips_alternatives_and_branches(page: Any, tmp_path: Path) -> None:
    chips = complete(page)
    assert chips.count() == 12
    chips.nth(3).hover()
    popover = page.locator(".popover")
    popover.wait_for()
    assert popover.locator("button").count() >= 8
    first, said = page.locator("#output").inner_text(), page.locator("#said").inner_text()
    other = popover.locator("button[aria-current=false]").nth(1)
    other.click()
    page.locator("#branches ul ul button[aria-current=true]").wait_for()
    page.locator("#said", has_text="+ 8 tokens in").wait_for()
    assert chips.count() == 12
    assert page.locator("#output").inner_text() != first
    with page.expect_request("**/inside/logits"):  # what may come next is of the text that is shown
        page.locator("#branches > ul > li > button").click()
    assert page.locator("#output").inner_text() == first
    assert page.locator("#said").inner_text() == said
    with page.expect_request("**/inside/logits"):
        page.locator("#model").select_option(index=1)
    page.reload()
    page.locator("#branches ul ul button").wait_for()  # the tree is kept in this browser
    shot(page, tmp_path)


def test_why_a_text_ended_is_said_as_it_is(page: Any) -> None:
    window = page.locator("#about").inner_text().rpartition("a window of ")[2].split(";")[0].replace(",", "")
    page.click("[data-preset=greedy]")
    page.fill("#prompt", "a" * (int(window) - 10))  # each is a token
    page.click("#go")
    page.locator("#said", has_text="the window is full").wait_for(timeout=30_000)
    piece = {"text": "", "id": 1, "token": "\n", "log_prob": -0.1, "top": [], "finish_reason": "stop"}
    shown = page.evaluate("async (p) => (await import('/page/js/chips.js')).chip(p).textContent", piece)
    assert shown == "⟨↵⟩"  # a line's end that ended the text stays within its marks


def test_arrow_keys_go_from_tab_to_tab(page: Any) -> None:
    page.locator("[role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    second = page.locator("[role=tab]").nth(1)
    assert second.get_attribute("aria-selected") == "true"
    assert page.evaluate("document.activeElement.id") == second.get_attribute("id")


def test_presets_keyboard_stop_and_limits(page: Any) -> None:
    page.click("[data-preset=greedy]")
    texts = []
    for _ in range(2):
        page.fill("#prompt", "The dog")
        page.keyboard.press("Control+Enter")
        page.locator("#said", has_text="tokens in").wait_for(timeout=60_000)
        texts.append(page.locator("#output").inner_text())
        page.evaluate("document.querySelector('#said').textContent = ''")
    assert texts[0] == texts[1]
    page.click("[data-preset=creative]")
    page.fill("#prompt", "The cat sat on the mat. " * 200)
    page.click("#go")
    page.locator("#notice", has_text="context window").wait_for()
    for number, name in enumerate(("complete", "chat", "fewshot", "adapters", "inside", "tasks", "train", "tour"), 1):
        page.keyboard.press(f"Alt+{number}")
        page.locator(f"#tab-{name}[aria-selected=true]").wait_for()


def test_the_distribution_follows_the_sliders_at_once(page: Any, tmp_path: Path) -> None:
    complete(page)
    page.locator(".next .bar").first.wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#set-top_k").fill("3")
    assert page.locator(".next .bar:not(.cut)").count() == 3
    assert page.locator(".next tr[data-stage=top_k] td").nth(3).inner_text() == "3"
    page.click("[data-preset=greedy]")
    assert page.locator(".next .bar:not(.cut)").count() == 1
    assert asked == [], "no request is needed to follow a slider"
    shot(page, tmp_path)


def test_the_page_samples_as_the_sampler_does(page: Any, server: Running) -> None:
    draw = random.Random(5)
    for _ in range(25):
        settings = {
            "temperature": draw.choice([0.0, 0.3, 0.8, 1.0, 1.7]),
            "top_k": draw.choice([0, 1, 7, 40, 10_000]),
            "top_p": draw.choice([1.0, 0.95, 0.5, 0.01, 0.0]),
            "min_p": draw.choice([0.0, 0.02, 0.5]),
            "repetition_penalty": draw.choice([1.0, 1.4]),
        }
        ours, theirs = page.evaluate(
            """async (settings) => {
                const { apply, floats } = await import("/page/js/sampler.js");
                const ask = async (path, body) => (await fetch(path, {
                    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body)
                })).json();
                const got = await ask("/inside/logits", { prompt: "The cat sat" });
                const mine = apply(floats(got.logits), settings, { prompt: got.tokens, completion: [] });
                return [mine.stages, (await ask("/inside/stages", { prompt: "The cat sat", settings })).stages];
            }""",
            settings,
        )
        assert [(s["name"], s["kept"]) for s in ours] == [(s["name"], s["kept"]) for s in theirs], settings
        for mine, own in zip(ours, theirs, strict=True):
            assert mine["removed"] == pytest.approx(own["removed"], abs=1e-9)


def test_chat_shows_the_very_ids(page: Any, server: Running, tmp_path: Path) -> None:
    page.click("#tab-chat")
    page.click("summary:has-text('System prompt')")
    page.fill("#system", "Be kind.")
    page.fill("#message", "Hello")
    page.click("#render")
    page.locator("#template code").first.wait_for()
    shown = [int(text) for text in page.locator("#template sub").all_inner_texts()]
    tokenizer = server.served.model.tokenizer
    assert tokenizer.decode(shown, skip_special_tokens=False) == "<system>Be kind.\n<user>Hello\n<assistant>"
    page.locator("section[aria-label=Settings] input[type=number]").first.fill("6")
    page.click("#send")
    page.locator(".turn.assistant .chip").nth(5).wait_for()
    shot(page, tmp_path)


def test_few_shots_and_the_window(page: Any, tmp_path: Path) -> None:
    page.click("#tab-fewshot")
    for shots, said in ((0, "zero-shot"), (1, "one-shot"), (3, "few-shot: 3 examples")):
        page.locator("#count").fill(str(shots))
        page.locator("strong", has_text=said).wait_for()
    page.locator("section[aria-label=Settings] input[type=number]").first.fill("8")
    page.locator("#meter-text", has_text=re.compile(r"\d+ tokens of prompt \+ 8 to be written, of .* 512\.")).wait_for()
    page.click("#shot-go")
    page.locator("#shot-output .chip").first.wait_for()
    page.locator("section[aria-label=Settings] input[type=number]").first.fill("511")
    page.locator("#meter-text.warn", has_text="Drop a shot").wait_for()
    shot(page, tmp_path)


def test_adapters_side_by_side_and_per_request(page: Any, tmp_path: Path) -> None:
    page.click("#tab-adapters")
    page.fill("#compare-prompt", "The cat")
    page.locator("section[aria-label=Settings] input[type=number]").first.fill("5")
    page.click("#compare-go")
    for name in ("tiny", "tuned", "soft"):
        page.locator(f"#cards [data-model={name}] .chip").nth(4).wait_for()
    shot(page, tmp_path)
    page.select_option("#model", "soft")
    page.click("#tab-complete")
    assert complete(page, tokens=4).count() == 4


@pytest.mark.parametrize("picture", ["tokens", "attention", "next", "embeddings", "lens", "loop", "anatomy"])
def test_inside_the_request_just_made(page: Any, picture: str, tmp_path: Path) -> None:
    complete(page, tokens=6)
    page.click("#tab-inside")
    page.click(f"[data-picture={picture}]")
    page.locator(f"#figures[data-drawn={picture}]").wait_for(timeout=60_000)
    assert page.locator("#figures .main-svg").count() > 0
    assert page.locator("#figures figcaption").first.inner_text()
    page.click("#theme")
    shot(page, tmp_path)


def test_tasks_that_can_be_done_are(page: Any, tmp_path: Path) -> None:
    page.click("#tab-tasks")
    page.click("#task-classify button:has-text('Classify')")
    shares = page.locator("#task-classify td.number")
    shares.nth(1).wait_for()
    assert sum(float(text.strip("%<")) for text in shares.all_inner_texts()) == pytest.approx(100, abs=0.2)
    page.click("#task-search button:has-text('Search')")
    page.locator("#task-search li").nth(3).wait_for()
    page.click("#task-code-at-a-cursor button:has-text('cursor')")
    page.locator("#task-code-at-a-cursor mark").wait_for()
    page.click("#task-translate button:has-text('Translate')")
    page.locator("#task-translate .chip").first.wait_for()
    shot(page, tmp_path)


def test_what_a_model_of_sources_cannot_do_is_not_offered(browser: Any, start: Callable[..., Running]) -> None:
    server = start(house.HOUSE / "translator")
    opened = browser.new_page()
    opened.goto(server.url)
    opened.locator("html[data-ready=yes]").wait_for(timeout=30_000)
    opened.get_by_role("tab", name="Tasks").click()
    card = opened.locator("article", has=opened.get_by_role("heading", name="Search"))
    assert "Unavailable: this model gives no vectors" in card.inner_text()
    assert card.locator("button").count() == 0
    opened.close()


def test_entities_are_marked_in_the_text(
    browser: Any, start: Callable[..., Running], tagger_directory: Path, tmp_path: Path
) -> None:
    server = start(tagger_directory)
    page = browser.new_page()
    page.goto(server.url)
    page.locator("html[data-ready=yes]").wait_for(timeout=30_000)  # a reader begins with the tasks
    text = "The cat sat on the mat; the dog sat on the log."
    page.fill("#task-classify textarea", text)
    page.click("#task-classify button:has-text('Classify')")
    page.locator("#task-classify mark.entity").first.wait_for()
    labels = page.locator("#task-classify mark.entity sub").all_inner_texts()
    assert set(labels) <= {"PER", "LOC"}
    told = page.evaluate("""() => {
        const shown = document.querySelector("#task-classify .output").cloneNode(true);
        shown.querySelectorAll("sub").forEach((sub) => sub.remove());
        return shown.textContent;
    }""")
    assert told == text
    shot(page, tmp_path)
    page.close()


def test_a_run_of_training_is_watched(page: Any, server: Running, tmp_path: Path) -> None:
    page.click("#tab-train")
    page.locator("#run-state", has_text="step 20, loss 3.000").wait_for()
    page.locator("#curve .main-svg").first.wait_for()
    page.locator("#samples", has_text="after update 20").wait_for()
    with (server.options.runs[0] / "one" / "loss.csv").open("a") as log:
        log.write("30,300,2.5,,0.1,1\n")
    page.locator("#run-state", has_text="● going on: step 30, loss 2.500").wait_for(timeout=10_000)
    shot(page, tmp_path)


def test_the_tour_leads_to_where_a_concept_is_shown(page: Any, tmp_path: Path) -> None:
    page.click("#tab-tour")
    page.locator("#concept h2", has_text="1 · Generative AI").wait_for()
    assert page.locator(".concepts li").count() == 28
    page.click("#next-concept")
    page.click("[aria-label=Language] button:has-text('Español')")
    page.locator("#concept h2", has_text="2 · Qué es un modelo de lenguaje").wait_for()
    page.click(".concepts button:has-text('Autoatención')")
    shot(page, tmp_path)
    page.click("#show-it")
    page.locator("#figures[data-drawn=attention]").wait_for(timeout=60_000)  # on a text of its own: none was written
    page.click("#tab-tour")
    page.click(".concepts button:has-text('Tokenización')")
    page.click("#show-it")
    page.locator("#figures[data-drawn=tokens]").wait_for(timeout=60_000)
    page.click("#tab-tour")
    page.locator("#concept h2", has_text="8 · Tokenización").wait_for()


def test_copied_saved_and_opened_again(page: Any, tmp_path: Path) -> None:
    complete(page)
    text = page.locator("#output").inner_text()
    with page.expect_download() as download:
        page.click("#save-file")
    download.value.save_as(tmp_path / "text.json")
    page.click("button:has-text('Forget all')")
    assert page.locator("#output .chip").count() == 0
    page.set_input_files("#open-file", tmp_path / "text.json")
    page.locator("#output .chip").first.wait_for()
    assert page.locator("#output").inner_text() == text
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy-python")
    page.locator("#notice", has_text="Python code copied").wait_for()
    code = page.evaluate("navigator.clipboard.readText()")
    assert 'model="tiny"' in code
    compile(code, "copied", "exec")


def _answering(body: str) -> Callable[[Any], None]:
    return lambda route: route.fulfill(status=200, body=body, content_type="text/event-stream")


def _text_is_never_markup(page: Any, payloads: list[str]) -> None:
    for payload in payloads:
        for cut in range(0, len(payload) + 1, max(1, len(payload) // 3)):
            pieces = [payload[:cut], payload[cut:]]
            told = [{"prompt": [{"id": 1, "text": payload}], "seed": 0}]
            top = [{"id": 2, "text": payload, "log_prob": -2.0}]
            told += [
                {"text": p, "id": 1, "token": p, "log_prob": -1.0, "top": top, "finish_reason": None} for p in pieces
            ]
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in told) + "data: [DONE]\n\n"
            page.route("**/inside/complete", _answering(body))
            assert complete(page, prompt=payload).count() == 2
            page.unroute("**/inside/complete")
    assert page.locator("#output :is(script, img, svg, iframe, a, style, b)").count() == 0
    assert "owned" not in page.title()


def test_no_text_of_a_model_is_ever_markup(page: Any) -> None:
    _text_is_never_markup(page, PAYLOADS[:4])


@pytest.mark.soak
def test_no_text_of_a_model_is_ever_markup_in_full(page: Any) -> None:
    _text_is_never_markup(page, PAYLOADS * 5)


def test_on_a_phone_nothing_runs_out_of_the_page(browser: Any, server: Running, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    opened = context.new_page()
    opened.goto(server.url)
    opened.locator("html[data-ready=yes]").wait_for()
    assert opened.locator("html").get_attribute("data-theme") == "dark"
    for name in ("complete", "chat", "fewshot", "adapters", "tasks", "train", "tour"):
        opened.click(f"#tab-{name}")
        wide = opened.evaluate(
            "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 361)"
            ".map((e) => e.outerHTML)"
        )
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360, (name, wide[:3])
    shot(opened, tmp_path)
    context.close()


def test_every_control_has_a_name(page: Any) -> None:
    for name in ("complete", "chat", "fewshot", "adapters", "tasks", "train", "tour"):
        page.click(f"#tab-{name}")
        nameless = page.evaluate(
            """[...document.querySelectorAll("button, input, select, textarea")].filter((e) =>
                !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length || e.placeholder)
            ).map((e) => e.outerHTML)"""
        )
        assert nameless == [], name


def test_types_of_the_page() -> None:
    compiler = ROOT / ".venv" / "node" / "node_modules" / ".bin" / "tsc"
    if not compiler.exists():
        pytest.skip("no TypeScript compiler is installed: the page's types are not checked")
    done = subprocess.run([compiler, "-p", ROOT / "tests" / "page" / "tsconfig.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
