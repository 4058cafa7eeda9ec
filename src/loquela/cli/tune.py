"""`loquela tune`: from a model and examples to a tuned model or an adapter, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import console, note, print_json
from loquela.cli.threads import share_cores
from loquela.errors import UsageError

if TYPE_CHECKING:
    from loquela.tuning.race import Curve, Leg
    from loquela.tuning.recipe import TuneRecipe
    from loquela.tuning.run import TuneResult

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}
_EPILOG = (
    "Every other key of the recipe, and every setting of the method, is a flag too, or key=value: "
    "--learning-rate 1e-4, --max-steps 60, --r 8, target_modules=all-linear."
)


@app.command(context_settings=_ANY, epilog=_EPILOG)
def tune(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Directory of the model to tune.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="File of rows, or owner/name of the Hub; several are mixed."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where the adapter or the model goes.")] = None,
    method: Annotated[
        str | None, typer.Option(help="full, lora, adapter, ia3, prompt, prefix or selective. [default: lora]")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help="Format of the rows; else detected.")] = None,
    template: Annotated[
        str | None, typer.Option(help="How prompts are written: model, instruction, a file, or a text with {fields}.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Cells of a table without a header: text,label.")] = None,
    labels: Annotated[str | None, typer.Option(help="All labels of a classifier, with commas.")] = None,
    validation_data: Annotated[str | None, typer.Option(help="Held-out rows; else a tenth of the data.")] = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="Text or task whose score tells what is forgotten; may be repeated.")
    ] = None,
    max_forget: Annotated[float | None, typer.Option(help="Bits per byte of the probe that may be lost.")] = None,
    require_verdict: Annotated[
        bool, typer.Option("--require-verdict", help="Exit code 1 unless better and nothing lost.")
    ] = False,
    show_mask: Annotated[
        bool, typer.Option("--show-mask", help="Show what is learnt of some samples, and end.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave wrong rows out, counted.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut samples that are too long.")] = False,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Leave out samples that are too long.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew over an earlier run there.")] = False,
    race: Annotated[str | None, typer.Option(help="Methods, with commas, at equal processor seconds.")] = None,
    cpu_seconds: Annotated[float, typer.Option(min=0.1, help="Those seconds, of each method's updates.")] = 60.0,
    data_curve: Annotated[str | None, typer.Option(help="Numbers of examples, with commas: 50,100,250.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Tune a model on examples; the same command goes on after an interruption.

    Rows: instruction/output (Alpaca), conversations (ShareGPT), messages, prompt/completion, source/target,
    dialogue/summary, text/label, tokens/tags, chosen/rejected, text; in .jsonl, .json, .csv, .tsv, .parquet, .txt, each
    also .gz.
    A text<TAB>label file makes an encoder-only model a classifier, a file of word<TAB>tag lines a tagger.
    """
    share_cores()
    from loquela.tuning.recipe import TuneRecipe

    if truncate and drop_long:
        raise UsageError("samples that are too long must be cut or left out, but --truncate and --drop-long are given")
    given: dict[str, Any] = {
        "model": model,
        "data": data[0] if data and len(data) == 1 else data or None,
        "output_dir": output,
        "method": method,
        "format": form,
        "template": template,
        "columns": columns.split(",") if columns else None,
        "labels": labels.split(",") if labels else None,
        "validation_data": validation_data,
        "probe": probe or None,
        "max_forget": max_forget,
        "skip_bad_rows": skip_bad_rows or None,
        "too_long": "truncate" if truncate else "drop" if drop_long else None,
        "overwrite_output_dir": overwrite or None,
    }
    source, changes = _extra(context.args)
    if source is not None:
        from loquela.training.recipe_file import read

        given = read(source) | {k: v for k, v in given.items() if v is not None}
    if show_mask and given.get("output_dir") is None:
        given["output_dir"] = "unused"
    recipe = TuneRecipe.load({k: v for k, v in given.items() if v is not None}, changes)
    if show_mask:
        _show_mask(recipe)
    elif race is not None:
        _race(recipe, race.split(","), cpu_seconds, as_json)
    elif data_curve is not None:
        _curve(recipe, data_curve.split(","), as_json)
    else:
        _tune(recipe, as_json, require_verdict)


def _extra(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the recipe, if one is named, and every other flag as `key=value`."""
    source, changes, rest = None, [], list(args)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if not equals:
                if rest and not rest[0].startswith("--"):
                    value = rest.pop(0)
                else:
                    name, value = (name.removeprefix("no_"), "false") if name.startswith("no_") else (name, "true")
            changes.append(f"{name}={value}")
        elif "=" in word:
            changes.append(word)
        elif word.endswith((".yaml", ".yml")) and source is None:
            source = Path(word)
        else:
            raise UsageError(f"an argument must be a recipe (.yaml), a flag or key=value, but is {word!r}")
    return source, changes


def _tune(recipe: TuneRecipe, as_json: bool, require_verdict: bool) -> None:
    from loquela.cli.progress import TrainingView, curve
    from loquela.training.log import read_rows
    from loquela.tuning.run import tune as run

    with TrainingView(verbose=False) as view:
        result = run(recipe, on_event=view)
    if as_json:
        print_json(result.as_dict())
    else:
        if view.started is not None:
            console.print(curve(read_rows(Path(recipe.output_dir) / "loss.csv")))
        _tell(result)
    if require_verdict and not result.good:
        raise SystemExit(1)


def _tell(result: TuneResult) -> None:
    typer.echo(result.verdict["sentence"])
    share = result.trainable_parameters / result.parameters
    typer.echo(
        f"{result.method}: {result.trainable_parameters:,} parameters tuned ({share:.2%} of {result.parameters:,}), "
        f"{result.steps:,} steps, {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s, "
        f"{result.peak_memory_bytes / 2**20:,.0f} MiB at most"
    )
    place = result.adapter or result.model
    use = f"loquela.load({result.model!r}" + (f", adapter={result.adapter!r})" if result.adapter else ")")
    note(f"The result is in {place}, its evidence in {Path(place) / 'evidence'}. Use it: {use}")


def _race(recipe: TuneRecipe, methods: list[str], cpu_seconds: float, as_json: bool) -> None:
    from loquela.cli.progress import TrainingView
    from loquela.tuning.race import race

    with TrainingView(verbose=False) as view:
        legs = race(recipe, methods, cpu_seconds=cpu_seconds, on_event=view)
    if as_json:
        chart = str(Path(recipe.output_dir) / "race.html")
        print_json({"race": [leg.as_dict() for leg in legs], "cpu_seconds": cpu_seconds, "chart": chart})
        return
    _table(legs)
    note(f"The chart: {Path(recipe.output_dir) / 'race.html'}")


def _table(legs: Sequence[Leg]) -> None:
    heads = ("method", "gain", "forgotten", "noise", "parameters", "memory", "adapter", "steps")
    rows = [heads]
    for leg in legs:
        row = leg.as_dict()
        lost, noise = row["forgetting"], row["noise"]
        rows.append(
            (
                leg.method,
                f"{row['gain']:+.3f}",
                "-" if lost is None else f"{lost:+.3f}",
                "-" if noise is None else f"{noise:.3f}",
                f"{row['trainable_parameters']:,}",
                f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
                f"{row['adapter_bytes'] / 2**10:,.0f} KiB",
                f"{row['steps']:,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for cells in rows:
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        typer.echo("  ".join([cells[0].ljust(widths[0]), *others]))


def _curve(recipe: TuneRecipe, sizes: Sequence[str], as_json: bool) -> None:
    from loquela.cli.progress import TrainingView
    from loquela.tuning.race import data_curve

    if not all(size.strip().isdigit() for size in sizes):
        raise UsageError(f"--data-curve must be numbers of examples with commas, but is {','.join(sizes)!r}")
    with TrainingView(verbose=False) as view:
        found = data_curve(recipe, [int(size) for size in sizes], on_event=view)
    if as_json:
        print_json(found.as_dict())
        return
    _tell_curve(found)
    note(f"The chart: {Path(recipe.output_dir) / 'data_curve.html'}")


def _tell_curve(found: Curve) -> None:
    for size, result in found.points:
        bits = "" if result.val_bits_per_byte is None else f"  {result.val_bits_per_byte:.3f} bits per byte"
        typer.echo(f"{size:>9,} examples  loss {result.val_loss:.3f}{bits}  gain {result.verdict['gain']:+.3f}")
    typer.echo(found.sentence)


def _show_mask(recipe: TuneRecipe) -> None:
    """Print some samples, what is learnt of them apart from what is only read."""
    import sys

    from rich.console import Console
    from rich.text import Text

    from loquela.cli.terminal import visible
    from loquela.tuning.masks import shown

    coloured = sys.stdout.isatty()
    out = Console(file=sys.stdout, highlight=False)
    for sample in shown(recipe, say=note):
        if not coloured:
            pieces = (f"\u27e6{piece.text}\u27e7" if piece.learnt else piece.text for piece in sample.pieces)
            typer.echo(f"row {sample.row}: {sample.learnt} of {sample.tokens} tokens are learnt")
            typer.echo("".join(pieces) + "\n")
            continue
        text = Text(f"row {sample.row}: {sample.learnt} of {sample.tokens} tokens are learnt\n", style="dim")
        for piece in sample.pieces:
            text.append(visible(piece.text), "black on green" if piece.learnt else "dim")
        out.print(text, soft_wrap=True)
        out.print()
