"""`loquela size X`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import note, print_json

if TYPE_CHECKING:
    from loquela.checkpoint.sizes import Size

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_USES = {
    "run": "float32 weights, and the keys and values of one text of {context} tokens",
    "tune_full": "weights, gradients, two moments of AdamW; activations of {tokens} tokens",
    "tune_lora": "weights, rank 16 on every linear layer of the blocks; the same activations",
    "train": "as tune_full, 8 texts of {tokens} tokens at once",
}


@app.command()
def size(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="X",
            help="A model directory, a config.json, a recipe (.yaml), a name (bert-base-uncased, gpt-4), or 7B, 1T.",
        ),
    ],
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one text of training. Default: block_size, or the window up to 2,048."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what training from scratch would take on a cluster.")
    ] = False,
    hardware: Annotated[str, typer.Option(help="Of the plan: h100, a100, rtx4090, …, or `this` machine.")] = "h100",
    devices: Annotated[int, typer.Option(min=1, max=10**7, help="Of the plan: how many.")] = 8,
    train_tokens: Annotated[
        str | None, typer.Option(help="Of the plan: tokens to learn from (300B, 1.4T). Default: 20 per parameter.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Of the plan: devices that split each matrix.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Of the plan: texts that a device computes at once.")] = 1,
    mfu: Annotated[float, typer.Option(help="Of the plan: share of the devices' peak that is reached.")] = 0.4,
    keep_activations: Annotated[
        bool, typer.Option("--keep-activations", help="Of the plan: nothing is computed again in the backward pass.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Parameters by part, and the memory to run, tune and train a model; nothing is loaded, any size will do.

    With P parameters, in bytes: run is 4 P and the cache of a full context window; tune_full is 16 P (float32 weights,
    gradients, the two moments of AdamW) and activations; tune_lora is 4 P, 16 bytes for each parameter of LoRA (rank
    16 on every linear layer of the blocks) and activations; train is 16 P and the activations of 8 texts. Activations
    are an estimate, within a third. The process itself takes some 300 MB more. Formulas of --plan: docs/training.md.
    """
    from loquela.checkpoint import sizes

    config, block_size = _read(what)
    if plan:
        from loquela.checkpoint import plan as plans
        from loquela.cli.planning import number, show_plan

        planned = plans.plan(
            config,
            on=plans.hardware(hardware),
            devices=devices,
            tokens=None if train_tokens is None else number(train_tokens),
            sequence=tokens or block_size,
            rows=rows,
            tensor_parallel=tensor_parallel,
            mfu=mfu,
            recompute=not keep_activations,
        )
        print_json({"model_type": config.model_type, "plan": asdict(planned)}) if json else show_plan(planned)
        return
    result = sizes.size(config, tokens=tokens or block_size)
    if json:
        print_json(
            {
                "model_type": config.model_type,
                "parameters": result.parameters,
                "memory_bytes": result.memory_bytes,
                "context_length": result.context_length,
                "tokens": result.tokens,
            }
        )
    else:
        _show(config.model_type, result)


def _read(path: Path) -> tuple[Any, int | None]:
    """Return the config that a path means, and the tokens of a sample if it says them."""
    from loquela.checkpoint.configs import read_config
    from loquela.errors import CheckpointError

    if path.suffix in (".yaml", ".yml"):
        return _read_recipe(path)
    file = path / "config.json" if path.is_dir() else path
    if not path.exists() and path.suffix != ".json":
        return _read_name(path), None
    if not file.is_file():
        raise CheckpointError(f"a size needs a model directory, a config.json or a recipe, but {file} does not exist")
    return read_config(file.parent, file.name), None


def _read_name(name: Path) -> Any:
    """Return the config of a model that was pulled, or of a well-known name."""
    from loquela.checkpoint.configs import read_config
    from loquela.checkpoint.hub import resolve
    from loquela.checkpoint.known import NOTES, known_config
    from loquela.checkpoint.plan import decoder_of
    from loquela.cli.planning import parameters_meant
    from loquela.errors import CheckpointError

    if (parameters := parameters_meant(str(name))) is not None:
        config = decoder_of(parameters)
        shape = config.to_dict()
        note(f"{name}: LLaMA's form with {shape['num_hidden_layers']} layers of width {shape['hidden_size']}")
        return config
    try:
        place = resolve(name)
    except CheckpointError:
        place = name
    if place.is_dir():
        return read_config(place)
    config = known_config(str(name))
    if (said := NOTES.get(name.name.lower())) is not None:
        note(said)
    return config


def _read_recipe(path: Path) -> tuple[Any, int | None]:
    from loquela.errors import RecipeError
    from loquela.models.base import config_from_dict
    from loquela.text.tokenizer import Tokenizer
    from loquela.training.recipe import Recipe

    recipe = Recipe.load(path)
    if isinstance(recipe.model, str):
        return _read(Path(recipe.model))[0], recipe.block_size
    if "vocab_size" in recipe.model:
        return config_from_dict(recipe.model), recipe.block_size
    tokenizer = Tokenizer.load(recipe.tokenizer) if isinstance(recipe.tokenizer, str) else recipe.tokenizer
    vocab_size = tokenizer and tokenizer.vocab_size
    if vocab_size is None:
        raise RecipeError(f"{path} must say model.vocab_size or tokenizer.vocab_size for a size, but says neither")
    note(f"a vocabulary of {vocab_size:,}, as the tokenizer is to have")
    return config_from_dict({"vocab_size": vocab_size, **recipe.model}), recipe.block_size


def _show(model_type: str, result: Size) -> None:
    from rich.console import Console
    from rich.table import Table

    total = result.parameters["total"]
    parts = Table(title=f"{model_type}, {total:,} parameters", title_justify="left", box=None, pad_edge=False)
    parts.add_column("part")
    parts.add_column("parameters", justify="right")
    parts.add_column("share", justify="right")
    for name, count in result.parameters.items():
        style = "bold" if name == "total" else ""
        parts.add_row(name.replace("_", " "), f"{count:,}", f"{count / total:.1%}", style=style)
    memory = Table(title="\nmemory", title_justify="left", box=None, pad_edge=False)
    memory.add_column("to")
    memory.add_column("", justify="right", no_wrap=True)
    memory.add_column("for", style="dim")
    for use, count in result.memory_bytes.items():
        reason = _USES[use].format(context=f"{result.context_length:,}", tokens=f"{result.tokens:,}")
        memory.add_row(use.replace("_", " "), _short(count), reason)
    console = Console(file=sys.stdout, highlight=False)
    console.print(parts, memory)


def _short(count: float) -> str:
    """Bytes as a person reads them, in powers of 1,000."""
    units = ["PB", "TB", "GB", "MB", "kB", "B"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{count:,.3g} {units[-1]}" if count < 999.5 else f"{count:,.0f} {units[-1]}"
