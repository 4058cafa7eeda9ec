"""The laws of docs/architecture.md that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "loquela"
FILES = sorted(SOURCE.rglob("*.py"))

# Imports point down only. Rooms on one level do not import each other; a caller above joins them.
LEVELS = [
    {"cli"},
    {"serving"},
    {"api"},
    {"tuning"},
    {"training", "evaluation", "inspection"},
    {"engine"},
    {"generation", "peft", "prompting", "data"},
    {"checkpoint"},
    {"models"},
    {"layers"},
    {"text"},
    {"errors"},
    {"version"},
]
LEVEL = {room: index for index, rooms in enumerate(LEVELS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "loquela" or len(parts) == 1 or parts[1] == here:
            continue
        assert LEVEL[parts[1]] > LEVEL[here], f"{here} may not import {name}"


def test_text_and_errors_do_not_need_torch() -> None:
    for path in FILES:
        if room(path) in ("text", "errors"):
            assert not any(name.split(".")[0] == "torch" for name in imports(ast.parse(path.read_text()))), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_that_runs_foreign_code(path: Path) -> None:
    """Pickle is never opened, a string is never run, an archive is never unpacked where it likes."""
    tree = ast.parse(path.read_text())
    modules = {name.split(".")[0] for name in imports(tree)}
    assert not modules & {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load"}, (
                called
            )
            assert not called.endswith((".extractall", "yaml.load", "yaml.unsafe_load")), called
        if isinstance(node, ast.keyword):
            assert node.arg not in {"allow_pickle", "trust_remote_code"}
            assert not (node.arg == "shell" and isinstance(node.value, ast.Constant) and node.value.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320


def test_help_is_instant() -> None:
    """`loquela --help` imports neither torch nor tokenizers nor pydantic."""
    code = "import sys, loquela.cli.main; print(*{'torch', 'tokenizers', 'pydantic', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_verb_has_its_module() -> None:
    from loquela.cli.main import VERBS

    modules = {p.stem for p in (SOURCE / "cli").glob("*.py")}
    assert set(VERBS) <= modules


def test_every_error_is_in_the_drawing() -> None:
    from loquela import errors

    for name in errors.__all__:
        assert name == "nearest" or name in (errors.__doc__ or "")
