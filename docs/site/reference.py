"""The reference, made of the code whenever the site is built: `--help` of every verb, docstrings, keys of recipes."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from loquela.cli.main import VERBS

SOURCE = Path(__file__).resolve().parent.parent.parent / "src" / "loquela"
ROOMS = {
    "text": "Tokens and prompts.",
    "layers": "The bricks: tensors and numbers in, tensors out.",
    "models": "One file per architecture.",
    "checkpoint": "Model directories: reading, writing, converting, planning.",
    "data": "From files to batches.",
    "generation": "Sampling rules, the decode loop, completions.",
    "prompting": "Templates, shots, what fits the window.",
    "peft": "Methods of tuning a part.",
    "engine": "How it runs fast.",
    "training": "Recipes, the step, the loop.",
    "evaluation": "What a model can do, in numbers.",
    "inspection": "What a model does, as data and as pictures.",
    "tuning": "From rows of examples to an adapter.",
    "serving": "OpenAI's API and the playground.",
}
"""Rooms of the house that have a page, with what it says first."""


def pages() -> dict[str, str]:
    """Return every page of the reference that is made, by its place."""
    from loquela.training.recipe import Recipe
    from loquela.tuning.recipe import TuneRecipe

    made = {"reference/cli.md": command_line(), "reference/python.md": python()}
    made |= {f"reference/python/{room}.md": "\n\n".join(_room(room)) for room in ROOMS}
    made["reference/recipe.md"] = recipe(
        "The recipe of training",
        "Every key that `loquela train` knows, as its own schema says it. An unknown key is an error that names the "
        "nearest known one. Examples are in the repository's `recipes`; why their values: [Recipes](../recipes.md).",
        Recipe,
    )
    made["reference/tune-recipe.md"] = recipe(
        "The recipe of tuning",
        "Every key that `loquela tune` knows, as its own schema says it; each is a flag as well "
        "(`--learning-rate 1e-4`). What a method adds: [the methods' settings](#settings-of-the-methods).",
        TuneRecipe,
    ) + "\n\n".join(["", *_methods()])
    return made


# -- the command line


def command_line() -> str:
    """Every verb, its arguments and its options, read from the parsers themselves."""
    parts = ["# Command line", "`loquela VERB --help` says the same in the terminal."]
    rows = [f"| [`{verb}`](#{verb}) | {says} |" for verb, says in VERBS.items()]
    parts.append("\n".join(["| verb | what it does |", "|---|---|", *rows]))
    for verb in VERBS:
        command: Any = get_command(importlib.import_module(f"loquela.cli.{verb}").app)
        parts += _command(command, [verb])
    return "\n\n".join(parts) + "\n"


def _command(command: Any, path: list[str]) -> Iterator[str]:
    context = typer.Context(command, info_name=path[-1])
    yield f"{'#' * (len(path) + 1)} {' '.join(path)}"
    children = getattr(command, "commands", {})
    usage = " ".join([part.strip("[]") if children else part for part in command.collect_usage_pieces(context)])
    yield f"```text\nloquela {' '.join(path)} {usage}\n```"
    yield (command.help or "").replace("\n\n", "\n\n").strip()
    records = [param.get_help_record(context) or _argument(param, context) for param in command.get_params(context)]
    rows = [(names, says) for names, says in (record for record in records if record) if names != "--help"]
    if rows:
        table = [f"| `{' '.join(names.split())}` | {_cell(_plain(says))} |" for names, says in rows]
        yield "\n".join(["| option | what it does |", "|---|---|", *table])
    if command.epilog:
        yield command.epilog
    for name, child in children.items():
        yield from _command(child, [*path, name])


def _argument(param: Any, context: Any) -> tuple[str, str] | None:
    return None if getattr(param, "hidden", False) or not param.help else (param.make_metavar(context), param.help)


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("{", "&#123;").replace("*", "\\*").replace("[", "\\[")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- recipes


def recipe(title: str, intro: str, model: type[BaseModel]) -> str:
    """A table of every key of a recipe: its type, its default, what it means."""
    parts, inner = [f"# {title}", intro], []
    parts.append(_keys(model, inner))
    for part in inner:
        parts += [f"## {part.__name__}", (part.__doc__ or "").strip(), _keys(part, [])]
    return "\n\n".join(parts) + "\n"


def _keys(model: type[BaseModel], inner: list[type[BaseModel]]) -> str:
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        for part in _models(field.annotation):
            if part not in inner:
                inner.append(part)
        default = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
        said = "must be given" if default is PydanticUndefined else _value(default)
        kind = _kind(field.annotation)
        rows.append(f"| `{name}` | {_cell(kind)} | {_cell(said)} | {_cell(_plain(field.description or ''))} |")
    return "\n".join(rows)


def _value(default: Any) -> str:
    if isinstance(default, BaseModel):
        return "its defaults"
    return "none" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from _models(argument)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if hasattr(annotation, "__metadata__"):
        return _kind(arguments[0])
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "keys and values"
    if arguments:
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {"int": "whole number", "float": "number", "str": "text", "bool": "`true`, `false`"}
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


def _methods() -> Iterator[str]:
    """The settings of each method, from its own config."""
    from loquela.peft.base import METHODS, method

    yield "## Settings of the methods"
    for name in METHODS:
        fields = [field for field in method(name).CONFIG.__dataclass_fields__.values() if field.name != "extra"]
        said = [f"`{field.name}`" for field in fields if field.name not in _COMMON]
        yield f"**{name}**: {', '.join(said)}."


_COMMON = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping"}


# -- Python


def python() -> str:
    """The names that `import loquela` gives, and a list of rooms."""
    rooms = [f"- [`loquela.{room}`](python/{room}.md): {says}" for room, says in ROOMS.items()]
    shown = {"show_root_heading": "true", "show_root_toc_entry": "true", "heading_level": "2"}
    options = "\n".join(f"      {key}: {value}" for key, value in shown.items())
    homes = {
        "loquela.load": "api.load",
        "loquela.LanguageModel": "api.LanguageModel",
        "loquela.train": "training.run.train",
        "loquela.tune": "tuning.run.tune",
        "loquela.evaluate": "evaluation.run.evaluate",
        "loquela.inspect": "inspection.inspect",
    }
    named = [f"::: loquela.{home}\n    options:\n{options}" for home in homes.values()]
    errors = "## Errors {#errors}\n\n::: loquela.errors"
    intro = (
        "`import loquela` gives `load`, `LanguageModel`, `train`, `tune`, `evaluate`, `inspect`, `LoquelaError` and "
        "`__version__`. Everything else is imported from its room:"
    )
    return "\n\n".join(["# Python", intro, "\n".join(rooms), *named, errors]) + "\n"


def _room(room: str) -> Iterator[str]:
    yield f"# loquela.{room}"
    yield ROOMS[room]
    for path, names in modules(room):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        yield f"## {module.removeprefix('loquela.')} {{#{module}}}"
        members = "[" + ", ".join(names) + "]"
        yield f"::: {module}\n    options:\n      members: {members}"


def modules(room: str) -> Iterator[tuple[Path, list[str]]]:
    """The modules of a room that have public names, and these names (their `__all__`)."""
    for path in sorted((SOURCE / room).rglob("*.py")):
        if names := public(path):
            yield path, names


def public(path: Path) -> list[str]:
    """Return `__all__` of a module, without importing it, less what it only passes on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed: list[str] = []
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                listed = [element.value for element in ast.walk(node.value) if isinstance(element, ast.Constant)]  # type: ignore[misc]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    return [name for name in listed if name in defined]
