"""`loquela data build|preview`: make tokens of many files once, and see what an objective asks."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import console, note, print_json
from loquela.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from loquela.data.batch import Batch
    from loquela.text.tokenizer import Tokenizer
    from loquela.training.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Make tokens of many files once, or see what an objective asks.",
)

_IGNORED = -100
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_PREVIEW_MODELS: dict[str, dict[str, Any]] = {
    "decoder": {"model_type": "gpt2", "n_embd": 2, "n_head": 1, "n_layer": 1},
    "encoder": {
        "model_type": "bert",
        "hidden_size": 2,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 2,
    },
    "encoder-decoder": {"model_type": "t5", "d_model": 2, "num_heads": 1, "d_kv": 2, "num_layers": 1, "d_ff": 2},
}
"""The least model of each kind: a preview needs only to know who reads."""


@app.command()
def build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="Files, patterns, directories, shakespeare, quijote, hub:NAME[:SPLIT]."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must not exist.")],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="A tokenizer or model directory.  [default: learn a BPE]")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the BPE that is learnt.")] = 4096,
    objective: Annotated[str, typer.Option(help="The objective whose special tokens the BPE has.")] = "causal",
    column: Annotated[str, typer.Option(help="Where a row has its text.")] = "text",
    encoding: Annotated[str, typer.Option(help="Encoding of text files.")] = "utf-8",
    validation_fraction: Annotated[float, typer.Option(help="Share of the documents that is held out.")] = 0.05,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="Keep documents that come again.")] = False,
    near: Annotated[
        float, typer.Option(help="Share of common shingles from which documents are near duplicates; 0: not sought.")
    ] = 0.8,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out and count rows that cannot be used.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one for each core]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tokenise documents into memory-mapped shards, without duplicates, some of them held out."""
    from loquela.checkpoint.hub import resolve
    from loquela.data.builder import build as made
    from loquela.data.gather import HUB, Gathering, find
    from loquela.data.objectives import OBJECTIVES
    from loquela.data.vocabulary import tokenizer_of
    from loquela.text.tokenizer import Tokenizer

    if objective not in OBJECTIVES:
        raise UsageError(f"--objective must be one of {', '.join(OBJECTIVES)}, but is {objective!r}")
    start = time.perf_counter()
    found = find(sources)
    documents = Gathering(found, column, encoding, skip_bad_rows)
    if tokenizer is not None:
        chosen = Tokenizer.load(resolve(tokenizer))
    elif any(source.startswith(HUB) for source in found):
        raise UsageError("a set of the Hub is read once: name the --tokenizer to read it with")
    else:
        with console.status("learning the vocabulary …"):
            chosen = tokenizer_of(documents, vocab_size, special_tokens=OBJECTIVES[objective].special_tokens)
        if chosen.note and not json:
            note(chosen.note)
    with console.status("reading …") as status:
        report = made(
            documents,
            chosen,
            output,
            validation_fraction=validation_fraction,
            remove_duplicates=not keep_duplicates,
            near=near or None,
            processes=workers,
            progress=lambda done: status.update(f"{done / 1e6:,.1f} MB of text tokenised …"),
        )
    seconds = time.perf_counter() - start
    if json:
        print_json({**asdict(report), "sources": len(found), "seconds": seconds})
        return
    for line in report.notes:
        note(line)
    n_bytes = report.train_bytes + report.val_bytes
    what = "left out" if not keep_duplicates else "found and kept"
    typer.echo(
        f"{output}: {report.train_tokens:,} tokens of {report.train_documents:,} documents to learn from, "
        f"{report.val_tokens:,} of {report.val_documents:,} held out; {report.exact_duplicates:,} exact and "
        f"{report.near_duplicates:,} near duplicates {what}; {n_bytes / 1e6:,.1f} MB of text in {seconds:.1f} s"
    )
    note(f"Train on it: data: {output} in a recipe")


@app.command()
def preview(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe in YAML.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Keys of the recipe with other values.", metavar="key=value")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="An objective by itself, on the text of --data.")] = None,
    data: Annotated[str, typer.Option(help="A text, where no recipe names one.")] = "shakespeare",
    samples: Annotated[int, typer.Option("-n", min=1, max=100, help="Samples to show.")] = 2,
    step: Annotated[int, typer.Option(min=0, help="The update whose samples they are, from 0.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what goes in, what is predicted, and what carries the loss."""
    import tempfile

    import torch

    from loquela.checkpoint.store import load_model
    from loquela.training.materials import material, vocabulary
    from loquela.training.recipe import Recipe
    from loquela.training.run import fresh

    if (recipe is None) == (objective is None):
        raise UsageError("a preview must be given a RECIPE or an --objective, one of the two")
    given = Recipe.load(recipe, overrides or []) if recipe is not None else _recipe_of(str(objective), data)
    batch_size = given.batch_size
    with tempfile.TemporaryDirectory() as directory, console.status("reading the text …"):
        loaded = load_model(given.model) if isinstance(given.model, str) else None
        tokenizer = vocabulary(given, Path(directory), None if loaded is None else loaded.tokenizer, lambda event: None)
        with torch.device("meta"):  # nothing is computed with it
            network = loaded.network if loaded is not None else fresh(given, tokenizer)
        prepared = material(given, network, tokenizer, Path(directory), lambda event: None)
        batch = prepared.samples(given.block_size, batch_size).batch(step).rows(slice(0, samples))
    shown = [_sample(batch, row, tokenizer) for row in range(len(batch))]
    if json:
        print_json({"objective": given.objective, "step": step, "samples": shown})
        return
    from loquela.data.objectives import OBJECTIVES

    typer.echo(f"{given.objective}: {OBJECTIVES[given.objective].summary}")
    for number, sample in enumerate(shown, 1):
        _draw(number, sample)


def _recipe_of(objective: str, data: str) -> Recipe:
    """Return a recipe that serves to show an objective."""
    from loquela.data.objectives import OBJECTIVES
    from loquela.training.recipe import Recipe

    reader = OBJECTIVES[objective].readers[0] if objective in OBJECTIVES else "decoder"
    if objective in OBJECTIVES and OBJECTIVES[objective].takes_pairs:
        raise UsageError(f"the objective {objective} needs sources and targets: preview a recipe that names them")
    return Recipe.load(
        {
            "model": _PREVIEW_MODELS[reader],
            "tokenizer": {"kind": "bpe", "vocab_size": 2048},
            "data": data,
            "objective": objective,
            "block_size": 64,
            "output_dir": "preview",
        }
    )


def _sample(batch: Batch, row: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """One sample as tokens that a person reads: what is read, what goes in, what is predicted (null: no loss)."""

    def named(ids: Any) -> list[str]:
        return [tokenizer.token(i) for i in ids]

    inputs, labels = batch.inputs[row].tolist(), batch.labels[row].tolist()
    sample: dict[str, Any] = {
        "inputs": named(inputs),
        "labels": [None if label == _IGNORED else tokenizer.token(label) for label in labels],
        "predicted": sum(label != _IGNORED for label in labels),
    }
    if batch.source is not None:
        source = batch.source[row]
        source = source if batch.source_padding is None else source[batch.source_padding[row]]
        sample["source"] = named(source.tolist())
    if batch.segments is not None:
        sample["documents"] = batch.segments[row].tolist()
    return sample


def _draw(number: int, sample: dict[str, Any]) -> None:
    """Print a sample; what carries loss is green and, without colours, between ‹ and ›."""
    from rich.console import Console

    out = Console(highlight=False)
    inputs, labels = sample["inputs"], sample["labels"]
    out.print(f"\nsample {number}: {sample['predicted']} of {len(labels)} positions carry loss", style="bold")
    if "source" in sample:
        out.print(_line("reads   ", sample["source"], [None] * len(sample["source"]), out.is_terminal), soft_wrap=True)
    out.print(_line("goes in ", inputs, sample.get("documents", [None] * len(inputs)), out.is_terminal), soft_wrap=True)
    out.print(_line("predicts", [label or "·" for label in labels], labels, out.is_terminal, loss=True), soft_wrap=True)


def _line(title: str, tokens: list[str], marks: list[Any], coloured: bool, *, loss: bool = False) -> Text:
    """Tokens one after the other. `marks`: what carries `loss`, or the number of each token's document."""
    from rich.text import Text

    line = Text(f"{title}  ", style="dim")
    before = None
    for index, (token, mark) in enumerate(zip(tokens, marks, strict=True)):
        text = token.translate(_VISIBLE)
        if loss:
            style = "bold green" if mark is not None else "dim"
            text = f"‹{text}›" if mark is not None and not coloured else text
        else:
            style = "on grey23" if index % 2 and coloured else ""
            if mark is not None and mark != before:
                text = f"⟦{mark}⟧{text}"
            before = mark
        line.append(text, style=style)
    return line
