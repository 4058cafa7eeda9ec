"""Flags for the settings of generation, derived from their declarations: a new rule brings its flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import note
from loquela.cli.threads import starting
from loquela.generation.settings import SETTINGS

if TYPE_CHECKING:
    from loquela.api import LanguageModel
    from loquela.generation.decode import Speculation

__all__ = [
    "AUTO",
    "FLOAT32",
    "AdapterOption",
    "CacheOption",
    "DraftOption",
    "EngineOption",
    "QuantizeOption",
    "generation_options",
    "open_draft",
    "open_model",
    "say_compiling",
    "say_speculation",
]


class _Engine(str, Enum):
    AUTO = "auto"
    TORCH = "torch"
    COMPILED = "compiled"


class _Quantize(str, Enum):
    INT8 = "int8"
    INT4 = "int4"


class _CacheType(str, Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


EngineOption = Annotated[
    _Engine, typer.Option("--engine", help="What generates; auto compiles decoders of 20 million parameters and more.")
]
AUTO = _Engine.AUTO
QuantizeOption = Annotated[
    _Quantize | None, typer.Option("--quantize", help="Round the weights to 8 or 4 bits: faster, a little less exact.")
]
CacheOption = Annotated[
    _CacheType, typer.Option("--cache-dtype", help="What keys and values are kept in, by the compiled engine.")
]
FLOAT32 = _CacheType.FLOAT32
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter to wear: what loquela tune writes, or PEFT.")
]
DraftOption = Annotated[
    Path | None, typer.Option("--draft", metavar="DIR", help="A small model of the same vocabulary that guesses ahead.")
]

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


def open_model(
    model: Path,
    engine: _Engine = AUTO,
    quantize: _Quantize | None = None,
    adapter: Path | None = None,
    cache: _CacheType = FLOAT32,
) -> LanguageModel:
    """Load a model as the flags say; stderr says what takes longer than one would think, and why."""
    with starting():
        from loquela.checkpoint.files import verify_ahead
        from loquela.checkpoint.hub import resolve

        verify_ahead(resolve(model))
        from loquela.api import load

        language_model = load(
            model,
            adapter=adapter,
            engine=engine.value,
            quantize=None if quantize is None else quantize.value,
            cache_dtype=cache.value,
        )
        with language_model.wearing():
            runs = language_model.engine.of(language_model.network)
    if language_model.engine.note:
        note(language_model.engine.note)
    elif runs is not language_model.network or quantize is not None:
        say_compiling()
    return language_model


def say_compiling() -> None:
    """Say on stderr that the kernels are about to be compiled, if they are."""
    from loquela.engine.choosing import kernels_are_ready

    if not kernels_are_ready():
        note("compiling the engine's kernels for this processor, once: some ten seconds")


def open_draft(
    draft: Path | None, model: LanguageModel, engine: _Engine = AUTO, quantize: _Quantize | None = None
) -> LanguageModel | None:
    """Load the model that guesses for `model`, if there is one, to run as that does."""
    if draft is None:
        return None
    from loquela.api import load
    from loquela.engine.choosing import Engine, compiled_already
    from loquela.errors import UsageError

    found = load(draft, engine=engine.value, quantize=None if quantize is None else quantize.value)
    if engine is AUTO and compiled_already(model.engine.of(model.network)):
        compiled = Engine("compiled")  # small as it is: the kernels are there already
        with suppress(UsageError):
            compiled.of(found.network)
            found.engine = compiled
    return found


def say_speculation(speculation: Speculation) -> None:
    """Say on stderr what guessing ahead brought, where it was asked for."""
    note(
        f"{speculation.accepted} of {speculation.drafted} guessed tokens were right: "
        f"{speculation.tokens_per_forward:.2f} tokens for each time that the model was run"
    )
