"""What MkDocs does beyond Markdown here: the generated reference, code read from the source, formulas, files around."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import reference
import sources
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
AROUND = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")
"""Pages of the site that live outside docs/, since they are read on their own as well."""
ELSEWHERE = re.compile(r"\]\((\.\./)+(?=LICENSE|(recipes|examples|src|tests)[/)])[^)]*\)")
"""Links to files of the repository that are no pages: on the site their text stays."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let fences of `math` become MathML, which browsers draw by themselves; put the rooms into the navigation."""
    config.markdown_extensions.append(NoReferences())  # type: ignore[arg-type]
    config.nav[-1]["Reference"].append({"Rooms": [f"reference/python/{room}.md" for room in reference.ROOMS]})
    fences = {"name": "math", "class": "math", "format": _formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fences]
    return config


class NoReferences(Extension):
    """Shapes are written `[layer][head]` on pages and in docstrings; no links like `[text][label]`."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Look at the lines after fenced code has been taken out."""
        md.preprocessors.register(_Escape(md), "no_references", 20)


class _Escape(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return ["`".join(_escaped(part, i) for i, part in enumerate(line.split("`"))) for line in lines]


def _escaped(part: str, index: int) -> str:
    return part if index % 2 else part.replace("][", "]\\[")


def _formula(source: str, *_: Any, **__: Any) -> str:
    rows = [latex2mathml.converter.convert(row, display="block") for row in source.split("\n\n")]
    return f'<div class="math">{"".join(rows)}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the code, and those that live elsewhere."""
    for name in AROUND:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for name, content in reference.pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Read code from the source, and turn links that hold in the repository into links that hold on the site."""
    where = page.file.src_uri
    if where in AROUND:
        up = "../" * where.count("/")
        markdown = re.sub(r"\]\(docs/", f"]({up}", markdown)
        markdown = re.sub(r"(!?\[[^\]]*)\]\(LICENSE\)", r"\1", markdown)
    else:
        up = "../" * where.count("/")
        for name in AROUND:  # one level further up in the repository than on the site
            markdown = markdown.replace(f"]({up}../{name}", f"]({up}{name}")
        markdown = re.sub(r"\[([^\]]*)" + ELSEWHERE.pattern, r"\1", markdown)
    return sources.included(markdown)
