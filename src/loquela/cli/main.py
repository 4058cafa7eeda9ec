"""`loquela VERB …`: a table of verbs; a verb's module is imported when it is called, so that --help is instant."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loquela.cli.output import errors_as_exit_codes
from loquela.errors import UsageError, nearest
from loquela.version import VERSION

__all__ = ["app", "main"]

VERBS = {
    "quickstart": "Train a model on a text in about a minute, then talk to it.",
    "tour": "The lecture on language models, concept by concept, shown on a model.",
    "tokenizer": "Train a tokenizer, or show how one cuts a text.",
    "data": "Make tokens of many files once; see what an objective asks.",
    "train": "Train a model from a recipe; goes on by itself after an interruption.",
    "tune": "Tune a model on examples, by any method, with an account of what was gained and forgotten.",
    "generate": "Complete a prompt.",
    "chat": "Talk to a model in the terminal.",
    "score": "Log-probability, perplexity and bits per byte of a text.",
    "evaluate": "What a model can do, in numbers: tasks, metrics, intervals, comparisons.",
    "pull": "Fetch a model of the Hugging Face Hub, pinned to a commit.",
    "inspect": "Look inside: attention, next token, embeddings, logit lens, anatomy and more, as figures or data.",
    "serve": "Serve a model and its adapters in OpenAI's API, with the playground.",
    "play": "Open the playground in the browser.",
    "merge": "Fold adapters into a model's weights, or take one out again, with a proof.",
    "convert": "Convert a checkpoint, with a proof that both give the same logits.",
    "size": "Parameters by part, and the memory to run, tune and train.",
    "bench": "Tokens per second, first token and memory, alone and beside other libraries.",
}
"""Verb → what `loquela --help` says of it. The module `loquela.cli.VERB` defines `app`, a `typer.Typer`."""


class _LazyVerbs(TyperGroup):
    """A command group that knows its verbs by name and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(importlib.import_module(f"loquela.cli.{cmd_name}").app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"there is no verb {args[0]!r}{nearest(args[0], VERBS)} (loquela --help lists them)")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=_LazyVerbs, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Loquela: the whole life of a language model in one house."""
    if version:
        typer.echo(f"loquela {VERSION}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `loquela` command."""
    with errors_as_exit_codes():
        app(prog_name="loquela")
