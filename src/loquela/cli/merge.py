"""`loquela merge`: fold adapters into a model's weights, or take one out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.output import print_json

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def merge(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory: the base.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model directory to write; it must be new.")],
    adapter: Annotated[
        list[str], typer.Option(metavar="[NAME=]DIR", help="Adapter directory; may be given several times.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="X,X", help="What each adapter's changes are multiplied by. Default: 1 each.")
    ] = None,
    how: Annotated[
        str, typer.Option(help="How several are joined: weighted (added up) or ties (arXiv:2306.01708).")
    ] = "weighted",
    density: Annotated[float, typer.Option(help="The share of each adapter's largest changes that ties keeps.")] = 0.2,
    dtype: Annotated[
        str | None, typer.Option(help="How weights are stored: float32, float16, bfloat16. Default: as the base's.")
    ] = None,
    unmerge: Annotated[
        bool, typer.Option("--unmerge", help="The model has the adapter merged in: take it out.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fold adapters into a model's weights: what is written needs no adapter, and opens in transformers.

    Prompts are replayed by the base that wears the adapter and by the written model; when their logits differ by more
    than a bound, nothing is written.
    """
    from loquela.checkpoint.sentence import read_pooling, sentence_files
    from loquela.checkpoint.store import load_model
    from loquela.errors import UsageError
    from loquela.peft.folding import write_merged, write_unmerged
    from loquela.tuning.subject import open_adapter

    factors = None
    if weights is not None:
        try:
            factors = [float(part) for part in weights.split(",")]
        except ValueError:
            raise UsageError(f"--weights must be numbers with commas between, but is {weights!r}") from None
        if len(factors) != len(adapter):
            raise UsageError(f"--weights must be one for each adapter, but {len(adapter)} have {len(factors)}")
    if unmerge and (len(adapter) > 1 or weights is not None):
        raise UsageError("--unmerge takes out one adapter, with the weight 1: give one, and no --weights")
    loaded = load_model(model, dtype="auto")
    stored = dtype or str(next(loaded.network.parameters()).dtype).removeprefix("torch.")
    if stored != "float64":
        loaded.network.float()
    places = _places(adapter)
    names = [*places]
    for name, place in places.items():
        loaded.network = open_adapter(loaded.network, loaded.tokenizer, place, name)
    pooling = read_pooling(loaded.directory)
    files = sentence_files(pooling, loaded.network.dim) if pooling else {}
    if unmerge:
        result = write_unmerged(loaded, names[0], output, dtype=stored, extra_files=files)
    else:
        result = write_merged(
            loaded,
            names,
            output,
            weights=factors,
            how=how,  # type: ignore[arg-type]  # it says itself what it may be
            density=density,
            dtype=stored,
            extra_files=files,
        )
    result["adapters"] = [str(place) for place in places.values()]
    if json:
        print_json(result)
        return
    parity = result["parity"]
    done = "taken out of" if unmerge else "folded into"
    typer.echo(
        f"{result['model']}: {', '.join(result['adapters'])} {done} {model}; over {parity['tokens']} tokens the logits "
        f"differ by at most {parity['max_abs_logit_diff']:.2g} (bound {parity['bound']:.2g})"
    )


def _places(given: list[str]) -> dict[str, Path]:
    """Read `DIR` or `NAME=DIR`, as `serve` does, as often as it is given; an adapter without a name gets its number."""
    from loquela.errors import UsageError

    places: dict[str, Path] = {}
    for number, item in enumerate(given, 1):
        name, equals, directory = item.partition("=")
        if not equals or Path(item).is_dir():
            name, directory = f"{number}: {Path(item).name}", item
        if not (name and directory):
            raise UsageError(f"--adapter must be DIR or NAME=DIR, but is {item!r}")
        if name in places:
            raise UsageError(f"--adapter must give each name once, but {name!r} is there twice")
        places[name] = Path(directory)
    return places
