"""`loquela convert SRC DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.output import note, print_json

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A model directory, a .gguf file, or a llama2.c .bin file.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="The model directory or .gguf file to write; it must be new.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="How a .gguf stores matrices: f32, f16, bf16 or q8_0. Default: as they are.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a checkpoint to a model directory that transformers opens, or to a .gguf that llama.cpp runs.

    What was written is read again from the disk and prompts are replayed through it: it is kept only if its logits are
    those of the source. The tokenizer of a .bin is looked for beside it, as tok<vocabulary>.bin or tokenizer.bin.
    """
    from loquela.checkpoint import convert as conversion

    result = conversion.convert(source, target, dtype=dtype)
    if result["left_out"]:
        note(f"left out, since nothing is read from them: {', '.join(result['left_out'])}")
    if not result["tokenizer"]:
        note(f"{source} has no tokenizer.json, so {target} has none either")
    if json:
        print_json(result)
        return
    parity = result["parity"]
    typer.echo(
        f"{result['model']}: {result['parameters']:,} parameters; over {parity['tokens']} tokens the logits differ "
        f"from the source's by at most {parity['max_abs_logit_diff']:.2g} (bound {parity['bound']:g})"
    )
