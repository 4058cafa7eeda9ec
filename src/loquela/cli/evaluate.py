"""`loquela evaluate`: what a model can do, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.options import QuantizeOption, say_compiling
from loquela.cli.output import console, note, print_json
from loquela.cli.terminal import write

if TYPE_CHECKING:
    from loquela.evaluation.contamination import Overlap
    from loquela.evaluation.plan import Settings
    from loquela.evaluation.run import Evaluation, Prepared
    from loquela.evaluation.subject import Subject

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def evaluate(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Model directory; several give a curve.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Name, YAML task, data file, or owner/name of the Hub.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter directory for the model.")] = None,
    quantize: QuantizeOption = None,
    url: Annotated[str | None, typer.Option(help="Ask a server instead, e.g. http://127.0.0.1:8000/v1.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests to the server at a time; default: 8.")] = None,
    versus: Annotated[str | None, typer.Option(help="Model directory to compare with, item by item.")] = None,
    shots: Annotated[str, typer.Option(help="Examples in the prompt; 0,1,2,4 gives a curve.")] = "0",
    select: Annotated[str, typer.Option(help="random, balanced, nearest, or numbers of examples: 3,17,5.")] = "random",
    seed: Annotated[int, typer.Option(help="Another seed draws other shots.")] = 0,
    orders: Annotated[int, typer.Option(min=1, help="Ask with the shots in so many orders.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Ask so many items, drawn from all over the set.")] = None,
    by: Annotated[str, typer.Option(help="Choose by likelihood or by generation.")] = "likelihood",
    corrected: Annotated[bool, typer.Option(help="Also correct for how likely choices are by themselves.")] = False,
    engine: Annotated[
        str, typer.Option(help="What computes likelihoods: torch, compiled, or auto: compiled wherever it can.")
    ] = "auto",
    chat: Annotated[bool, typer.Option(help="Prompts go through the model's chat template.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the data sets [default: LOQUELA_DATA].")] = None,
    hub: Annotated[bool, typer.Option(help="Take the rows from the Hugging Face Hub.")] = False,
    log: Annotated[Path | None, typer.Option(help="Keep a record per item in this .jsonl; goes on from it.")] = None,
    contamination: Annotated[
        list[Path] | None,
        typer.Option(help="Training text, or what data build made: are test items in it?"),
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw score against shots in this .html.")] = None,
    allow_code_execution: Annotated[bool, typer.Option(help="Run programs that the model writes.")] = False,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks that come with the package.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a model on tasks, with intervals, and with what chance and the commonest answer reach.

    Multiple choice is scored by likelihood: raw, per token and per byte. A classifier and an embedding model are asked
    as what they are. No score depends on a batch size or an order.
    """
    from loquela.evaluation import task as tasks

    if list_tasks:
        _list([tasks.named(name) for name in tasks.names()], json)
        return

    from loquela.errors import UsageError
    from loquela.evaluation.contamination import report
    from loquela.evaluation.plan import Settings
    from loquela.evaluation.run import prepare_task

    if not task:
        raise UsageError("evaluate needs a task: --task NAME or --task FILE (--list shows the names)")
    if (not model) == (url is None) and not (model and url and len(model) == 1):
        raise UsageError("evaluate needs a model: -m DIR, or --url http://HOST:PORT/v1 (-m is then its name there)")
    if concurrency is not None and url is None:
        raise UsageError("--concurrency is of requests to a server, but there is no --url: leave it out")
    counts = _counts(shots)
    by_way: Any = by
    with_engine: Any = engine
    settings = Settings(
        counts[0], select, seed, 0, by_way, corrected, chat, limit, with_engine, allow_code_execution
    ).check()
    prepared = [prepare_task(name, data_dir=data_dir, hub=hub) for name in task]  # before a model is read
    several = len(counts) > 1 or len(model or []) > 1 or chart is not None
    if several:
        if versus or log or contamination or orders > 1:
            raise UsageError("a curve has no --versus, --log, --contamination or --orders: ask for one number of shots")
        _curve(model or [], url, concurrency, adapter, quantize, prepared, settings, counts, chart, json)
        return
    overlaps = _overlaps(contamination or [], prepared)
    subject = _subject(model[0] if model else None, url, concurrency, adapter, quantize, settings)
    found, spreads, failed = _evaluate(subject, prepared, settings, log, orders)
    extra: dict[str, dict[str, Any]] = {name: {} for name in found.results}
    for name, spread in spreads.items():
        extra[name]["orders"] = spread
    scored = [one for one in prepared if one.task.name in found.results]
    if versus:
        failed |= _versus(versus, scored, settings, found, log, extra)
    for one in scored if overlaps else []:
        name = one.task.name
        extra[name]["contamination"] = report(one.task, found.results[name], overlaps[name])
    if json:
        result = found.as_dict()
        for name in found.results:
            result["results"][name] |= extra[name]
        print_json(result | {"failed": failed, "model": subject.name})
    else:
        from loquela.cli.scores import table

        table(found, extra)
    _end(failed)


def _end(failed: Mapping[str, str]) -> None:
    """Say what failed, after all that did not was printed."""
    from loquela.errors import LoquelaError

    if failed:
        raise LoquelaError("there is no result of " + "; ".join(f"{what}: {why}" for what, why in failed.items()))


def _subject(
    model: str | None, url: str | None, concurrency: int | None, adapter: str | None, quantize: Any, settings: Settings
) -> Subject:
    from loquela.errors import UsageError

    if url is not None:
        from loquela.evaluation.remote import AT_ONCE, RemoteSubject

        if adapter or quantize:
            raise UsageError("--adapter and --quantize have no effect on a server: name what it serves with -m")
        at_once = AT_ONCE if concurrency is None else concurrency
        return RemoteSubject(url, model, chat=settings.chat, at_once=at_once)

    from loquela.api import load
    from loquela.cli.threads import suit_threads
    from loquela.evaluation.local import LocalSubject

    assert model is not None
    assert settings.engine is not None
    opened = load(model, adapter, engine=settings.engine, quantize=None if quantize is None else quantize.value)
    suit_threads(opened)
    name = "+".join([model, *filter(None, [adapter, quantize and quantize.value])])
    subject = LocalSubject(opened, name=name, chat=settings.chat)
    if subject.computes_together:
        say_compiling()
    return subject


def _evaluate(
    subject: Subject, prepared: list[Prepared], settings: Settings, log: Path | None, orders: int
) -> tuple[Evaluation, dict[str, Any], dict[str, str]]:
    """Ask; then again with the shots in other orders, and say how far the scores spread. What failed comes last."""
    from loquela.errors import LoquelaError, UsageError

    if orders > 1 and settings.shots < 2:
        raise UsageError(f"shots have an order from 2 on, but shots is {settings.shots}: leave --orders out")
    found = _run(subject, prepared, settings, log)
    failed = {name: str(error) for name, error in found.failed.items()}
    if orders == 1:
        return found, {}, failed
    scored = [one for one in prepared if one.task.name in found.results]
    scores = {name: [result.score] for name, result in found.results.items()}
    for order in range(1, orders):
        try:
            again = _run(subject, scored, replace(settings, order=order), None)
        except LoquelaError as error:
            failed |= {f"{name} in order {order}": str(error) for name in scores}
            continue
        failed |= {f"{name} in order {order}": str(error) for name, error in again.failed.items()}
        for name, result in again.results.items():
            scores[name].append(result.score)
    spreads = {n: {"scores": s, "min": min(s), "max": max(s), "mean": sum(s) / len(s)} for n, s in scores.items()}
    return found, spreads, failed


def _run(subject: Subject, prepared: list[Prepared], settings: Settings, log: Path | None) -> Evaluation:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from loquela.evaluation.run import run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        shown: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in shown:
                shown[name] = bars.add_task(name, total=total)
            bars.update(shown[name], completed=done)

        return run(subject, prepared, settings, log=log, progress=progress)


def _versus(
    other: str, scored: list[Prepared], settings: Settings, found: Evaluation, log: Path | None, extra: dict[str, Any]
) -> dict[str, str]:
    """Compare with another model; returns what failed."""
    from loquela.errors import LoquelaError
    from loquela.evaluation.compare import compare

    beside = None if log is None else log.with_name(f"{log.stem}-versus{log.suffix}")
    try:
        theirs = _run(_subject(other, None, None, None, None, settings), scored, settings, beside)
    except LoquelaError as error:
        return {f"--versus {other}": str(error)}
    failed = {f"{name} --versus {other}": str(error) for name, error in theirs.failed.items()}
    for one in scored:
        name = one.task.name
        if name in theirs.results:
            try:
                said = compare(one.task, found.results[name], theirs.results[name])
            except LoquelaError as error:
                failed[f"{name} --versus {other}"] = str(error)
            else:
                extra[name]["versus"] = {"model": other, **said}
    return failed


def _overlaps(sources: list[Path], prepared: list[Prepared]) -> dict[str, Overlap]:
    """Look for each task's items in training texts, before a model is asked."""
    from loquela.data.readers import read_pieces
    from loquela.evaluation.contamination import item_texts, overlap_of

    found = {}
    for one in prepared if sources else []:
        if one.task.kind == "perplexity":
            text = "".join(piece.text for piece in read_pieces(one.file))
            items = {i: [line] for i, line in enumerate(text.split("\n")) if line.strip()}
        else:
            items = item_texts(one.task, one.rows)
        found[one.task.name] = overlap_of(items, sources)
    return found


def _curve(
    models: list[str],
    url: str | None,
    concurrency: int | None,
    adapter: str | None,
    quantize: Any,
    prepared: list[Prepared],
    settings: Settings,
    counts: list[int],
    chart: Path | None,
    json: bool,
) -> None:
    from loquela.cli.scores import curve_table
    from loquela.errors import LoquelaError
    from loquela.evaluation.curve import Point, write_chart

    points, seconds, asked = [], 0.0, 0
    failed: dict[str, LoquelaError] = {}
    asked_models: list[str | None] = [*models] or [None]
    for model in asked_models:
        try:
            subject = _subject(model, url, concurrency, adapter, quantize, settings)
        except LoquelaError as error:
            failed[str(model)] = error
            continue
        for count in counts:
            where = f"{subject.name} with {count} shots"
            try:
                found = _run(subject, prepared, replace(settings, shots=count), None)
            except LoquelaError as error:
                failed[where] = error
                continue
            failed |= {f"{name}, {where}": error for name, error in found.failed.items()}
            points += [Point(subject.name, count, result) for result in found.results.values()]
            seconds, asked = seconds + found.seconds, asked + found.asked
    if not points:
        raise next(iter(failed.values()))
    reasons = {what: str(error) for what, error in failed.items()}
    if json:
        results = {point.result.task: point.result.as_dict() for point in points}
        curve = [point.as_dict() for point in points]
        speed = {"seconds": seconds, "items_per_second": asked / seconds}
        print_json({"results": results, "curve": curve, **speed, "failed": reasons})
    else:
        curve_table(points)
    if chart is not None:
        write_chart(points, chart)
        note(f"chart: {chart}")
    _end(reasons)


def _counts(shots: str) -> list[int]:
    from loquela.errors import UsageError

    try:
        counts = [int(part) for part in shots.split(",")]
    except ValueError:
        raise UsageError(f"shots must be a number or several as 0,1,2,4, but is {shots!r}") from None
    if len(set(counts)) < len(counts):
        raise UsageError(f"shots must be different numbers, but is {shots!r}")
    return counts


def _list(found: list[Any], json: bool) -> None:
    if json:
        print_json({"tasks": [{"name": one.name, "kind": one.kind, "about": one.about} for one in found]})
        return
    for one in found:
        write(f"{one.name:<24} {one.kind:<10} {one.about}\n")
