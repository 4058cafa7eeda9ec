"""`loquela convert SRC DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.options import QuantizeOption
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
    quantize: QuantizeOption = None,
    text: Annotated[
        Path | None, typer.Option(help="With --quantize: the text whose perplexity says what is lost.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a checkpoint to a model directory that transformers opens, or to a .gguf that llama.cpp runs.

    What was written is read again from the disk and prompts are replayed through it: it is kept only if its logits are
    those of the source. The tokenizer of a .bin is looked for beside it, as tok<vocabulary>.bin or tokenizer.bin.
    """
    if quantize is not None:
        _round(source, target, quantize.value, text, json)
        return
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


def _round(source: Path, target: Path, quantize: str, text: Path | None, json: bool) -> None:
    from loquela.cli.rounding import round_model

    result = round_model(source, target, quantize, text)
    if json:
        print_json(result)
        return
    parity, sizes, perplexity = result["parity"], result["bytes"], result["perplexity"]
    typer.echo(
        f"{result['model']}: {sizes['before'] / 2**20:,.1f} MiB of weights in {sizes['after'] / 2**20:,.1f}; "
        f"read again, the logits differ from the rounded model's by at most {parity['max_abs_logit_diff']:.2g}"
    )
    if perplexity is None:
        note(f"{source} has no tokenizer.json, so what is lost cannot be measured on a text")
        return
    typer.echo(
        f"perplexity over {perplexity['tokens']:,} tokens of {perplexity['text']}: {perplexity['before']:.4f} before, "
        f"{perplexity['after']:.4f} after ({perplexity['change']:+.2%})"
    )
