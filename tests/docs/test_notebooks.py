"""The notebooks of the lecture run from top to bottom, as they are, one after the other in one kernel that forgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from loquela.checkpoint import house

BOOKS = sorted((Path(__file__).resolve().parent.parent.parent / "examples").glob("*.ipynb"))


def code(book: Path) -> str:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One kernel for all: what takes a notebook longest is importing torch."""
    manager = KernelManager(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        manager.start_kernel(cwd=str(tmp_path_factory.mktemp("notebooks")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(book: Path, kernel: KernelManager) -> None:
    asked = {name for name in ("stories", "translator", "cloze", "words") if f'"{name}"' in code(book)}
    if missing := asked - {*house.model_names(), *house.adapter_names()}:
        pytest.skip(f"not in this checkout: {', '.join(sorted(missing))}")
    notebook = nbformat.read(book, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, km=kernel, timeout=300).execute()


def test_notebooks_are_committed_without_outputs() -> None:
    assert len(BOOKS) >= 10
    for book in BOOKS:
        for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{book.name} has outputs"
            assert cell.get("execution_count") is None


def test_every_notebook_is_in_the_guide() -> None:
    guide = (BOOKS[0].parent.parent / "docs" / "guides" / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"examples/{book.name})" in guide for book in BOOKS)


def test_notebooks_lead_to_each_other() -> None:
    for book in BOOKS:
        text = book.read_text(encoding="utf-8")
        for other in (part.split(")")[0] for part in text.split("](")[1:]):
            assert (book.parent / other).is_file() or other.startswith("http"), f"{book.name}: {other}"
