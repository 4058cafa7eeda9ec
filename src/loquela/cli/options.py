"""Flags for the settings of generation, derived from their declarations: a new rule brings its flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from loquela.generation.settings import SETTINGS

__all__ = ["generation_options"]

_METAVARS = {int: "N", float: "X", bool: None, tuple: "TEXT", list: "JSON", dict: "JSON"}


def generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` a flag per setting; it is called with those that were given, as `**settings`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = []
    for setting in SETTINGS.values():
        flag = setting.name.replace("_", "-")
        names = [
            f"--{flag}/--no-{flag}" if setting.kind is bool else f"--{flag}",
            *([f"-{flag}"] if len(flag) == 1 else []),
        ]
        kind: Any = {tuple: list[str], list: str, dict: str}.get(setting.kind, setting.kind)  # type: ignore[call-overload]
        default = "" if setting.kind in (tuple, list, dict) else f" [default: {str(setting.default).lower()}]"
        option = typer.Option(*names, help=setting.help + default, show_default=False, metavar=_METAVARS[setting.kind])
        annotation = Annotated[kind | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        flags.append(inspect.Parameter(setting.name, keyword, default=None, annotation=annotation))

    @wraps(command)
    def with_settings(**given: Any) -> None:
        settings = {}
        for name, setting in SETTINGS.items():
            value = given.pop(name)
            if value is not None and value != []:
                settings[name] = setting.parse(value) if setting.kind in (list, dict) else value
        command(**given, **settings)

    with_settings.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return with_settings
