"""Code on a page is read from the source when the site is built: `{{ source loquela.layers.norms.RMSNorm }}`."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent.parent / "src"
DIRECTIVE = re.compile(r"^\{\{ source (?P<name>[\w.]+) \}\}$", re.MULTILINE)


def included(markdown: str) -> str:
    """Put the code in the place of each directive."""
    return DIRECTIVE.sub(lambda found: _block(found["name"]), markdown)


def names(markdown: str) -> list[str]:
    """Return what a page's directives name."""
    return [found["name"] for found in DIRECTIVE.finditer(markdown)]


def code(name: str) -> tuple[Path, str]:
    """Return the file of a function, class or method, and its code without its docstring; raises `KeyError`."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:cut]).with_suffix(".py")
        if path.is_file():
            break
    else:
        raise KeyError(f"no module of {name} in {SOURCE}")
    text = path.read_text(encoding="utf-8")
    found: ast.AST = ast.parse(text)
    for part in parts[cut:]:
        found = next((n for n in ast.iter_child_nodes(found) if part in _called(n)), None)  # type: ignore[assignment]
        if found is None:
            raise KeyError(f"{path} defines no {name}")
    assert isinstance(found, ast.stmt)
    lines = text.splitlines()
    decorators = getattr(found, "decorator_list", [])
    first = min([found.lineno, *(d.lineno for d in decorators)]) - 1
    kept = set(range(first, found.end_lineno or first))
    for inner in ast.walk(found):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) and len(inner.body) > 1:
            said = inner.body[0]
            kept -= set(range(said.lineno - 1, said.end_lineno or said.lineno))
    while len(kept) > 1 and isinstance(found, ast.ClassDef) and not lines[min(kept - {first})].strip():
        kept.remove(min(kept - {first}))
    text = textwrap.dedent("\n".join(lines[i] for i in sorted(kept)))
    return path, re.sub(r"  # (type: ignore|noqa).*", "", text)


def _called(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def _block(name: str) -> str:
    path, text = code(name)
    return f'```python title="{path.relative_to(SOURCE.parent)}"\n{text}\n```'
