"""The site builds without a warning, every link leads somewhere, nothing is fetched, nothing is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from loquela.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "docs" / "site"))

import reference  # noqa: E402
import sources  # noqa: E402

FETCHED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""What a browser loads by itself, by tag and attribute."""


class Page(HTMLParser):
    """The ids, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if FETCHED.get(tag) in found and found.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(found[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_internal_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are those of a site at the root of a server
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids | {"__top"}:
                broken.append(f"{path.relative_to(site)}: no anchor {link}")
    assert not broken, "\n".join(broken[:40])


def test_a_page_fetches_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    outside = [f"{p.relative_to(site)}: {x}" for p, page in pages.items() for x in page.loaded if "//" in x]
    assert not outside
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s+)[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_verb_and_every_flag_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    cli = site / "reference" / "cli.html"
    assert VERBS.keys() <= pages[cli].ids
    said = cli.read_text(encoding="utf-8")
    for flag in ("--max-new-tokens", "--top-k", "--min-p", "--repetition-penalty", "--method", "--api-key"):
        assert flag in said


def rooms() -> Iterator[str]:
    return (p.name for p in sorted(reference.SOURCE.iterdir()) if (p / "__init__.py").is_file() and p.name != "cli")


def test_every_room_has_a_page() -> None:
    assert set(rooms()) == reference.ROOMS.keys()


@pytest.mark.parametrize("room", reference.ROOMS)
def test_every_public_name_is_in_the_reference(room: str, pages: dict[Path, Page], site: Path) -> None:
    ids = pages[site / "reference" / "python" / f"{room}.html"].ids
    missing = []
    for path, names in reference.modules(room):
        module = ".".join(path.relative_to(reference.SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        missing += [f"{module}.{name}" for name in names if f"{module}.{name}" not in ids]
    assert not missing


def test_the_names_of_the_package_are_in_the_reference(pages: dict[Path, Page], site: Path) -> None:
    import loquela

    ids = {found.rsplit(".", 1)[-1] for found in pages[site / "reference" / "python.html"].ids}
    assert set(loquela.__all__) - {"__version__"} <= ids


def test_every_key_of_a_recipe_is_explained(site: Path) -> None:
    from loquela.training.recipe import Recipe
    from loquela.tuning.recipe import TuneRecipe

    for page, recipe in (("recipe", Recipe), ("tune-recipe", TuneRecipe)):
        said = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
        assert all(f"<code>{key}</code>" in said for key in recipe.model_fields)


def test_code_is_read_from_the_source() -> None:
    found = [name for page in sorted((ROOT / "docs").rglob("*.md")) for name in sources.names(page.read_text())]
    assert len(found) > 40
    for name in found:
        assert len(sources.code(name)[1].splitlines()) >= 1


def test_every_architecture_is_in_the_guide() -> None:
    """What has a config of its own in `models/` can be loaded, and the guide says so."""
    said = (ROOT / "docs" / "guides" / "checkpoints.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "src" / "loquela" / "models").glob("*.py")):
        if re.search(r"^CONFIG, NETWORK = ", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"\b{path.stem}\b", said), path.stem


def test_every_extra_is_explained() -> None:
    said = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras = re.search(
        r"\[project.optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL
    )
    assert extras
    for name in re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE):
        assert f"`{name}`" in said, name


def test_figures_of_the_comparison_were_measured() -> None:
    """Numbers of the table are those of benchmarks/RESULTS.md, rounded."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    measured = {
        float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", results) if number[-1] != ","
    }
    table = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").split("## Measured")[1].split("\n\n")[1]
    for row in table.splitlines()[2:]:
        for number in re.findall(r"(?<![\d.,])\d[\d,]*\.?\d*", "|".join(row.split("|")[2:])):
            value = float(number.replace(",", ""))
            digits = len(number.partition(".")[2])
            close = any(round(found, digits) == value for found in measured)
            assert close, f"{number} of {row!r} is not in benchmarks/RESULTS.md"
